"""What was measured, told as a table and as JSON.

What belongs here: the shape of a measurement, machine facts and printing. What does not: measuring.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEADER = ("measure", "seconds", "CPU s", "calls/s", "result", "target", "")
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Reading:
    """One measurement: wall time, processor time (server included) and bytes of write-ahead log."""

    seconds: float
    cpu_seconds: float
    wal_bytes: int = 0


def typical(readings: Sequence[Reading]) -> Reading:
    """The median of wall time and log, and the mean of processor time, which is counted in steps of 10 ms."""
    return Reading(
        statistics.median(one.seconds for one in readings),
        statistics.fmean(one.cpu_seconds for one in readings),
        round(statistics.median(one.wal_bytes for one in readings)),
    )


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        name: what was measured.
        seconds: its median wall time; None where time is not the point.
        cpu_seconds: its mean processor time, that of the database server included.
        calls: the calls that this time was for.
        result: what to compare with the target, in words.
        target: what was promised; empty for lines that only inform.
        ok: whether it was kept; None without a target.
        details: all single readings, for the JSON.
    """

    name: str
    seconds: float | None = None
    calls: int | None = None
    result: str = ""
    target: str = ""
    ok: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The line's cells, in the order of `HEADER`."""
        rate = f"{self.calls / self.seconds:,.0f}" if self.calls and self.seconds else ""
        verdict = "" if self.ok is None else "ok" if self.ok else "MISSED"
        return self.name, _seconds(self.seconds), _seconds(self.cpu_seconds), rate, self.result, self.target, verdict


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def against(
    name: str, readings: Sequence[Reading], calls: int, floor: Reading, limit: float | None = None, **details: Any
) -> Measure:
    """A time as a ratio to the floor, which must stay within `limit`."""
    middle = typical(readings)
    ratio = middle.seconds / floor.seconds
    # A floor of less than a tick has no processor time.
    by_cpu = middle.cpu_seconds / floor.cpu_seconds if floor.cpu_seconds else None
    return Measure(
        name,
        middle.seconds,
        calls,
        f"{ratio:.2f} x floor" + (f" ({by_cpu:.2f} by CPU)" if by_cpu else ""),
        f"<= {limit:g} x floor" if limit else "",
        ratio <= limit if limit else None,
        {"readings": [asdict(one) for one in readings], "ratio": ratio, "ratio_by_cpu": by_cpu, **details},
        middle.cpu_seconds,
    )


def plain(name: str, readings: Sequence[Reading], *, limit: float | None = None, result: str = "") -> Measure:
    """A time, which must stay below `limit` seconds."""
    middle = typical(readings)
    return Measure(
        name,
        middle.seconds,
        result=result,
        target=f"< {limit * 1000:g} ms" if limit else "",
        ok=middle.seconds < limit if limit else None,
        details={"readings": [asdict(one) for one in readings]},
        cpu_seconds=middle.cpu_seconds,
    )


def table(measures: Iterable[Measure]) -> str:
    """A table that reads well on a terminal and is Markdown besides."""
    rows = [HEADER, *(measure.cells() for measure in measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def as_json(measures: Iterable[Measure]) -> list[dict[str, Any]]:
    """The lines with all their readings."""
    return [asdict(measure) for measure in measures]


def machine() -> dict[str, Any]:
    """Where and when this was measured, and how busy the machine was with other things."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "dagster": version("dagster"),
        "sqlalchemy": version("sqlalchemy"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
