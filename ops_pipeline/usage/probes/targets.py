"""The file of models to probe (MODEL_PROBES_FILE): what may stand in it, and what is wrong with it, by line.

What belongs here: reading and validation. What does not: sending anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from ops_pipeline.strict_yaml import Problem, Strict, read_strictly

ProbedType = Literal["chatCompletion", "embedding", "imageGeneration"]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Key = tuple[str, str, str]
"""Provider, model and type: one model may be offered by two providers, and for two purposes."""


def _base_url(text: str) -> str:
    if re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", text) is None or not _has_host(text):
        # Without the text itself, in which a password or a key may stand.
        raise ValueError(
            "no base URL; write for example https://api.openai.com/v1 (no user, password or question mark)"
        )
    return text.rstrip("/")


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Target(Strict):
    """One model to probe."""

    provider: Name
    base_url: Annotated[str, AfterValidator(_base_url)]
    model: Name
    type: ProbedType = "chatCompletion"
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_seconds: float = Field(default=30, gt=0, le=300)
    expected_credits: Decimal = Field(default=Decimal(0), ge=0, le=1000, decimal_places=10)
    verify: int = Field(default=2, ge=0, le=10)
    verify_after_seconds: float = Field(default=3, ge=0, le=60)
    token_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - tokens of text
    image_size: str | None = Field(default=None, pattern=r"^\d{2,4}x\d{2,4}$")

    @property
    def key(self) -> Key:
        """What identifies the model in the tables."""
        return (self.provider, self.model, self.type)

    @property
    def probes_needed(self) -> int:
        """How many agreeing probes in a row change the state."""
        return 1 + self.verify


class ProbesFile(Strict):
    """The models to probe, and the limits for all of them.

    Attributes:
        concurrency: probes at the same time.
        provider_concurrency: probes of one provider at the same time, where it is not 1.
        probes_per_day: the budget of a UTC day in probes, verification included.
        credits_per_day: the budget of a UTC day in expected credits.
        image_probes: whether images may be generated to prove a model, which costs money.
        traffic_minutes: calls that ended so recently count as evidence.
        traffic_failure_share: from which share of failures on real calls lead to a probe.
        traffic_fewest_calls: below so many calls a share says nothing.
        models: what to probe.
    """

    concurrency: int = Field(default=8, ge=1, le=200)
    provider_concurrency: dict[str, Annotated[int, Field(ge=1, le=200)]] = Field(default={})
    probes_per_day: int = Field(default=500, ge=0, le=1_000_000)
    credits_per_day: Decimal = Field(default=Decimal(1), ge=0, decimal_places=10)
    image_probes: bool = False
    traffic_minutes: int = Field(default=15, ge=1, le=1440)
    traffic_failure_share: float = Field(default=0.5, gt=0, le=1)
    traffic_fewest_calls: int = Field(default=5, ge=1, le=1_000_000)
    models: tuple[Target, ...] = Field(min_length=1)


class Probes:
    """A valid file together with the keys that its models need; the keys are in no text of it."""

    def __init__(self, file: ProbesFile, keys: dict[str, SecretStr]) -> None:
        """Keep both."""
        self.file = file
        self._keys = keys

    def key_of(self, target: Target) -> str | None:
        """The API key of a target; None where it needs none."""
        return self._keys[target.api_key_env].get_secret_value() if target.api_key_env else None

    def secrets(self) -> list[str]:
        """All keys, to be removed from whatever providers answer."""
        return [key.get_secret_value() for key in self._keys.values()]


def read_probes(path: Path, variable: Callable[[str], SecretStr | None]) -> Probes:
    """Read and validate a file of models to probe.

    Args:
        path: a YAML file.
        variable: the value of an environment variable; None when it is not set.

    Raises:
        FileRefused: it cannot be used; every reason is told, none holds a secret.
    """
    file = read_strictly(
        path, ProbesFile, hint="Correct MODEL_PROBES_FILE.", further=lambda valid: _of_models(valid, variable)
    )
    names = {target.api_key_env for target in file.models if target.api_key_env}
    return Probes(file, {name: key for name in names if (key := variable(name)) is not None})


def _of_models(file: ProbesFile, variable: Callable[[str], SecretStr | None]) -> list[Problem]:
    """What no single field shows: models that stand there twice, providers that do not, and keys that lack."""
    found: list[Problem] = []
    times = Counter(target.key for target in file.models)
    for index, target in enumerate(file.models):
        name = target.api_key_env
        if name and variable(name) is None:
            # A name in small letters may be a key that somebody wrote there.
            shown = f"the environment variable {name}" if name == name.upper() else "this environment variable"
            found.append((("models", index, "api_key_env"), f"{shown} is not set"))
        if times[target.key] > 1:
            found.append((("models", index), f"{' '.join(target.key)} stands here {times[target.key]} times"))
    known = {target.provider for target in file.models}
    strangers = sorted(set(file.provider_concurrency) - known)
    found += [(("provider_concurrency", one), "no model of this provider is listed") for one in strangers]
    return found
