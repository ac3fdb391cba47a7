"""The picture of the daily usage report, one PNG of 900 pixels' width.

What belongs here: drawing. What does not: numbers (`report`) and the page around the picture (`report_page`).
Importing this module takes over a second; only `report.write_report` does. No state of pyplot is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from ops_pipeline.usage.formats import money, note, printable
from ops_pipeline.usage.reading import LatencyRow, Quantiles, UsageRow, UsageTable
from ops_pipeline.usage.report import TOP, Report, nothing_to_report

DPI = 100
SIZE_INCHES = (9.0, 12.6)
COLOURS = 64
"""Of the palette: a third of the bytes of true colour, and no visible difference."""
LONGEST_LABEL = 26
MORE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari")
"""Used, where installed, for names in scripts that matplotlib's own font lacks; else such letters are boxes."""

INK, QUIET, LINES = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, PALE, RED, AMBER = "#2f6fb0", "#9cc3e6", "#cc4b37", "#e0a526"
QUANTILE_COLOURS = {"p50": "#9cc3e6", "p90": "#5a97cf", "p95": "#2f6fb0", "p99": "#173f6b"}

Label = Callable[[float, int], str]


def draw(report: Report) -> bytes:
    """Draw the report as PNG; the same report gives the same bytes."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.03, wspace=0.03)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    head, time, names = figure.subfigures(3, 1, squeeze=False, height_ratios=(0.9, 5.9, 5.8))[:, 0]
    _headline(head.subplots(), report)
    hours, days = frame(report.hours), frame(report.days)
    left, right = time.subplots(3, 2).T
    _over_time(left, hours, [f"{hour:02}" for hour in range(24)], "hour (UTC)")
    _over_time(right, days, [f"{day.day} {day:%b}" for day in pd.to_datetime(days.index)], "day (UTC)")
    (models, apps), speeds = names.subplots(2, 2)
    _ranking(models, report.models, "Top models by credits")
    _ranking(apps, report.apps, "Top apps by credits")
    _latency(*speeds, report.latency[:TOP])
    _prepare_text(figure)
    canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    file = io.BytesIO()
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True, dpi=(DPI, DPI))
    return file.getvalue()


def frame(table: UsageTable) -> pd.DataFrame:
    """A usage table as float columns to plot, indexed by key; the exact numbers stay in the table."""
    names = ("succeeded", "failed", "processing", "calls", "credits", "input_tokens", "output_tokens")
    return pd.DataFrame(
        {name: [float(getattr(row, name)) for row in table.rows] for name in names},
        index=[row.key for row in table.rows],
    )


def _headline(axes: Axes, report: Report) -> None:
    axes.set_axis_off()
    total = report.total
    axes.text(0, 0.72, f"LLM usage on {report.day:%A}, {report.day.isoformat()} (UTC)", fontsize=15, weight="bold")
    if report.empty:
        words = nothing_to_report(report)
    else:
        rate = "-" if total.success_rate is None else f"{total.success_rate:.2%}"
        words = (
            f"{total.calls:,} calls, {rate} of the ended ones succeeded   |   {money(total.credits)} credits   |   "
            f"{total.tokens:,} tokens"
        )
    axes.text(0, 0.28, words, fontsize=10, color=QUIET)
    if reason := note(report.hours):
        axes.text(0, -0.1, reason, fontsize=10, color=RED)


def _over_time(panels: Sequence[Axes], data: pd.DataFrame, ticks: Sequence[str], unit: str) -> None:
    """Calls, credits and tokens, one below the other, one bar per row of `data`."""
    per = unit.split(" ", maxsplit=1)[0]
    calls, money, tokens = panels
    parts = [("succeeded", "succeeded", BLUE), ("failed", "failed", RED), ("processing", "running", AMBER)]
    _bars(calls, data, parts, ticks)
    _title(calls, f"Calls per {per}", "calls")
    _bars(money, data, [("credits", "credits", BLUE)], ticks)
    if per == "day" and data["credits"].any():
        mean = data["credits"].rolling(7).mean()
        money.plot(range(len(mean)), mean, color=INK, linewidth=1.3, label="mean of 7 days")
        _legend(money)
    _title(money, f"Credits per {per}", "credits")
    _bars(tokens, data, [("input_tokens", "input", BLUE), ("output_tokens", "output", PALE)], ticks)
    _title(tokens, f"Tokens per {per}", "tokens")
    tokens.set_xlabel(unit, fontsize=8, color=QUIET)
    calls.yaxis.set_major_formatter(FuncFormatter(_number))
    money.yaxis.set_major_formatter(FuncFormatter(_number))
    tokens.yaxis.set_major_formatter(EngFormatter(sep=" "))


def _bars(axes: Axes, data: pd.DataFrame, parts: Sequence[tuple[str, str, str]], ticks: Sequence[str]) -> None:
    """Stacked bars; a part that is zero throughout is left out."""
    _style(axes)
    places = range(len(data))
    base = pd.Series(0.0, index=data.index)
    drawn = [part for part in parts if data[part[0]].any()]
    for name, label, colour in drawn:
        axes.bar(places, data[name], bottom=base, width=0.8, color=colour, label=label)
        base = base + data[name]
    step = 3 if len(data) == 24 else 7
    marked = range((len(data) - 1) % step if step == 7 else 0, len(data), step)
    axes.set_xticks(list(marked), [ticks[place] for place in marked])
    axes.set_xlim(-0.7, len(data) - 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=parts[0][0] != "credits"))
    if drawn:
        axes.set_ylim(0, base.max() * 1.22 if base.max() > 0 else 1)
    else:
        _nothing(axes)
    if len(drawn) > 1:
        _legend(axes)


def _ranking(axes: Axes, table: UsageTable, title: str) -> None:
    _style(axes, along="x")
    _title(axes, title, "")
    axes.set_xlabel("credits on the day", fontsize=8, color=QUIET)
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    rows: Sequence[UsageRow] = table.rows[:TOP]
    if not rows:
        _nothing(axes)
        return
    values = [float(row.credits) for row in rows]
    bars = axes.barh(range(len(rows)), values, height=0.7, color=BLUE)
    axes.bar_label(bars, [money(row.credits) for row in rows], padding=3, fontsize=8, color=INK)
    axes.set_xlim(0, max(*values, 0) * 1.25 or 1)
    _names(axes, [printable(row.key) for row in rows])


def _latency(duration: Axes, ttfb: Axes, rows: Sequence[LatencyRow]) -> None:
    _ranges(duration, [row.duration for row in rows])
    _ranges(ttfb, [row.ttfb for row in rows])
    _title(duration, "Duration of successful calls, by model", "")
    _title(ttfb, "Time to first byte, by model", "")
    if not rows:
        return
    _names(duration, [printable(row.key[1]) for row in rows])
    _names(ttfb, [""] * len(rows))
    _legend(duration if any(row.duration.calls for row in rows) else ttfb, outside=True)


def _ranges(axes: Axes, found: Sequence[Quantiles]) -> None:
    """A line from p50 to p99 for each model, on a logarithmic axis of seconds."""
    _style(axes, along="x")
    axes.set_xlabel("seconds (logarithmic)", fontsize=8, color=QUIET)
    known = [(place, one) for place, one in enumerate(found) if one.p50 is not None]
    if not known:
        _nothing(axes)
        return
    axes.set_xscale("log")
    for place, one in known:
        axes.plot([(one.p50 or 0) / 1000, (one.p99 or 0) / 1000], [place, place], color=LINES, linewidth=5, zorder=1)
    for name, colour in QUANTILE_COLOURS.items():
        seconds = [getattr(one, name) / 1000 for _, one in known]
        axes.scatter(seconds, [place for place, _ in known], s=26, color=colour, label=name, zorder=2)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < low * 300 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_number))


def _style(axes: Axes, along: str = "y") -> None:
    for side in ("top", "right", "left" if along == "y" else "bottom"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(labelsize=8, colors=QUIET, length=0)
    axes.grid(axis=along, color=LINES, linewidth=0.8)  # ty: ignore[invalid-argument-type]
    axes.set_axisbelow(True)


def _title(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=INK, weight="bold")
    axes.set_ylabel(unit, fontsize=8, color=QUIET)


def _names(axes: Axes, names: Sequence[str]) -> None:
    short = [name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…" for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_ylim(max(len(names), 3) - 0.5, -0.5)


def _legend(axes: Axes, *, outside: bool = False) -> None:
    if outside:
        axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(-0.02, -0.16))
    else:
        look = axes.legend(fontsize=7.5, ncols=3, loc="upper left", borderaxespad=0, borderpad=0.2, labelcolor=QUIET)
        look.get_frame().set(linewidth=0, alpha=1)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _number(value: float, _place: int) -> str:
    if 0 < abs(value) < 1e-3:
        return f"{value:.12f}".rstrip("0")
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _prepare_text(figure: Figure) -> None:
    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in MORE_FONTS if name in installed)]
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_fontfamily(families)
            # A model's name may hold dollar signs, which matplotlib would read as formulas, and fail on.
            text.set_parse_math(False)
