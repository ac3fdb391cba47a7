"""The picture of a sweep: how old the threads are, and which are the largest.

What belongs here: matplotlib, which is imported only when a picture is made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

OLDEST_SHOWN = 120
SHOWN_LETTERS = 32


def picture(ages: Mapping[int, int], largest: Sequence[tuple[int, bytes]], retention_days: float) -> bytes:
    """A PNG: threads by days since their newest checkpoint, and the largest threads by keys.

    Args:
        ages: threads by whole days.
        largest: keys and name of each of the largest threads.
        retention_days: drawn as a line where it is among the days shown.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    days = range(min(max(ages, default=0), OLDEST_SHOWN) + 1)
    older = sum(count for day, count in ages.items() if day > OLDEST_SHOWN)
    counts = [ages.get(day, 0) + (older if day == OLDEST_SHOWN else 0) for day in days]
    colors = ["#c0392b" if day >= retention_days else "#2e86c1" for day in days]
    left.bar(list(days), counts, color=colors, width=0.9)
    if retention_days <= OLDEST_SHOWN:
        # Farther away it would press the bars into nothing.
        left.axvline(retention_days, color="#555555", linewidth=1, linestyle="--")
    left.set_xlabel(f"days since the newest checkpoint (the last bar: {OLDEST_SHOWN} and more)")
    left.set_ylabel("threads")
    left.set_title("Age of threads before the sweep; red: beyond the retention", fontsize=10)
    shown = sorted(largest, reverse=True)[:10][::-1]
    names = [name.decode("utf-8", "backslashreplace")[:SHOWN_LETTERS] for _, name in shown]
    right.barh(range(len(shown)), [keys for keys, _ in shown], color="#7f8c8d", tick_label=names)
    for label in right.get_yticklabels():
        # Ids may hold dollars, and are no formulas.
        label.set_parse_math(False)
    right.set_xlabel("keys")
    right.set_title("Largest threads", fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return content.getvalue()
