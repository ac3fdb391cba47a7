"""The kinds of values that variables of several domains have.

What belongs here: reading and validating one value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from croniter import croniter
from pydantic import AfterValidator, BeforeValidator, SecretStr
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


def url_of(*schemes: str) -> Callable[[Any], Any]:
    """A check that a URL, which may be a secret and is shown in no error, has a host and one of these schemes."""

    def check(value: Any) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        try:
            parts = urlsplit(text)
            usable = parts.scheme in schemes and bool(parts.hostname)
        except ValueError:
            usable = False
        if text and not usable:
            raise ValueError(f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host")
        return value

    return check


def _address(text: str) -> str:
    if text and not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", text):
        raise ValueError(f"{text!r} is no address, write for example ops@example.org")
    return text


def _addresses(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_address(text) for text in texts)


MailAddress = Annotated[str, AfterValidator(_address)]
CronText = Annotated[str, AfterValidator(_cron)]
TextTuple = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
MailAddresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed), AfterValidator(_addresses)]


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


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_SECONDS = 36_500 * 86_400


def duration_of(unit: str) -> Callable[[Any], Any]:
    """Reads how long something may take or be kept: `3` and `"3"` count in `unit`, `"30d"` names its own.

    Zero and less are refused: whoever writes 0 means either at once or never, and both would be wrong for somebody.
    """
    seconds_of_unit = UNITS[unit[0]]

    def read(value: Any) -> Any:
        if value is None or isinstance(value, timedelta):
            return value
        text = str(value).strip().lower()
        number, factor = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, seconds_of_unit)
        try:
            seconds = float(number) * factor
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise ValueError(f"{value!r} is no duration; write a number of {unit}, or for example 90m, 12h, 30d")
        if not 0 < seconds <= LONGEST_SECONDS:
            raise ValueError(
                f"{value!r} does not lie above 0 and within 100 years; to do without, switch the pass off instead"
            )
        return timedelta(seconds=seconds)

    return read
