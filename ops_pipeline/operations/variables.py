"""What `ops-pipeline check` says about each variable of the environment.

What belongs here: one line per variable, secrets masked, and names that look like a slip of the hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from pydantic import SecretStr

from ops_pipeline.checking import Check
from ops_pipeline.settings import Settings, secret_file_variables

PERIODS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}
"""Letters that every variable of a duration takes."""
LIKE_OURS = 0.86
"""Similarity from which a name is taken for one of ours with a slip: one letter in seven at most."""


def check_variables(settings: Settings, given: Iterable[str], except_for: Iterable[str] = ()) -> list[Check]:
    """One line for every variable, in the order of `.env.example`, and one for every name that is almost one.

    Args:
        settings: the environment, validated.
        given: the names of all variables that are set.
        except_for: names of variables that other checks tell about.
    """
    known = {name.upper(): name for name in Settings.model_fields}
    left_out = set(except_for)
    checks = [_line(settings, name, field) for name, field in known.items() if name not in left_out]
    for name in sorted({one.upper() for one in given} - set(known) - secret_file_variables()):
        meant = get_close_matches(name, known, n=1, cutoff=LIKE_OURS)
        if meant:
            detail = f"no such variable, {meant[0]} is meant? It has no effect under this name."
            checks.append(Check(name, ok=True, detail=detail, warning=True))
    return checks


def _line(settings: Settings, name: str, field: str) -> Check:
    value = getattr(settings, field)
    usual = field not in settings.model_fields_set
    return Check(name, ok=True, detail=f"{_text(value)}{' (default)' if usual else ''}", usual=usual)


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else "not set"
    return _written(value) or "not set"


def _written(value: Any) -> str:
    """A value as a person writes it into the environment; empty when there is none."""
    match value:
        case None:
            text = ""
        case bool():
            text = str(value).lower()
        case float():
            text = f"{value:.10g}"
        case datetime():
            text = f"{value:%Y-%m-%dT%H:%MZ}"
        case timedelta():
            letter = next((one for one, period in PERIODS.items() if value >= period), "s")
            text = f"{value / PERIODS[letter]:.10g}{letter}"
        case dict():
            text = ",".join(f"{key}={_written(one)}" for key, one in value.items())
        case tuple():
            text = ",".join(_written(one) for one in value)
        case _:
            text = str(value)
    return text
