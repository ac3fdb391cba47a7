"""Partitions of the usage assets, and the way between their keys and times.

What belongs here: the three definitions and key conversion.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from dagster import DailyPartitionsDefinition, HourlyPartitionsDefinition, MonthlyPartitionsDefinition

HOUR_FORMAT = "%Y-%m-%d-%H:%M"
DAY_FORMAT = "%Y-%m-%d"


@dataclass(frozen=True)
class UsagePartitions:
    """The partitions of hours, days and months from one start on, all in UTC.

    Only hours and days that are over are partitions. The running month is one, so that the month to date can be
    read; its state is `partial` until its last day is in.
    """

    hours: HourlyPartitionsDefinition
    days: DailyPartitionsDefinition
    months: MonthlyPartitionsDefinition


def usage_partitions(start: datetime) -> UsagePartitions:
    """Make the partitions for MODEL_CALL_STATS_START."""
    start = start.astimezone(UTC)
    return UsagePartitions(
        hours=HourlyPartitionsDefinition(start_date=start.strftime(HOUR_FORMAT), timezone="UTC"),
        days=DailyPartitionsDefinition(start_date=start.strftime(DAY_FORMAT), timezone="UTC"),
        months=MonthlyPartitionsDefinition(
            start_date=start.replace(day=1).strftime(DAY_FORMAT), timezone="UTC", end_offset=1
        ),
    )


def hour_of(key: str) -> datetime:
    """The hour of a partition key."""
    return datetime.strptime(key, HOUR_FORMAT).replace(tzinfo=UTC)


def hour_key(hour: datetime) -> str:
    """The partition key of an hour."""
    return hour.astimezone(UTC).strftime(HOUR_FORMAT)


def date_of(key: str) -> date:
    """The day, or first day of the month, of a partition key."""
    return date.fromisoformat(key)


def ranges_of_dates(dates: Iterable[date], longest: int) -> list[tuple[date, date]]:
    """The fewest ranges, both ends included, of at most `longest` days that hold exactly these days."""
    ranges: list[tuple[date, date]] = []
    for one in sorted(set(dates)):
        if ranges and one - ranges[-1][1] == timedelta(days=1) and (one - ranges[-1][0]).days < longest:
            ranges[-1] = (ranges[-1][0], one)
        else:
            ranges.append((one, one))
    return ranges


def hours_between(first: str, last: str) -> Sequence[datetime]:
    """The hours from one key to another, both included."""
    start, end = hour_of(first), hour_of(last)
    return [start + timedelta(hours=index) for index in range(int((end - start) / timedelta(hours=1)) + 1)]
