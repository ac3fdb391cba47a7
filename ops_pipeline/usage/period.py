"""A reader's period: whole UTC hours that are shown, and cut into days, in the reader's time zone.

What belongs here: reading and checking a period, as pure rules over texts and `now`. What does not: any query
(`reading`). Usage is kept per UTC hour, so whatever cannot be cut there exactly is refused, never rounded.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from ops_pipeline.usage.hours import DAY, HOUR, Window, floor_hour

LONGEST = 3_660 * DAY
FIRST_YEAR, LAST_YEAR = 1970, 2999


class UsageQuestionError(ValueError):
    """A question that the roll-ups cannot answer; the message says why, and what to ask instead."""


@dataclass(frozen=True)
class Period:
    """The whole UTC hours from `start` up to, not including, `end`, shown in the reader's zone.

    Raises:
        UsageQuestionError: the bounds are naive, off the hour, out of order or too far apart, or an hour of the
            period cannot be assigned to one local hour and one local day.
    """

    start: datetime
    end: datetime
    zone: ZoneInfo

    def __post_init__(self) -> None:
        """Refuse what hour rows cannot answer exactly."""
        for bound in (self.start, self.end):
            _require_whole_hours(bound, self.zone)
            if floor_hour(bound) != bound:
                raise UsageQuestionError(
                    f"{_local(bound, self.zone)} is not on the hour, and usage is kept per hour."
                    " Give a date, or a time such as 2026-11-21T10:00."
                )
        if self.end <= self.start:
            raise UsageQuestionError(
                f"The period from {_local(self.start, self.zone)} to {_local(self.end, self.zone)} holds no hour:"
                " the end must lie after the start."
            )
        if self.end - self.start > LONGEST:
            raise UsageQuestionError("The period is longer than ten years. Ask for a shorter one.")
        for hour in self.window:
            _require_whole_hours(hour, self.zone)
            if _local_day(hour, self.zone) != _local_day(hour + HOUR - timedelta.resolution, self.zone):
                raise UsageQuestionError(
                    f"In {self.zone.key} midnight falls inside the UTC hour {hour:%Y-%m-%d %H:%M}, which cannot be"
                    " cut. Ask in UTC, or for a period without that hour."
                )

    @property
    def window(self) -> Window:
        """The UTC hours."""
        return Window(self.start, self.end)


def parse_period(from_text: str | None, to_text: str | None, zone_name: str, now: datetime) -> Period:
    """Read a reader's period; nothing is rounded or guessed.

    Args:
        from_text: an ISO date (from the start of that local day) or date-time; None for the start of today.
        to_text: an ISO date (to the end of that local day) or date-time (exclusive); None for the end of today.
        zone_name: IANA name, such as `Europe/Berlin`. It is the zone of dates and of times without an offset.
        now: the present instant, aware.

    Raises:
        UsageQuestionError: the texts or the zone cannot be read, or the period cannot be answered exactly.
    """
    zone = parse_zone(zone_name)
    today = _local_day(now, zone)
    start = _day_start(today, zone) if from_text is None else _instant(from_text, zone, days_later=0)
    end = _day_start(today + DAY, zone) if to_text is None else _instant(to_text, zone, days_later=1)
    period = Period(start, end, zone)
    if start > now:
        raise UsageQuestionError(f"{_local(start, zone)} lies in the future: nothing can be said about it yet.")
    return period


def parse_zone(name: str) -> ZoneInfo:
    """The IANA zone of that name.

    Raises:
        UsageQuestionError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = {zone.casefold(): zone for zone in available_timezones()}
        similar = [near[key] for key in difflib.get_close_matches(name.casefold(), near, n=3)]
        hint = f"Did you mean {' or '.join(similar)}?" if similar else "Use an IANA name such as Europe/Berlin or UTC."
        raise UsageQuestionError(f"There is no time zone {name!r}. {hint}") from error


def _instant(text: str, zone: ZoneInfo, *, days_later: int) -> datetime:
    """The UTC instant of a date (the start of the day `days_later`) or of a date-time."""
    cleaned = text.strip()
    try:
        day = date.fromisoformat(cleaned)
    except ValueError:
        pass
    else:
        _require_year(day.year, text)
        return _day_start(day + timedelta(days=days_later), zone)
    try:
        value = datetime.fromisoformat(cleaned)
    except ValueError as error:
        raise UsageQuestionError(
            f"{text!r} is no date or time. Write 2026-11-21, 2026-11-21T10:00 or 2026-11-21T10:00+01:00."
        ) from error
    _require_year(value.year, text)
    return value.astimezone(UTC) if value.tzinfo else _unambiguous(value, text, zone)


def _require_year(year: int, text: str) -> None:
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise UsageQuestionError(f"{text!r} lies outside the years {FIRST_YEAR} to {LAST_YEAR}.")


def _day_start(day: date, zone: ZoneInfo) -> datetime:
    # Where clocks skip midnight this is the first instant after it; where midnight comes twice, the first.
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _unambiguous(value: datetime, text: str, zone: ZoneInfo) -> datetime:
    """The one instant that local clocks call `value`; the doubled and the skipped hour have none."""
    candidates = [value.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    real = {instant for instant in candidates if instant.astimezone(zone).replace(tzinfo=None) == value}
    if len(real) == 1:
        return real.pop()
    spellings = " or ".join(instant.astimezone(zone).isoformat() for instant in candidates)
    problem = "happens twice" if real else "does not exist"
    raise UsageQuestionError(f"{text!r} {problem} in {zone.key}, where clocks are changed. Write {spellings}.")


def _require_whole_hours(instant: datetime, zone: ZoneInfo) -> None:
    if instant.tzinfo is None:
        raise UsageQuestionError(f"{instant!r} has no time zone.")
    offset = instant.astimezone(zone).utcoffset() or timedelta()
    if offset % HOUR:
        local = instant.astimezone(zone)
        raise UsageQuestionError(
            f"On {local:%Y-%m-%d} the clocks of {zone.key} are {local:%z} from UTC. Usage is kept per UTC hour, which"
            " cannot be cut at such an offset. Ask in UTC, or in a zone that is whole hours away."
        )


def _local_day(instant: datetime, zone: ZoneInfo) -> date:
    return instant.astimezone(zone).date()


def _local(instant: datetime, zone: ZoneInfo) -> str:
    return instant.astimezone(zone).isoformat(sep=" ", timespec="auto")
