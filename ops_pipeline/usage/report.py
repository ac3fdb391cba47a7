"""The daily usage report: what it says, and its two files.

What belongs here: gathering the numbers of a day and of the 30 days that end with it, growth, and writing the
files. What does not: how the page (`report_page`) and the picture (`report_figures`) look. Those two import pandas
and matplotlib, which takes seconds, and are therefore imported only when a report is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.usage.hours import DAY, day_start
from ops_pipeline.usage.reading import LatencyRow, Period, UsageRow, UsageTable, latency_within, usage_within

TRAILING_DAYS = 30
TOP = 10


@dataclass(frozen=True)
class Growth:
    """One measure of a period beside that of the equally long period before."""

    measure: str
    period: str
    current: Decimal
    previous: Decimal

    @property
    def rate(self) -> float:
        """The growth: 0.1 for ten per cent more."""
        return growth(self.current, self.previous)


@dataclass(frozen=True)
class Report:
    """The numbers of one UTC day, all read from one snapshot of the database.

    `hours` has the 24 hours of the day, `days` the 30 days that end with it; `models`, `apps` and `latency` (by
    provider and model) are of the day and complete, the page shows the first ten.
    """

    day: date
    made_at: datetime
    hours: UsageTable
    days: UsageTable
    models: UsageTable
    apps: UsageTable
    latency: tuple[LatencyRow, ...]
    growth: tuple[Growth, ...]

    @property
    def total(self) -> UsageRow:
        """The sums of the day."""
        return self.hours.total

    @property
    def empty(self) -> bool:
        """True when no call of the day is in the roll-up."""
        return not self.total.calls


@dataclass(frozen=True)
class ReportFiles:
    """Where the report was written."""

    html: Path
    png: Path


def growth(current: Decimal, previous: Decimal) -> float:
    """The relative growth over an equal period: (current - previous) / previous.

    A previous 0 gives 1 if there is something now, and 0 if there is nothing.
    """
    if not previous:
        return 1.0 if current > 0 else 0.0
    return float((current - previous) / previous)


def nothing_to_report(report: Report) -> str:
    """What is to be said of an empty day: that there were no calls, or that nobody knows yet."""
    if report.hours.hours_missing:
        return "No calls of this day have been aggregated so far."
    return "There were no calls on this day."


def build_report(engine: Engine, day: date, *, now: datetime | None = None) -> Report:
    """Gather the numbers of a UTC day from the roll-up tables; a day without calls gives a report of zeros.

    Args:
        engine: of the operations database.
        day: the UTC day.
        now: aware; hours begun before it are expected to be rolled up. None for the database's clock.

    Raises:
        DatabaseProblem: the database cannot be reached.
    """
    start = day_start(day)
    today = Period(start, start + DAY, ZoneInfo("UTC"))
    trailing = Period(start - (TRAILING_DAYS - 1) * DAY, start + DAY, ZoneInfo("UTC"))
    with reading(engine) as connection:
        moment = now or database_now(connection)
        days = usage_within(connection, trailing, "day", now=moment)
        return Report(
            day=day,
            made_at=moment,
            hours=usage_within(connection, today, "hour", now=moment),
            days=days,
            models=usage_within(connection, today, "model", now=moment),
            apps=usage_within(connection, today, "app", now=moment),
            latency=latency_within(connection, today, ("provider", "model")),
            growth=_growths(days.rows),
        )


def write_report(report: Report, folder: Path) -> ReportFiles:
    """Write `usage-2026-11-21.html` and `.png` into a folder, each at once or not at all.

    A report of the same day is replaced. The page embeds the picture, and needs no other file.

    Args:
        report: of `build_report`.
        folder: is made when it does not exist.

    Raises:
        OSError: the folder cannot be written.
    """
    from ops_pipeline.usage.report_figures import draw  # noqa: PLC0415 - matplotlib takes over a second to import
    from ops_pipeline.usage.report_page import page  # noqa: PLC0415 - and so does pandas

    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(*(folder / f"usage-{report.day.isoformat()}{suffix}" for suffix in (".html", ".png")))
    picture = draw(report)
    _write(files.png, picture)
    _write(files.html, page(report, picture).encode())
    return files


def _growths(days: Sequence[UsageRow]) -> tuple[Growth, ...]:
    spans = (
        ("day over the day before", days[-1:], days[-2:-1]),
        ("7 days over the 7 before", days[-7:], days[-14:-7]),
    )
    return tuple(
        Growth(measure, period, _sum(current, measure), _sum(previous, measure))
        for period, current, previous in spans
        for measure in ("calls", "credits", "tokens")
    )


def _sum(rows: Sequence[UsageRow], measure: str) -> Decimal:
    return sum((Decimal(getattr(row, measure)) for row in rows), Decimal(0))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
