"""The sensor that tells people what is wrong.

What belongs here: reading from Dagster what is wrong, for `operations/alerts`. It needs no run-failure sensor: it
looks at states, so that what happened while no daemon worked is told too.
"""

import time
from datetime import UTC, datetime

from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    DagsterInstance,
    DefaultSensorStatus,
    Definitions,
    RepositoryDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from ops_pipeline.database.locks import Held, exclusive
from ops_pipeline.defs.health import failure_facts
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.operations.alerts.causes import FailedCheck, causes_of
from ops_pipeline.operations.alerts.policy import AlertPolicy, read_policy
from ops_pipeline.operations.alerts.work import Alerted, alert
from ops_pipeline.reconcile import counted
from ops_pipeline.settings import Settings, SettingsError, secret_variable
from ops_pipeline.strict_yaml import FileRefused

NAME = "alerts_sensor"
BUDGET_SECONDS = 35.0
"""A tick may take 60 s, and the last message may take 10 s to fail."""
NOBODY = "No channel is configured: set ALERT_WEBHOOK_URL, ALERT_EMAIL_TO, ALERT_APPRISE_URL or ALERTS_FILE."


def alerts_defs(settings: Settings) -> Definitions:
    """Build the sensor.

    Raises:
        SettingsError: the file of routes cannot be used.
    """
    try:
        policy = read_policy(settings, secret_variable)
    except FileRefused as error:
        raise SettingsError(str(error)) from None

    @sensor(
        name=NAME,
        minimum_interval_seconds=30,
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells people what is wrong (failed jobs, ticks, checks; what is overdue), and when it is over.",
    )
    def sense(context: SensorEvaluationContext, database: OperationsDatabase) -> SkipReason:
        repository = context.repository_def
        if repository is None:
            raise TypeError("the sensor was evaluated without its definitions")
        return SkipReason(_tell(context.instance, repository, database, policy))

    return Definitions(sensors=[sense])


def _tell(
    instance: DagsterInstance, repository: RepositoryDefinition, database: OperationsDatabase, policy: AlertPolicy
) -> str:
    deadline = time.monotonic() + BUDGET_SECONDS
    jobs = failure_facts(instance, repository, policy.thresholds.of)
    checks = failed_checks(instance, repository)
    causes = causes_of(jobs, checks, policy.thresholds, datetime.now(UTC))
    try:
        with exclusive(database.engine, NAME, wait_seconds=0):
            done = alert(database.engine, causes, policy, enough=lambda: time.monotonic() > deadline)
    except Held:
        return "Another deployment on this database tells people just now."
    return _words(done) if policy.channels else f"{_words(done)} {NOBODY}"


def _words(done: Alerted) -> str:
    wrong = f"{counted(done.wrong, 'thing is', 'things are')} wrong" if done.wrong else "Nothing is wrong"
    changes = (
        f"{done.opened} new, {done.reminded} told again, {done.resolved} over; {counted(done.sent, 'message')} sent"
    )
    failed = f" Not delivered: {'; '.join(done.failed)}." if done.failed else ""
    return f"{wrong}: {changes}.{failed}"


def failed_checks(instance: DagsterInstance, repository: RepositoryDefinition) -> list[FailedCheck]:
    """Checks of assets whose last finished evaluation failed."""
    keys = list(repository.asset_graph.asset_check_keys)
    return [found for key in keys if (found := _failed(instance, key)) is not None]


def _failed(instance: DagsterInstance, key: AssetCheckKey) -> FailedCheck | None:
    finished = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=1, status=finished)
    for record in records:
        evaluation = record.event.asset_check_evaluation if record.event else None
        if evaluation is not None and not evaluation.passed:
            severe = evaluation.severity == AssetCheckSeverity.ERROR
            asset = key.asset_key.to_user_string()
            return FailedCheck(asset, key.name, severe, evaluation.description or "", record.run_id)
    return None
