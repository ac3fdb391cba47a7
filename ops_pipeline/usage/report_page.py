"""The HTML page of the daily usage report: one file that needs no other, with every number also as text.

What belongs here: words, tables and escaping. What does not: numbers (`report`) and drawing (`report_figures`).
Importing this module imports pandas; only `report.write_report` does.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files

import pandas as pd

from ops_pipeline.usage.formats import money, note, printable
from ops_pipeline.usage.reading import LatencyRow, Quantiles, UsageRow, UsageTable
from ops_pipeline.usage.report import TOP, TRAILING_DAYS, Growth, Report, nothing_to_report

UNKNOWN = "-"


def page(report: Report, picture: bytes) -> str:
    """The page as HTML text.

    Args:
        report: the numbers.
        picture: the PNG, which is embedded.
    """
    title = f"LLM usage on {report.day:%A}, {report.day.isoformat()} (UTC)"
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    sections = [
        _section("Growth", pd.DataFrame([_growth(one) for one in report.growth])),
        _section(f"Models{_cut(report.models)}", _usage(report.models, "model")),
        _section(f"Apps{_cut(report.apps)}", _usage(report.apps, "app")),
        _section("Latency of successful calls", _latency(report.latency), LATENCY_CAPTION),
        _section("Hours of the day", _usage_over_time(report.hours, "hour (UTC)"), TOKENS_CAPTION),
        _section(f"The {TRAILING_DAYS} days", _usage_over_time(report.days, "day (UTC)"), note(report.days) or ""),
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_style()}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="quiet">Made {report.made_at:%Y-%m-%d %H:%M} UTC from the hourly roll-up.</p>',
            _notices(report),
            _cards(report),
            f'<img src="{source}" alt="Charts of the numbers in the tables below">',
            *sections,
            "</body></html>\n",
        ]
    )


LATENCY_CAPTION = (
    f"The {TOP} models with the most measured calls. Durations are in seconds, times to first byte (TTFB) in"
    " milliseconds, both within 2 %."
)
TOKENS_CAPTION = (
    "Most providers count cache reads and writes as part of the input, and reasoning as part of the output;"
    " they are not added again."
)


def _style() -> str:
    return files("ops_pipeline.usage").joinpath("report.css").read_text(encoding="utf-8")


def _notices(report: Report) -> str:
    words = [note(report.hours)]
    if report.empty:
        words.insert(0, nothing_to_report(report))
    if report.total.processing:
        words.append(f"{report.total.processing:,} calls were still running when their hour was rolled up.")
    shown = [f"<p>{escape(text)}</p>" for text in words if text]
    return f'<div class="note">{"".join(shown)}</div>' if shown else ""


def _cards(report: Report) -> str:
    total = report.total
    rates = {one.measure: _percent(one.rate, signed=True) for one in report.growth[:3]}
    failed = f"{total.failed:,} of {total.succeeded + total.failed:,} ended calls failed"
    cards = [
        (f"{total.calls:,}", f"calls, {rates['calls']} against the day before"),
        (money(total.credits), f"credits, {rates['credits']} against the day before"),
        (f"{total.tokens:,}", f"input and output tokens, {rates['tokens']} against the day before"),
        (_percent(total.success_rate), f"success rate; {failed}"),
    ]
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in cards
    )
    return f'<div class="cards">{inner}</div>'


def _section(heading: str, table: pd.DataFrame, caption: str = "") -> str:
    if table.empty:
        body = "<p>None on this day.</p>"
    else:
        # Every cell is escaped: names come from whoever calls the gateway.
        body = f'<div class="scroll">{table.to_html(index=False, border=0, escape=True, justify="unset")}</div>'
    words = f'<p class="quiet">{escape(caption)}</p>' if caption else ""
    return f"<h2>{escape(heading)}</h2>{body}{words}"


def _cut(table: UsageTable) -> str:
    return f": the {TOP} of {len(table.rows):,} with the most credits" if len(table.rows) > TOP else ", by credits"


def _growth(one: Growth) -> dict[str, str]:
    whole = one.measure != "credits"
    current, previous = (f"{value:,.0f}" if whole else money(value) for value in (one.current, one.previous))
    rate = _percent(one.rate, signed=True)
    return {"measure": f"{one.measure}, {one.period}", "current": current, "previous": previous, "growth": rate}


def _usage(table: UsageTable, name: str) -> pd.DataFrame:
    share_of = table.total.credits
    return pd.DataFrame(
        {
            name: printable(row.key),
            "credits": money(row.credits),
            "share": _percent(float(row.credits / share_of)) if share_of else UNKNOWN,
            **_counts(row),
            "mean seconds": UNKNOWN if row.mean_duration_seconds is None else f"{row.mean_duration_seconds:,.2f}",
        }
        for row in table.rows[:TOP]
    )


def _usage_over_time(table: UsageTable, name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {name: row.key.removesuffix("+00:00"), "credits": money(row.credits), **_counts(row)} for row in table.rows
    )


def _counts(row: UsageRow) -> dict[str, str]:
    counts = ("calls", "failed", "input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens")
    shown = {name.replace("_", " "): f"{getattr(row, name):,}" for name in counts}
    return {"success": _percent(row.success_rate), **shown}


def _latency(rows: Sequence[LatencyRow]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model (provider)": f"{printable(row.key[1])} ({printable(row.key[0])})",
            "calls": f"{row.duration.calls:,}",
            **{f"{name} s": _scaled(row.duration, name, 1000, 2) for name in ("p50", "p90", "p95", "p99")},
            **{f"TTFB {name} ms": _scaled(row.ttfb, name, 1, 0) for name in ("p50", "p90", "p95", "p99")},
        }
        for row in rows[:TOP]
    )


def _scaled(found: Quantiles, name: str, divisor: float, digits: int) -> str:
    value: float | None = getattr(found, name)
    return UNKNOWN if value is None else f"{value / divisor:,.{digits}f}"


def _percent(share: float | None, *, signed: bool = False) -> str:
    if share is None:
        return UNKNOWN
    return f"{share:+,.1%}" if signed else f"{share:.2%}"
