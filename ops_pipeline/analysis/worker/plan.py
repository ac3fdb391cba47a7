"""What a worker is told: how many tasks at once, where services are, and how patient it is.

What belongs here: the numbers, and where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ops_pipeline.analysis.client import Patience
from ops_pipeline.analysis.policy import Policy, policy_of
from ops_pipeline.settings import Settings

CLAIMED_AT_ONCE = 100


@dataclass(frozen=True)
class WorkerPlan:
    """The numbers of one worker, in seconds where they are times.

    Attributes:
        results: the folder of results.
        policy: of the queue.
        urls: of services that `analyzer_services` gives none.
        concurrency: tasks at once.
        linger: how long it waits for new work before it ends.
        lifetime: after so long it takes no more tasks, and ends with the last that it has.
        poll: the pause between two looks for work that no notification announced.
        watch: the pause between two looks for cancellations.
        health: for how long a health check counts.
        gateway: the URL of a progress gateway; empty for none.
        patience: with services.
    """

    results: Path
    policy: Policy = field(default_factory=Policy)
    urls: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 100
    linger: float = 30.0
    lifetime: float = 1800.0
    poll: float = 0.25
    watch: float = 2.0
    health: float = 15.0
    gateway: str = ""
    patience: Patience = field(default_factory=Patience)

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats: one may fail, and the next still comes in time for claims to go on."""
        return self.policy.lease.total_seconds() / 6

    def lifetime_with(self, longest: float) -> float:
        """The lifetime of a worker of whose tasks one may take so many seconds.

        A task whose own time-out is longer keeps its worker here anyway. Meanwhile it works on: were it replaced every
        half hour, workers that wait for their last task would take all places that Dagster has for runs.
        """
        return max(self.lifetime, longest) if longest > self.policy.task_timeout.total_seconds() else self.lifetime


def worker_plan(settings: Settings) -> WorkerPlan:
    """The plan of a deployment's workers."""
    return WorkerPlan(
        results=settings.results_folder(),
        policy=policy_of(settings),
        urls=settings.analyzer_urls,
        concurrency=settings.analysis_worker_concurrency,
        linger=settings.analysis_worker_linger_seconds,
        lifetime=settings.analysis_worker_lifetime_seconds,
        gateway=settings.analyzer_gateway_url,
    )
