"""Schedules of one minute that tell who evaluated them: the whole code location of `benchmarks.leader`.

What belongs here: definitions only. Without run keys, so that nothing but the leader keeps a minute from coming twice.
"""

from dagster import (
    DefaultScheduleStatus,
    Definitions,
    OpExecutionContext,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    in_process_executor,
    job,
    op,
    schedule,
)

MINUTELY = "* * * * *"
LAUNCHES = "launches"
SKIPS = ("skips_1", "skips_2", "skips_3")


@op
def nothing(context: OpExecutionContext) -> None:
    """Be a run."""
    context.log.info("ran")


@job(executor_def=in_process_executor)
def minute() -> None:
    """One op that does nothing."""
    nothing()


@schedule(name=LAUNCHES, cron_schedule=MINUTELY, job=minute, default_status=DefaultScheduleStatus.RUNNING)
def launches(context: ScheduleEvaluationContext) -> RunRequest:
    """Launch a run."""
    return RunRequest(tags={"minute": f"{context.scheduled_execution_time:%H:%M}"})


def _skipping(name: str) -> ScheduleDefinition:
    @schedule(name=name, cron_schedule=MINUTELY, job=minute, default_status=DefaultScheduleStatus.RUNNING)
    def skips() -> SkipReason:
        return SkipReason("in sync")

    return skips


defs = Definitions(jobs=[minute], schedules=[launches, *(_skipping(name) for name in SKIPS)])
