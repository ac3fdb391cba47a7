"""The kinds of values that variables of several domains have.

What belongs here: reading and validating one value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from croniter import croniter
from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

LONGEST_DAYS = 36_500


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(
            f"{text!r} has {len(fields)} fields, but a schedule has five: minute hour day-of-month month day-of-week"
            " (there is no field for seconds), for example '0 * * * *'"
        )
    # Strict also finds days that no month has; "r" is another random minute at each look.
    if not croniter.is_valid(text, strict=True) or any(field.lower().startswith("r") for field in fields):
        raise ValueError(f"{text!r} is no cron schedule, write for example '0 * * * *' for every full hour")
    return " ".join(fields)


def listed(value: Any) -> Any:
    """Read `a,b`."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CronText = Annotated[str, AfterValidator(_cron)]
TextTuple = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]


def days_by_name(example: str) -> Callable[[Any], Any]:
    """A reader of `name=days,other=days`; `example` is what a person is told to write."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found: dict[str, float] = {}
        for part in listed(value):
            name, _, days = part.rpartition("=")
            try:
                found[name] = float(days)
            except ValueError:
                found[name] = 0
            if not name or not 0 < found[name] <= LONGEST_DAYS:
                raise ValueError(f"{part!r} gives no days; write for example {example}")
        return found

    return read
