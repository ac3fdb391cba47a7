"""What the rows of a pipeline say: its status, its progress, and what is to be done next.

What belongs here: pure functions of rows and `now`. What does not: reading or writing rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ops_pipeline.analysis.tables import CANCELLED, COMPLETED, FAILED, PARTIAL_SUCCESS, PENDING, RUNNING, TERMINAL

WAITING, SKIPPED = "waiting", "skipped"
"""Of jobs only: not submitted yet, and never to be submitted since there is nothing to run on."""
SUCCEEDED = (COMPLETED, PARTIAL_SUCCESS)
JOB_STATUSES = (WAITING, RUNNING, *TERMINAL, SKIPPED)


@dataclass(frozen=True)
class Step:
    """A row of `pipeline_steps`, and how many of its jobs have each status."""

    position: int
    name: str
    status: str = PENDING
    critical: bool = False
    concurrency: int = 3
    jobs: Mapping[str, int] = field(default_factory=dict)

    def count(self, *statuses: str) -> int:
        """How many jobs have one of these statuses."""
        return sum(self.jobs.get(status, 0) for status in statuses)

    @property
    def total(self) -> int:
        """How many jobs the step has."""
        return self.count(*JOB_STATUSES)


@dataclass(frozen=True)
class Pipeline:
    """A row of `pipelines`, with its steps in order.

    Attributes:
        id: its key.
        status: as it stands in the row.
        paused: nothing new is started.
        stop_as: it was told to stop, and ends with this status; '' while it was not.
        deadline_at: when it is stopped as failed.
        steps: in order; none while its definition was not looked at yet.
    """

    id: str
    status: str = PENDING
    paused: bool = False
    stop_as: str = ""
    deadline_at: datetime | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Lay:
    """Write the steps and jobs of the definition, and begin."""


@dataclass(frozen=True)
class Stop:
    """Stop the pipeline: submit nothing more, and end with this status when its running tasks have ended."""

    status: str
    reason: str


@dataclass(frozen=True)
class Withdraw:
    """End every waiting job as cancelled."""


@dataclass(frozen=True)
class StartStep:
    """Begin a step: find out what its jobs run on."""

    position: int


@dataclass(frozen=True)
class Submit:
    """Submit so many waiting jobs of a step as tasks, in the order of their index."""

    position: int
    jobs: int


@dataclass(frozen=True)
class EndStep:
    """End a step."""

    position: int
    status: str


@dataclass(frozen=True)
class End:
    """End the pipeline."""

    status: str
    reason: str


Action = Lay | Stop | Withdraw | StartStep | Submit | EndStep | End


def next_action(pipeline: Pipeline, now: datetime) -> Action | None:
    """What is to be done next; None when there is nothing but to wait.

    Every action changes the rows so that it is not asked for again: done one after the other, they come to an end.
    """
    if pipeline.status in TERMINAL:
        return None
    if not pipeline.stop_as and pipeline.deadline_at is not None and now >= pipeline.deadline_at:
        return Stop(FAILED, f"its deadline passed at {pipeline.deadline_at:%Y-%m-%d %H:%M:%S} UTC")
    if pipeline.stop_as:
        return _stopping(pipeline)
    if not pipeline.steps:
        return None if pipeline.paused else Lay()
    return _going_on(pipeline)


def _stopping(pipeline: Pipeline) -> Action | None:
    if any(step.count(WAITING) for step in pipeline.steps):
        return Withdraw()
    for step in pipeline.steps:
        if step.count(RUNNING):
            return None
        if step.status not in TERMINAL:
            return EndStep(step.position, CANCELLED if step.status == PENDING else step_result(step))
    return End(pipeline.stop_as, "")


def _going_on(pipeline: Pipeline) -> Action | None:
    broken = broken_step(pipeline.steps)
    step = next((step for step in pipeline.steps if step.status not in TERMINAL), None)
    if broken is not None and step is not None:
        # Those behind it are never reached. None of them has begun, so none of their jobs is running.
        return Withdraw() if step.count(WAITING) else EndStep(step.position, CANCELLED)
    if step is None:
        return End(pipeline_result(pipeline.steps), _why(pipeline.steps))
    if step.status == PENDING:
        return None if pipeline.paused else StartStep(step.position)
    free = min(step.count(WAITING), step.concurrency - step.count(RUNNING))
    if free > 0 and not pipeline.paused:
        return Submit(step.position, free)
    return EndStep(step.position, step_result(step)) if not step.count(WAITING, RUNNING) else None


def broken_step(steps: Sequence[Step]) -> Step | None:
    """The critical step that ended without any success; None when there is none."""
    return next((step for step in steps if step.critical and step.status in {FAILED, CANCELLED}), None)


def step_result(step: Step) -> str:
    """The status of a step of whose jobs none is waiting or running.

    All of them succeeded: completed. Some did: partial_success. None did: failed, also when all were skipped or there
    were none; cancelled when that is what became of all that were not skipped.
    """
    if step.total and step.count(COMPLETED) == step.total:
        return COMPLETED
    if step.count(*SUCCEEDED):
        return PARTIAL_SUCCESS
    return CANCELLED if step.count(CANCELLED) and not step.count(FAILED) else FAILED


def pipeline_result(steps: Sequence[Step]) -> str:
    """The status of a pipeline whose steps have all ended.

    A critical step without success: failed. All steps completed: completed. Nothing succeeded anywhere: failed, or
    cancelled when all was. Anything else: partial_success.
    """
    if broken_step(steps) is not None:
        return FAILED
    if all(step.status == COMPLETED for step in steps):
        return COMPLETED
    if any(step.count(*SUCCEEDED) for step in steps):
        return PARTIAL_SUCCESS
    return CANCELLED if all(step.status == CANCELLED for step in steps) else FAILED


def status_of(pipeline: Pipeline) -> str:
    """The status that the rows of steps and jobs say, whatever stands in the row of the pipeline."""
    begun = any(step.status != PENDING for step in pipeline.steps)
    going = any(step.status not in TERMINAL or step.count(WAITING, RUNNING) for step in pipeline.steps)
    if pipeline.steps and not going:
        return pipeline.stop_as or pipeline_result(pipeline.steps)
    return RUNNING if begun else PENDING


def _why(steps: Sequence[Step]) -> str:
    broken = broken_step(steps)
    if broken is not None:
        return f"the critical step {broken.name} {'was' if broken.status == CANCELLED else 'has'} {broken.status}"
    return "" if any(step.count(*SUCCEEDED) for step in steps) else "no job of any step succeeded"


@dataclass(frozen=True)
class Progress:
    """How far a pipeline is.

    Attributes:
        total: jobs in all.
        ended: jobs that have ended, or were skipped.
        succeeded: those of them that succeeded, partially or wholly.
        failed: those of them that failed or were cancelled.
        skipped: those of them that had nothing to run on.
        running: jobs submitted as tasks that have not ended.
        share: how much is done, from 0 to 1; each step counts the same, however many jobs it has.
    """

    total: int
    ended: int
    succeeded: int
    failed: int
    skipped: int
    running: int
    share: float


def progress_of(steps: Sequence[Step]) -> Progress:
    """How far a pipeline is; a step without jobs is done when it has ended."""
    over = [step.count(*TERMINAL, SKIPPED) for step in steps]
    shares = [
        done / step.total if step.total else float(step.status in TERMINAL)
        for step, done in zip(steps, over, strict=True)
    ]
    return Progress(
        total=sum(step.total for step in steps),
        ended=sum(over),
        succeeded=sum(step.count(*SUCCEEDED) for step in steps),
        failed=sum(step.count(FAILED, CANCELLED) for step in steps),
        skipped=sum(step.count(SKIPPED) for step in steps),
        running=sum(step.count(RUNNING) for step in steps),
        share=sum(shares) / len(steps) if steps else 0.0,
    )
