"""What Dagster knows of each job: its runs, and the ticks of what starts it.

What belongs here: reading facts for `operations/health`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from dagster import DagsterInstance, DagsterRunStatus, RepositoryDefinition, RunsFilter
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorState, TickStatus
from dagster._daemon.controller import get_daemon_statuses

from ops_pipeline.defs.runs import FINISHED, UNFINISHED
from ops_pipeline.operations.health import Automation, EndedRun, JobFacts

RUNS_LOOKED_AT = 20
"""Of which the success rate is made."""
ERROR_LETTERS = 300
SILENCE_SECONDS = 90.0
"""Beside the 30 s between two heartbeats; Dagster itself would wait for half an hour."""
HIDDEN = "__"
"""Dagster's own jobs, such as the one of assets launched in the UI, begin with it."""


def job_facts(instance: DagsterInstance, repository: RepositoryDefinition) -> list[JobFacts]:
    """The facts of every job, by name."""
    return [
        replace(facts, at_work=_at_work(instance, facts.name))
        for facts in failure_facts(instance, repository, lambda _: RUNS_LOOKED_AT)
    ]


def failure_facts(
    instance: DagsterInstance, repository: RepositoryDefinition, most_failures: Callable[[str], int]
) -> list[JobFacts]:
    """The same without what is at work, and of runs no more than it takes to see whether so many failed in a row."""
    automations = automations_by_job(instance, repository)
    names = sorted(name for name in repository.job_names if not name.startswith(HIDDEN))
    return [
        JobFacts(name, 0, _runs_in_question(instance, name, most_failures(name)), tuple(automations.get(name, ())))
        for name in names
    ]


def _runs_in_question(instance: DagsterInstance, job: str, most: int) -> tuple[EndedRun, ...]:
    runs = last_runs(instance, job, most)
    # So many failed in a row: more of them may have.
    return runs if most >= RUNS_LOOKED_AT or any(run.succeeded for run in runs) else last_runs(instance, job)


def _at_work(instance: DagsterInstance, job: str) -> int:
    return instance.get_runs_count(RunsFilter(job_name=job, statuses=UNFINISHED))


def last_runs(instance: DagsterInstance, job: str, most: int = RUNS_LOOKED_AT) -> tuple[EndedRun, ...]:
    """The last runs of a job that ended well or badly, newest first; those that a person ended are left out."""
    records = instance.get_run_records(RunsFilter(job_name=job, statuses=FINISHED), limit=most)
    return tuple(
        EndedRun(
            record.dagster_run.run_id,
            datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC),
            record.dagster_run.status == DagsterRunStatus.SUCCESS,
        )
        for record in records
    )


def automations_by_job(instance: DagsterInstance, repository: RepositoryDefinition) -> dict[str, list[Automation]]:
    """The schedules and sensors of each job."""
    states = {(state.instigator_type, state.name): state for state in instance.all_instigator_state()}
    found: dict[str, list[Automation]] = {}
    for schedule in repository.schedule_defs:
        cron = schedule.cron_schedule if isinstance(schedule.cron_schedule, str) else schedule.cron_schedule[0]
        on = schedule.default_status.value == "RUNNING"
        one = _automation(instance, schedule.name, states.get((InstigatorType.SCHEDULE, schedule.name)), on, cron=cron)
        found.setdefault(schedule.job_name, []).append(one)
    for sensor in repository.sensor_defs:
        on = sensor.default_status.value == "RUNNING"
        interval = float(sensor.minimum_interval_seconds or 30)
        one = _automation(
            instance, sensor.name, states.get((InstigatorType.SENSOR, sensor.name)), on, interval_seconds=interval
        )
        for target in sensor.targets or [None]:
            found.setdefault(target.job_name if target else "", []).append(one)
    return found


def _automation(
    instance: DagsterInstance,
    name: str,
    state: InstigatorState | None,
    on_by_default: bool,
    *,
    cron: str = "",
    interval_seconds: float = 0,
) -> Automation:
    if state is None:
        return Automation(name, cron, interval_seconds, on_by_default)
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=2)
    # One that is being evaluated tells nothing yet.
    ended = [tick for tick in ticks if tick.status != TickStatus.STARTED]
    last = datetime.fromtimestamp(ticks[0].timestamp, UTC) if ticks else None
    error = ended[0].error if ended and ended[0].status == TickStatus.FAILURE else None
    words = error.message.strip()[:ERROR_LETTERS] if error else ""
    return Automation(name, cron, interval_seconds, state.is_running, last, words)


def daemons(instance: DagsterInstance) -> Mapping[str, bool]:
    """Whether each part of Dagster's daemon that is needed has sent a heartbeat lately."""
    statuses = get_daemon_statuses(
        instance, instance.get_required_daemon_types(), ignore_errors=True, heartbeat_tolerance_seconds=SILENCE_SECONDS
    )
    return {name: bool(status.healthy) for name, status in statuses.items()}
