"""What jobs have in common that look before they act: ticks that launch only what is due, and checks told by runs.

What belongs here: these two shapes. What does not: what a job looks at.
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
