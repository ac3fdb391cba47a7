"""Instants that other programs wrote, in a form that Python can always take.

What belongs here: one expression. What does not: comparing instants (`expressions.instant_order`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, case, literal

from ops_pipeline.database.expressions import instant_order, readable_instant
from ops_pipeline.database.types import UtcDateTime

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


def known_instant(instant: ColumnElement[Any]) -> ColumnElement[datetime]:
    """The instant; 1970 for times before it, NULL from the year 9999 on and for text that is no time."""
    order = instant_order(instant)
    return case(
        (order < instant_order(EARLIEST), literal(EARLIEST, type_=UtcDateTime())),
        (order < instant_order(LATEST), readable_instant(instant)),
    )
