"""The file of models to probe (MODEL_PROBES_FILE): what may stand in it, and what is wrong with it, by line.

What belongs here: reading and validation. What does not: sending anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

ProbedType = Literal["chatCompletion", "embedding", "imageGeneration"]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Key = tuple[str, str, str]
"""Provider, model and type: one model may be offered by two providers, and for two purposes."""


class ProbesFileError(Exception):
    """The file of models to probe cannot be used; the message has a line for each reason, with file and line."""


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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Target(_Strict):
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


class ProbesFile(_Strict):
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
    provider_concurrency: dict[str, Annotated[int, Field(ge=1, le=200)]] = {}
    probes_per_day: int = Field(default=500, ge=0, le=1_000_000)
    credits_per_day: Decimal = Field(default=Decimal(1), ge=0, decimal_places=10)
    image_probes: bool = False
    traffic_minutes: int = Field(default=15, ge=1, le=1440)
    traffic_failure_share: float = Field(default=0.5, gt=0, le=1)
    traffic_fewest_calls: int = Field(default=5, ge=1, le=1_000_000)
    models: tuple[Target, ...] = Field(min_length=1)


class _Loader(yaml.SafeLoader):
    """Names the line of values that cannot be what they look like, such as 2026-13-45, where PyYAML just fails."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Construct a value."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"this is no {kind}; write text in quotes", node.start_mark) from None


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
        ProbesFileError: it cannot be used; every reason is told, none holds a secret.
    """
    try:
        return _read(path, variable)
    except OSError as error:
        raise ProbesFileError(f"{path}: {error.strerror}. Correct MODEL_PROBES_FILE.") from None
    except RecursionError:
        raise ProbesFileError(f"{path}:1: lists and mappings are nested too deeply") from None


def _read(path: Path, variable: Callable[[str], SecretStr | None]) -> Probes:
    content = path.read_bytes()
    try:
        text = content.decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ProbesFileError(f"{path}:{line}: not UTF-8: {error.reason}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ProbesFileError(f"{path}:{line}: no YAML: {error.reason}") from None
    except yaml.YAMLError as error:
        raise _refused(path, _of_yaml(error)) from None
    if not isinstance(root, MappingNode):
        raise ProbesFileError(f"{path}:1: no mapping with a list `models`; see docs/usage.md for an example")
    problems = _repeated(root, set())
    try:
        file = ProbesFile.model_validate(_Loader("").construct_document(root))
    except (ValidationError, yaml.YAMLError) as error:
        problems += _of_yaml(error) if isinstance(error, yaml.YAMLError) else _of_validation(root, error)
        raise _refused(path, problems) from None
    problems += _of_models(root, file, variable)
    if problems:
        raise _refused(path, problems)
    names = {target.api_key_env for target in file.models if target.api_key_env}
    return Probes(file, {name: key for name in names if (key := variable(name)) is not None})


def _refused(path: Path, problems: list[tuple[int, str]]) -> ProbesFileError:
    return ProbesFileError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(set(problems))))


def _of_yaml(error: yaml.YAMLError) -> list[tuple[int, str]]:
    mark = getattr(error, "problem_mark", None)
    return [(mark.line + 1 if mark else 1, f"no YAML: {getattr(error, 'problem', None) or error}")]


def _of_validation(root: Node, error: ValidationError) -> list[tuple[int, str]]:
    found = []
    problems = error.errors(include_input=False, include_url=False)
    for problem in problems:
        if problem["type"] == "too_short" and any(len(other["loc"]) > len(problem["loc"]) for other in problems):
            # Of a list with one wrong item, pydantic also says that it is empty.
            continue
        place = ".".join(str(part) for part in problem["loc"])
        text = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        found.append((_line(root, problem["loc"]), f"{place}: {text}"))
    return found


def _of_models(root: Node, file: ProbesFile, variable: Callable[[str], SecretStr | None]) -> list[tuple[int, str]]:
    """What no single field shows: models that stand there twice, providers that do not, and keys that lack."""
    found: list[tuple[int, str]] = []
    times = Counter(target.key for target in file.models)
    for index, target in enumerate(file.models):
        name = target.api_key_env
        if name and variable(name) is None:
            # A name in small letters may be a key that somebody wrote there.
            shown = f"the environment variable {name}" if name == name.upper() else "this environment variable"
            text = f"models.{index}.api_key_env: {shown} is not set"
            found.append((_line(root, ("models", index, "api_key_env")), text))
        if times[target.key] > 1:
            text = f"models.{index}: {' '.join(target.key)} stands here {times[target.key]} times"
            found.append((_line(root, ("models", index)), text))
    known = {target.provider for target in file.models}
    for provider in sorted(set(file.provider_concurrency) - known):
        line = _line(root, ("provider_concurrency", provider))
        found.append((line, f"provider_concurrency.{provider}: no model of this provider is listed"))
    return found


def _line(root: Node, place: tuple[int | str, ...]) -> int:
    """The line on which a field stands, or what should hold it."""
    node, line = root, root.start_mark.line
    for part in place:
        following = _child(node, part)
        if following is None:
            break
        line, node = following
    return line + 1


def _child(node: Node, part: int | str) -> tuple[int, Node] | None:
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line, node.value[part]
    if isinstance(node, MappingNode):
        # The last one counts: those that `<<` brought along stand before the node's own.
        for key, value in reversed(node.value):
            if isinstance(key, ScalarNode) and key.value == str(part):
                return key.start_mark.line, value
    return None


def _repeated(node: Any, seen: set[int]) -> list[tuple[int, str]]:
    """Fields that stand twice in one mapping, of which YAML silently keeps the last."""
    found: list[tuple[int, str]] = []
    if id(node) in seen:
        # Through an alias, perhaps of what it stands in.
        return found
    seen.add(id(node))
    if isinstance(node, MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, ScalarNode))
        for key, value in node.value:
            if isinstance(key, ScalarNode) and names[key.value] > 1:
                found.append((key.start_mark.line + 1, f"{key.value} stands here {names[key.value]} times"))
            found += _repeated(value, seen)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            found += _repeated(value, seen)
    return found
