"""What the Celery app of workers and the launcher that sends to it must agree on.

What belongs here: Celery's own settings. What does not: Dagster's, which are in deploy/distributed/dagster.yaml.
"""

from __future__ import annotations

from typing import Any

QUEUE = "dagster"
"""The queue of the tasks of dagster_celery; a run with another `dagster-celery/queue` tag goes to that one."""
CELERY: dict[str, Any] = {
    # What waits stays in the broker, where any worker finds it, instead of with one that may die.
    "worker_prefetch_multiplier": 1,
    # A process per run, as without Celery: whatever a run leaves in memory ends with it. It is a fork of a process that
    # has the definitions loaded already, so that it starts sooner than a new one.
    "worker_max_tasks_per_child": 1,
    # A message counts as delivered when its run begins: a run is never begun a second time. One whose worker dies is
    # reported by the launcher, and made again by the jobs, which look at what is done.
    "task_acks_late": False,
    "broker_connection_retry_on_startup": True,
    # What runs print goes to the terminal as it is, as without Celery.
    "worker_redirect_stdouts": False,
    # Told to end at once (SIGQUIT), a worker gives its runs so long to end by themselves, then it interrupts them.
    "worker_soft_shutdown_timeout": 5.0,
}
