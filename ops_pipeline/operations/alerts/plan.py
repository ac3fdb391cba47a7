"""What is opened, told again and closed: causes against open alerts.

What belongs here: the decision, pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ops_pipeline.operations.alerts.causes import Cause

SETTLE = timedelta(minutes=2)
"""For so long a cause must be gone before it is told to be over: what comes and goes every minute is one alert."""
What = Literal["opened", "reminder", "resolved"]


@dataclass(frozen=True)
class OpenAlert:
    """An alert that has not ended.

    Attributes:
        id: its row.
        key: of its cause.
        told_at: when it was opened, or last told again.
        last_seen_at: when its cause was last there.
    """

    id: int
    key: str
    told_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True)
class AlertPlan:
    """What to do.

    Attributes:
        opened: causes that nobody knows of yet.
        seen: alerts whose cause is still there, with it.
        reminded: those among `seen` that are told again.
        resolved: alerts whose cause has been gone for long enough.
    """

    opened: tuple[Cause, ...]
    seen: tuple[tuple[OpenAlert, Cause], ...]
    reminded: tuple[OpenAlert, ...]
    resolved: tuple[OpenAlert, ...]


def plan_alerts(
    causes: Mapping[str, Cause], alerts: Sequence[OpenAlert], remind_after: timedelta, now: datetime
) -> AlertPlan:
    """Compare what is wrong with what has been told."""
    known = {alert.key for alert in alerts}
    seen = [(alert, causes[alert.key]) for alert in alerts if alert.key in causes]
    return AlertPlan(
        opened=tuple(cause for key, cause in sorted(causes.items()) if key not in known),
        seen=tuple(seen),
        reminded=tuple(alert for alert, _ in seen if now - alert.told_at >= remind_after),
        resolved=tuple(alert for alert in alerts if alert.key not in causes and now - alert.last_seen_at >= SETTLE),
    )


def next_attempt(attempts: int, now: datetime) -> datetime:
    """When a message that could not be delivered is tried again: after 30 s, 1, 2, 4 minutes, at most an hour."""
    return now + min(timedelta(seconds=30) * 2 ** min(attempts - 1, 10), timedelta(hours=1))


def batch_of(due: int, sent_last_hour: int, most_per_hour: int) -> tuple[int, bool]:
    """How many of the due messages of a channel may go now, and whether they go as one.

    A storm of alerts must not become a storm of messages: where more are due than may be sent, all go as one digest
    once a message may be sent at all.
    """
    free = max(0, most_per_hour - sent_last_hour)
    if free == 0:
        return 0, False
    # A quarter of the hour's messages is kept for what comes next.
    if due > max(1, free // 2):
        return due, True
    return due, False
