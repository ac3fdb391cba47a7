"""How long the queue waits, how often it tries again, and how much it does at once.

What belongs here: the numbers, and where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ops_pipeline.settings import Settings


@dataclass(frozen=True)
class Policy:
    """The numbers of the queue.

    Attributes:
        lease: for how long a worker has a task without a heartbeat.
        task_timeout: how long one attempt may take, unless the task says otherwise.
        preflight_retries: how often a task waits for its service to become available.
        preflight_wait: the first such wait; each further one is twice as long.
        transient_retries: how often a task that failed for its service comes back.
        transient_rest: how long after the failure.
        lost_leases: how often a task comes back from a worker that died.
        breaker_failures: after so many failures in a row a service is left alone.
        breaker_rest: for how long, before one task tries it again.
        per_service: tasks of one service at a time, unless `analyzer_services` says otherwise; None for any number.
        per_target: tasks of one target at a time; None for any number.
        created_grace: how long a writer may leave a task in `created`.
    """

    lease: timedelta = timedelta(seconds=60)
    task_timeout: timedelta = timedelta(seconds=1800)
    preflight_retries: int = 3
    preflight_wait: timedelta = timedelta(seconds=30)
    transient_retries: int = 3
    transient_rest: timedelta = timedelta(minutes=5)
    lost_leases: int = 3
    breaker_failures: int = 3
    breaker_rest: timedelta = timedelta(minutes=5)
    per_service: int | None = None
    per_target: int | None = None
    created_grace: timedelta = timedelta(minutes=15)


def policy_of(settings: Settings) -> Policy:
    """The policy of a deployment."""
    return Policy(
        lease=timedelta(seconds=settings.task_lease_seconds),
        task_timeout=timedelta(seconds=settings.task_timeout),
        preflight_retries=settings.preflight_max_retries,
        transient_retries=settings.transient_failure_max_retries,
        per_service=settings.tasks_per_service or None,
        per_target=settings.tasks_per_target or None,
    )
