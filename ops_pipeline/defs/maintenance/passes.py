"""The five passes as ops, one after the other; none waits for another one to succeed.

What belongs here: one op per pass, and what their reports become in the UI.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dagster import (
    AssetKey,
    AssetMaterialization,
    Failure,
    MetadataValue,
    OpDefinition,
    OpExecutionContext,
    op,
)

from ops_pipeline.analysis.maintenance.applications import Policy
from ops_pipeline.analysis.maintenance.archive_tasks import archive_old_tasks
from ops_pipeline.analysis.maintenance.clean_applications import clean_orphan_applications
from ops_pipeline.analysis.maintenance.end_tasks import cancel_orphan_tasks, end_stuck_tasks
from ops_pipeline.analysis.maintenance.lab import Lab
from ops_pipeline.analysis.maintenance.records import record_pass
from ops_pipeline.analysis.maintenance.tasks import TaskPolicy
from ops_pipeline.defs.maintenance.config import (
    ApplicationsConfig,
    OldCallsConfig,
    OldTasksConfig,
    OrphansConfig,
    PassConfig,
    StuckConfig,
    duration,
    options_of,
)
from ops_pipeline.defs.metadata import outcome_metadata, table
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.passes import PREFIX, Options, Report
from ops_pipeline.reconcile import changes_table, counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.pruning import PrunePolicy, prune_old_calls

ARCHIVES = "maintenance_archives"
PRIORITY = "dagster/priority"
"""No pass depends on another one, so that one that fails stops none; this alone puts them in order."""

OPS = {
    "orphan_applications": "clean_orphan_apps",
    "orphan_tasks": "cancel_orphans",
    "stuck_tasks": "end_stuck",
    "old_tasks": "archive_old",
    "old_model_calls": "prune_calls",
}
"""The op of each pass: what a person sees of it in the UI. Rows and metrics keep the names of passes."""

Work = Callable[[Options], Report]


def passes_of(settings: Settings) -> list[OpDefinition]:
    """The ops of all passes, in their order."""
    return [_applications(settings), _orphans(settings), _stuck(settings), _old_tasks(settings), _old_calls(settings)]


def _applications(settings: Settings) -> OpDefinition:
    @op(
        description="Marks applications whose directory is missing, and deletes them after their grace.",
        tags={PRIORITY: "50"},
    )
    def clean_orphan_apps(
        context: OpExecutionContext, config: ApplicationsConfig, database: OperationsDatabase
    ) -> None:
        def work(options: Options) -> Report:
            share = config.max_newly_missing_share
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"max_newly_missing_share: {share} does not lie above 0 and at most at 1")
            grace = duration(config.retention, "days", settings.orphan_app_retention_days)
            policy = Policy(grace, share or settings.orphan_app_max_newly_missing_share)
            return clean_orphan_applications(_lab(settings, database), policy, options, adopt_root=config.adopt_root)

        switch = "" if settings.cleanup_orphan_apps else "CLEANUP_ORPHAN_APPS is false."
        _run(context, settings, config, name="orphan_applications", switched_off=switch, database=database, work=work)

    return clean_orphan_apps


def _orphans(settings: Settings) -> OpDefinition:
    @op(description="Cancels tasks whose application is gone or was never made.", tags={PRIORITY: "40"})
    def cancel_orphans(context: OpExecutionContext, config: OrphansConfig, database: OperationsDatabase) -> None:
        def work(options: Options) -> Report:
            policy = TaskPolicy(grace=duration(config.grace, "minutes", settings.grace_period_minutes))
            return cancel_orphan_tasks(_lab(settings, database), policy, options)

        switch = "" if settings.cleanup_orphan_tasks else "CLEANUP_ORPHAN_TASKS is false."
        _run(context, settings, config, name="orphan_tasks", switched_off=switch, database=database, work=work)

    return cancel_orphans


def _stuck(settings: Settings) -> OpDefinition:
    @op(description="Ends tasks that nobody works on any more.", tags={PRIORITY: "30"})
    def end_stuck(context: OpExecutionContext, config: StuckConfig, database: OperationsDatabase) -> None:
        def work(options: Options) -> Report:
            policy = TaskPolicy(
                running=duration(config.running, "minutes", settings.stuck_task_timeout_minutes),
                pending=duration(config.pending, "minutes", settings.pending_task_timeout_minutes),
            )
            return end_stuck_tasks(_lab(settings, database), policy, options)

        switch = "" if settings.cleanup_stuck_tasks else "CLEANUP_STUCK_TASKS is false."
        _run(context, settings, config, name="stuck_tasks", switched_off=switch, database=database, work=work)

    return end_stuck


def _old_tasks(settings: Settings) -> OpDefinition:
    @op(description="Archives whole trees of tasks that ended long ago, then deletes them.", tags={PRIORITY: "20"})
    def archive_old(context: OpExecutionContext, config: OldTasksConfig, database: OperationsDatabase) -> None:
        def work(options: Options) -> Report:
            retention = duration(config.retention, "days", settings.task_retention_days)
            return archive_old_tasks(_lab(settings, database), retention, options)

        switch = "" if settings.cleanup_old_tasks else "CLEANUP_OLD_TASKS is false."
        _run(context, settings, config, name="old_tasks", switched_off=switch, database=database, work=work)

    return archive_old


def _old_calls(settings: Settings) -> OpDefinition:
    @op(
        description="Archives raw model calls by month and prunes them, as far as their roll-ups are true.",
        tags={PRIORITY: "10"},
    )
    def prune_calls(context: OpExecutionContext, config: OldCallsConfig, database: OperationsDatabase) -> None:
        def work(options: Options) -> Report:
            retention = duration(config.retention, "days", settings.model_call_retention_days)
            policy = PrunePolicy(settings.model_call_stats_start, retention, settings.model_calls_pruned_before)
            return prune_old_calls(database.engine, settings.archive_location(), policy, options)

        _run(context, settings, config, name="old_model_calls", switched_off="", database=database, work=work)

    return prune_calls


def _lab(settings: Settings, database: OperationsDatabase) -> Lab:
    return Lab(
        engine=database.engine,
        applications=settings.generated_apps_dir,
        results=settings.results_folder(),
        archive=settings.archive_location(),
        look_seconds=settings.maintenance_look_seconds,
    )


def _run(
    context: OpExecutionContext,
    settings: Settings,
    config: PassConfig,
    *,
    name: str,
    switched_off: str,
    database: OperationsDatabase,
    work: Work,
) -> None:
    """Run a pass, write down what it did, show it, and fail the op when the pass failed."""
    started = datetime.now(UTC)
    off = "enabled is false." if config.enabled is False else "" if config.enabled else switched_off
    try:
        report = Report(name, skipped=off) if off else work(options_of(config, settings, context))
    except ValueError as error:
        report = Report(name, error=str(error))
    if report.skipped:
        context.log.info(f"{PREFIX} {context.op.name} is off: {report.skipped}")
    if not config.dry_run:
        record_pass(database.engine, context.run_id, report, started)
    elif report.status == "success":
        left_alone = sum(report.kept.values())
        words = f"{report.planned} planned, {left_alone} left alone; see its plan"
        context.log.info(f"{PREFIX} {context.op.name}, dry run: {words}")
    metadata = _shown(report, dry_run=config.dry_run)
    if report.red:
        why = report.error or _failures(report, dry_run=config.dry_run)
        context.log.error(f"{PREFIX} {context.op.name}: {why}")
        raise Failure(why, metadata=metadata, allow_retries=False)
    context.add_output_metadata(metadata)
    for folder in report.facts.get("archives", ()):
        told = {"op": context.op.name, "folder": folder, "taken_back_with": f"ops-pipeline archive restore {folder}"}
        context.log_event(AssetMaterialization(AssetKey(ARCHIVES), description=folder, metadata=told))


def _failures(report: Report, *, dry_run: bool) -> str:
    first, others = report.changes[0], "nothing was written" if dry_run else "the others are done"
    return f"{counted(report.outcome.failed, 'object')} failed, {others}. {first.key}: {first.reason}"


def _shown(report: Report, *, dry_run: bool) -> dict[str, Any]:
    plan = changes_table(report.changes)
    more = report.planned - len(report.changes)
    if more > 0:
        plan += f"\n\n… and {more} more than are shown."
    status = report.skipped or report.status
    if dry_run and report.status == "success":
        status = "dry run: nothing was written"
    # The log of a run shows the first six entries of many: what a person decides by comes before all numbers.
    return {
        "status": status,
        "plan": MetadataValue.md(plan if report.changes else report.error or "Nothing to do."),
        "planned": report.planned,
        "left_alone": table(("why", "objects"), list(report.kept.items()), empty="None."),
        **outcome_metadata(report.outcome),
        "left_over": report.left,
        "backlog_seconds": report.backlog_seconds,
        **{name: _told(value) for name, value in report.facts.items()},
    }


def _told(value: Any) -> Any:
    """A fact as a person reads it: numbers as they are, names one below the other."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return value or "None."
    return MetadataValue.md("\n".join(f"- {one}" for one in value) or "None.")
