"""What jobs have in common that look before they act: ticks that launch what is due, and checks told by runs.

What belongs here: these shapes. What does not: what a job looks at.
"""

from collections.abc import Callable

from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetKey,
    DagsterInstance,
    OpExecutionContext,
    RunRequest,
    SkipReason,
)

from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.defs.runs import in_flight_text

DAEMON_SECONDS = 5
"""Dagster's daemon looks so often which sensors are due."""
TICK_SECONDS = 40.0
"""A tick's look at hosts takes so long at most: after a minute Dagster gives up a tick, and with it its run."""


def sensor_interval(seconds: int) -> int:
    """The minimum interval of a sensor that is to look at least every so many seconds, as far as the daemon can.

    The daemon looks every five seconds, and counts from the moment at which the last tick began, a little after such a
    look: a minimum interval of 10 s lets the third look be the first that is late enough, after 15 s. Two seconds less
    than a multiple of five makes it that multiple; nothing is shorter than five.
    """
    return max(DAEMON_SECONDS, seconds // DAEMON_SECONDS * DAEMON_SECONDS) - 2


def look_first(instance: DagsterInstance, job_name: str, look: Callable[[], str | None]) -> RunRequest | SkipReason:
    """A tick that looks, and launches a run only when something is due.

    Args:
        instance: tells whether a run of the job is queued or running, which is then left alone.
        job_name: of the job.
        look: why nothing is to be done, in words; None when a run is due.
    """
    busy = in_flight_text(instance, job_name)
    if busy:
        return SkipReason(busy)
    try:
        nothing_to_do = look()
    except DatabaseProblem:
        # Nobody watches skipped ticks: a run that fails on the same database is seen and alerted.
        return RunRequest()
    return SkipReason(nothing_to_do) if nothing_to_do else RunRequest()


def tell_check(context: OpExecutionContext, asset: str, name: str, result: AssetCheckResult) -> None:
    """Report the result of an asset's check from a job made of ops."""
    evaluation = AssetCheckEvaluation(
        asset_key=AssetKey(asset),
        check_name=name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )
    # Dagster takes evaluations here too, its annotation lags behind.
    context.log_event(evaluation)  # ty: ignore[invalid-argument-type]
