"""One pass of alerting: compare, write, send.

What belongs here: the sequence. A channel that is broken costs its messages a later try, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.operations.alerts.causes import Cause
from ops_pipeline.operations.alerts.channels import Message, Undelivered, deliver
from ops_pipeline.operations.alerts.plan import plan_alerts
from ops_pipeline.operations.alerts.policy import AlertPolicy, Channel
from ops_pipeline.operations.alerts.store import (
    apply_plan,
    digest,
    due_messages,
    mark_failed,
    mark_sent,
    read_open,
)

Deliver = Callable[[Channel, Message], None]


@dataclass(frozen=True)
class Alerted:
    """What a pass did.

    Attributes:
        wrong: causes that are there.
        opened, reminded, resolved: alerts.
        sent: messages that got through, a digest counts once.
        failed: why others did not, a line each.
    """

    wrong: int
    opened: int
    reminded: int
    resolved: int
    sent: int
    failed: tuple[str, ...]


def alert(
    engine: Engine,
    causes: Mapping[str, Cause],
    policy: AlertPolicy,
    *,
    enough: Callable[[], bool],
    send: Deliver = deliver,
) -> Alerted:
    """Bring alerts in step with causes, and send what is due.

    Args:
        engine: the operations database.
        causes: everything that is wrong, by key.
        policy: who is told.
        enough: true when no more time is to be spent; what is left goes next time.
        send: delivers one message.
    """
    with writing(engine) as connection:
        now = database_now(connection)
        plan = plan_alerts(causes, read_open(connection), policy.remind_after, now)
        apply_plan(connection, plan, policy, now)
        batches = due_messages(connection, policy, now)
    channels = {channel.name: channel for channel in policy.channels}
    broken: dict[str, str] = {}
    sent = 0
    for batch in batches:
        if enough():
            break
        name = batch[0].channel
        reason = broken.get(name) or _try(send, channels[name], digest(batch, policy))
        with writing(engine) as connection:
            if reason:
                # Each of its messages would take ten more seconds to fail.
                broken[name] = reason
                mark_failed(connection, batch, reason, database_now(connection))
            else:
                mark_sent(connection, [one.id for one in batch], database_now(connection))
                sent += 1
    return Alerted(
        len(causes), len(plan.opened), len(plan.reminded), len(plan.resolved), sent, tuple(sorted(broken.values()))
    )


def _try(send: Deliver, channel: Channel, message: Message) -> str:
    try:
        send(channel, message)
    except Undelivered as error:
        return str(error)
    return ""


def send_test(policy: AlertPolicy, send: Deliver = deliver) -> list[tuple[Channel, str]]:
    """Send a test message to every channel; each with the reason why it failed, empty where it did not."""
    text = "This is a test. If you can read it, alerts of this deployment reach you here."
    message = Message("test", "Test of ops_pipeline", text, "warning", "test", policy.ui_url)
    return [(channel, _try(send, channel, message)) for channel in policy.channels]
