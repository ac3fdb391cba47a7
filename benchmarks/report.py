"""What was measured, told as a table and as JSON.

What belongs here: the shape of a measurement, machine facts and printing. What does not: measuring.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEADER = ("measure", "seconds", "calls/s", "result", "target", "")
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        name: what was measured.
        seconds: its median wall time; None where time is not the point.
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

    def cells(self) -> tuple[str, ...]:
        """The line's cells, in the order of `HEADER`."""
        rate = f"{self.calls / self.seconds:,.0f}" if self.calls and self.seconds else ""
        verdict = "" if self.ok is None else "ok" if self.ok else "MISSED"
        return (
            self.name,
            "" if self.seconds is None else _seconds(self.seconds),
            rate,
            self.result,
            self.target,
            verdict,
        )


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def against(
    name: str, readings: Sequence[float], calls: int, floor: float, limit: float | None = None, **details: Any
) -> Measure:
    """A time as a ratio to the floor, which must stay within `limit`."""
    seconds = statistics.median(readings)
    ratio = seconds / floor
    return Measure(
        name,
        seconds,
        calls,
        f"{ratio:.2f} x floor",
        f"<= {limit:g} x floor" if limit else "",
        ratio <= limit if limit else None,
        {"readings": [round(one, 4) for one in readings], "ratio": round(ratio, 3), **details},
    )


def plain(
    name: str, readings: Sequence[float], *, limit: float | None = None, result: str = "", **more: Any
) -> Measure:
    """A time, which must stay below `limit` seconds."""
    seconds = statistics.median(readings)
    return Measure(
        name,
        seconds,
        result=result,
        target=f"< {limit * 1000:g} ms" if limit else "",
        ok=seconds < limit if limit else None,
        details={"readings": [round(one, 5) for one in readings], **more},
    )


def timed(work: Callable[[], object]) -> float:
    """How many seconds something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
