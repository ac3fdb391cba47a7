"""Labels by which somebody keeps a row longer: a legal hold, or a retention of its own.

What belongs here: reading them. A label that cannot be understood keeps the row: whoever wrote it meant something.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

HOLD = "legal_hold"
RETENTION = "retention_days"


def hold_of(labels: Any) -> str:
    """Why a row with these labels must stay, in words; empty when it need not.

    Args:
        labels: an object `{"legal_hold": true}`, or a list `["legal_hold"]`.
    """
    if isinstance(labels, dict):
        value = labels.get(HOLD)
        return "under legal hold" if value not in (None, False, 0, "", "false") else ""
    if isinstance(labels, list):
        return "under legal hold" if HOLD in labels else ""
    return "" if labels is None else "its labels cannot be read"


def retention_of(labels: Any) -> timedelta | None:
    """A retention of its own, in days; the longest of all that concern a row counts.

    A value that is no number of days counts as for ever.
    """
    value = labels.get(RETENTION) if isinstance(labels, dict) else None
    if value is None:
        return None
    try:
        days = float(value)
    except (TypeError, ValueError):
        return timedelta.max
    return timedelta(days=days) if 0 <= days <= 36_500 else timedelta.max


def json_or_text(text: str | None) -> Any:
    """The value of a JSON column from its text; the text itself where another program wrote none of JSON."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
