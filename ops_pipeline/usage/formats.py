"""A usage table as text: aligned for people, CSV and JSON for programs.

What belongs here: rendering. What does not: numbers (`reading`), printing (`cli`), reports with pictures (`report`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Literal, get_args

from ops_pipeline.usage.reading import UsageQuestionError, UsageRow, UsageTable

Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
COLUMNS = (
    "calls",
    "succeeded",
    "failed",
    "processing",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "images",
    "media_seconds",
    "credits",
    "mean_duration_seconds",
)
_ALWAYS_SHOWN = {"calls", "succeeded", "failed", "input_tokens", "output_tokens", "credits", "mean_duration_seconds"}
_UNLIMITED_WIDTH = 10_000
_NOBODY = "(none)"


def render(table: UsageTable, format: Format) -> str:
    """Write a usage table as text that ends in a newline.

    - `table`: aligned columns with a total and, where the numbers are not final, a note. Columns other than the
      main ones appear when they hold anything. Mean durations have three digits; all other numbers are exact.
    - `csv`: one line per row under the names of `COLUMNS`, the first named after the grouping. No total and no
      note, so that a column can be summed as it is; see `note`. A mean that is not known is an empty cell.
    - `json`: one object with the period, `final`, the rows and the total; decimals are strings, with every digit.

    Raises:
        UsageQuestionError: `format` is none of `FORMATS`.
    """
    if format == "table":
        return _text(table)
    if format == "csv":
        return _csv(table)
    if format == "json":
        return _json(table)
    raise UsageQuestionError(f"There is no format {format!r}. Choose one of {', '.join(FORMATS)}.")


def note(table: UsageTable) -> str | None:
    """Why the numbers may still change, in one sentence; None when they are final."""
    reasons = []
    if table.hours_missing:
        reasons.append(f"{table.hours_missing:,} of {_hours(len(table.period.window))} not aggregated yet")
    if table.hours_provisional:
        reasons.append(f"{_hours(table.hours_provisional)} aggregated while calls were still running")
    return f"Not final: {', '.join(reasons)}." if reasons else None


def printable(key: str) -> str:
    """A key as people see it: '' in words, and no character that moves the cursor or forges a line."""
    shown = "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in key)
    return shown or _NOBODY


def money(value: Decimal) -> str:
    """Credits to the hundredth, or to four significant digits where that would hide them."""
    if not value or abs(value) >= 1:
        return f"{value:,.2f}"
    whole, _, fraction = f"{value:.{3 - value.adjusted()}f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<2}"


def _hours(count: int) -> str:
    return "1 hour" if count == 1 else f"{count:,} hours"


def _text(table: UsageTable) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only this format pays for the import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    grid.add_column(table.by, footer="total", no_wrap=True)
    columns = [
        [_cell(row, name, digits) for row in (*table.rows, table.total)]
        for name, digits in ((name, _digits(table, name)) for name in _shown(table))
    ]
    for name, cells in zip(_shown(table), columns, strict=True):
        grid.add_column(name.replace("_", "\n"), footer=cells[-1], justify="right", no_wrap=True)
    for row, *cells in zip(table.rows, *(column[:-1] for column in columns), strict=True):
        grid.add_row(Text(printable(row.key)), *cells)
    console = Console(file=io.StringIO(), width=_UNLIMITED_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(grid)
    lines = [_title(table), *(line.rstrip() for line in capture.get().splitlines()), note(table) or ""]
    return "\n".join(lines).rstrip() + "\n"


def _title(table: UsageTable) -> str:
    period = table.period
    start, end = (instant.astimezone(period.zone) for instant in (period.start, period.end))
    return f"Usage by {table.by}, {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} ({period.zone.key})"


def _shown(table: UsageTable) -> list[str]:
    return [name for name in COLUMNS if name in _ALWAYS_SHOWN or _any(table.rows, name)]


def _any(rows: Iterable[UsageRow], name: str) -> bool:
    return any(getattr(row, name) for row in rows)


def _digits(table: UsageTable, name: str) -> int:
    """How many digits after the point show every value of a column exactly, and at least two."""
    if name == "mean_duration_seconds":
        return 3
    fractions = [f"{getattr(row, name):f}".partition(".")[2] for row in table.rows]
    return max([2, *(len(fraction.rstrip("0")) for fraction in fractions)])


def _cell(row: UsageRow, name: str, digits: int) -> str:
    value: int | Decimal | None = getattr(row, name)
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _exact(value: int | Decimal | None) -> int | str | None:
    return f"{value:f}" if isinstance(value, Decimal) else value


def _values(row: UsageRow) -> list[int | str | None]:
    return [_exact(getattr(row, name)) for name in COLUMNS]


def _csv(table: UsageTable) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([table.by, *COLUMNS])
    writer.writerows([row.key, *_values(row)] for row in table.rows)
    return text.getvalue()


def _json(table: UsageTable) -> str:
    def as_object(row: UsageRow) -> dict[str, Any]:
        return dict(zip(COLUMNS, _values(row), strict=True))

    answer = {
        "by": table.by,
        "start": table.period.start.isoformat(),
        "end": table.period.end.isoformat(),
        "zone": table.period.zone.key,
        "final": table.final,
        "hours_missing": table.hours_missing,
        "hours_provisional": table.hours_provisional,
        "rows": [{table.by: row.key, **as_object(row)} for row in table.rows],
        "total": as_object(table.total),
    }
    return json.dumps(answer, indent=2, ensure_ascii=False) + "\n"
