"""Alerts and the messages about them, as rows.

What belongs here: applying a plan, and the outbox: a message is written in the transaction that decides on it, and
sent afterwards, so that none is lost with the process that would have sent it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select, true, update

from ops_pipeline.operations.alerts.channels import Message
from ops_pipeline.operations.alerts.plan import AlertPlan, OpenAlert, What, batch_of, next_attempt
from ops_pipeline.operations.alerts.policy import AlertPolicy
from ops_pipeline.operations.tables import alert_messages, alerts

MOST_ATTEMPTS = 12
"""The last of them some five hours after the first."""


@dataclass(frozen=True)
class DueMessage:
    """A message that may be sent now."""

    id: int
    channel: str
    attempts: int
    message: Message


def read_open(connection: Connection) -> list[OpenAlert]:
    """Every alert that has not ended."""
    rows = connection.execute(
        select(alerts.c.id, alerts.c.cause, alerts.c.told_at, alerts.c.last_seen_at).where(
            alerts.c.resolved_at.is_(None)
        )
    )
    return [OpenAlert(row.id, row.cause, row.told_at, row.last_seen_at) for row in rows]


def apply_plan(connection: Connection, plan: AlertPlan, policy: AlertPolicy, now: datetime) -> None:
    """Write what was decided, and the messages about it."""
    for cause in plan.opened:
        values = {
            "cause": cause.key,
            "severity": cause.severity,
            "title": cause.title,
            "detail": cause.detail,
            "run_id": cause.run_id,
            "opened_at": now,
            "told_at": now,
            "last_seen_at": now,
        }
        new = connection.execute(insert(alerts).values(**values).returning(alerts.c.id)).scalar_one()
        _write(connection, [new], "opened", policy, now)
    for alert, cause in plan.seen:
        words = {"title": cause.title, "detail": cause.detail, "run_id": cause.run_id, "severity": cause.severity}
        connection.execute(update(alerts).where(alerts.c.id == alert.id).values(last_seen_at=now, **words))
    reminded = [alert.id for alert in plan.reminded]
    if reminded:
        connection.execute(
            update(alerts).where(alerts.c.id.in_(reminded)).values(told_at=now, reminders=alerts.c.reminders + 1)
        )
        _write(connection, reminded, "reminder", policy, now)
    resolved = [alert.id for alert in plan.resolved]
    if resolved:
        connection.execute(update(alerts).where(alerts.c.id.in_(resolved)).values(resolved_at=now))
        _write(connection, resolved, "resolved", policy, now)


def _write(connection: Connection, ids: Sequence[int], what: What, policy: AlertPolicy, now: datetime) -> None:
    affected = connection.execute(select(alerts.c.id, alerts.c.cause).where(alerts.c.id.in_(ids))).all()
    rows: list[dict[str, Any]] = [
        {"alert_id": row.id, "channel": channel, "what": what, "due_at": now, "created_at": now}
        for row in affected
        for channel in policy.channels_of(row.cause)
    ]
    if rows:
        connection.execute(insert(alert_messages), rows)


def due_messages(connection: Connection, policy: AlertPolicy, now: datetime) -> list[list[DueMessage]]:
    """What may be sent now; each inner list is one message, of several when they go as a digest.

    Those for channels that are not configured any more are given up.
    """
    names = [channel.name for channel in policy.channels]
    message = alert_messages.c
    gone = update(alert_messages).where(message.sent_at.is_(None), message.gave_up_at.is_(None))
    gone = gone.where(message.channel.not_in(names) if names else true())
    connection.execute(gone.values(gave_up_at=now, error="its channel is not configured any more"))
    batches: list[list[DueMessage]] = []
    for name in names:
        due = _due(connection, name, policy, now)
        sent = select(func.count()).where(message.channel == name, message.sent_at > now - timedelta(hours=1))
        count, as_one = batch_of(len(due), connection.execute(sent).scalar_one(), policy.most_per_hour)
        going = due[:count]
        batches += [going] if as_one and going else [[one] for one in going]
    return batches


def _due(connection: Connection, channel: str, policy: AlertPolicy, now: datetime) -> list[DueMessage]:
    message = alert_messages.c
    query = (
        select(message.id, message.channel, message.what, message.attempts, alerts)
        .join_from(alert_messages, alerts, message.alert_id == alerts.c.id)
        .where(message.channel == channel, message.sent_at.is_(None), message.gave_up_at.is_(None))
        .where(message.due_at <= now)
        .order_by(message.id)
    )
    return [DueMessage(row.id, row.channel, row.attempts, _message(row, policy)) for row in connection.execute(query)]


def _message(row: Any, policy: AlertPolicy) -> Message:
    url = f"{policy.ui_url}/runs/{row.run_id}" if policy.ui_url and row.run_id else policy.ui_url
    title = f"{row.title} (over)" if row.what == "resolved" else row.title
    return Message(row.what, title, row.detail, row.severity, row.cause, url, f"{row.opened_at:%Y-%m-%d %H:%M} UTC")


def digest(messages: Sequence[DueMessage], policy: AlertPolicy) -> Message:
    """Several messages as one."""
    if len(messages) == 1:
        return messages[0].message
    lines = [f"{one.message.subject}: {one.message.text}" for one in messages]
    title = f"{len(messages)} alerts"
    return Message("digest", title, "\n".join(lines), "error", "digest", policy.ui_url)


def mark_sent(connection: Connection, ids: Iterable[int], now: datetime) -> None:
    """These got through."""
    connection.execute(update(alert_messages).where(alert_messages.c.id.in_(list(ids))).values(sent_at=now, error=""))


def mark_failed(connection: Connection, messages: Sequence[DueMessage], reason: str, now: datetime) -> None:
    """These did not: they are tried again later, and given up at last."""
    for one in messages:
        attempts = one.attempts + 1
        values: Mapping[str, Any] = {"attempts": attempts, "error": reason, "due_at": next_attempt(attempts, now)}
        if attempts >= MOST_ATTEMPTS:
            values = {**values, "gave_up_at": now}
        connection.execute(update(alert_messages).where(alert_messages.c.id == one.id).values(**values))
