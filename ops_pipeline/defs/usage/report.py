"""The asset `usage_report`: one page and one picture per day for whoever reads the numbers.

What belongs here: translation between a Dagster run and `usage.report`.
"""

import base64
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from dagster import (
    AssetDep,
    AssetExecutionContext,
    AssetMaterialization,
    AssetsDefinition,
    BackfillPolicy,
    Config,
    Failure,
    MetadataValue,
    TimeWindowPartitionMapping,
    asset,
)
from pydantic import Field
from sqlalchemy import Engine

from ops_pipeline.database.errors import DatabaseProblem, Unreachable
from ops_pipeline.defs.metadata import OWNERS, table
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.defs.usage.partitions import UsagePartitions, date_of
from ops_pipeline.defs.usage.rollups import DAILY
from ops_pipeline.reconcile import counted
from ops_pipeline.settings import Settings
from ops_pipeline.usage.rollups import day_revision, mark_reported

REPORT = "usage_report"
DESCRIPTION = """\
Calls, credits and tokens over the day and the last 30 days, top models and apps, success rate, latency percentiles and
growth, as a web page and a picture. Recent days are renewed by themselves when their numbers change.
"""


class ReportConfig(Config):
    """What one run may do."""

    dry_run: bool = Field(default=False, description="Make the reports and throw them away; write nothing.")


def report_asset(settings: Settings, partitions: UsagePartitions) -> AssetsDefinition:
    """Build the asset for a deployment's settings."""

    @asset(
        name=REPORT,
        deps=[
            AssetDep(DAILY, partition_mapping=TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True))
        ],
        partitions_def=partitions.days,
        backfill_policy=BackfillPolicy.single_run(),
        output_required=False,
        group_name="usage",
        kinds={"pandas", "matplotlib"},
        owners=OWNERS,
        description=DESCRIPTION,
    )
    def usage_report(
        context: AssetExecutionContext, config: ReportConfig, database: OperationsDatabase
    ) -> Iterator[AssetMaterialization]:
        folder = settings.reports_folder()
        failures: list[tuple[str, str]] = []
        for key in context.partition_keys:
            try:
                if config.dry_run:
                    context.log.info(_tried(database.engine, date_of(key), folder))
                else:
                    yield _report(database.engine, date_of(key), folder)
            except Unreachable:
                raise
            except (DatabaseProblem, ValueError, OSError) as error:
                failures.append((key, str(error)))
        if failures:
            raise Failure(
                f"{counted(len(failures), 'report')} failed, the others are there. {failures[0][0]}: {failures[0][1]}",
                metadata={"failed_days": table(("day", "why"), failures, empty="")},
                allow_retries=False,
            )

    return usage_report


def _tried(engine: Engine, day: date, folder: Path) -> str:
    """Make a report in a folder that goes at once; says what would have been written."""
    from ops_pipeline.usage.report import build_report, write_report  # noqa: PLC0415 - see below

    with tempfile.TemporaryDirectory() as scratch:
        files = write_report(build_report(engine, day), Path(scratch))
        size = files.png.stat().st_size + files.html.stat().st_size
    return f"Dry run: the report of {day} would be written to {folder}, {size} bytes."


def _report(engine: Engine, day: date, folder: Path) -> AssetMaterialization:
    # pandas and matplotlib take over a second to import, which no other run has to pay.
    from ops_pipeline.usage.report import build_report, write_report  # noqa: PLC0415

    revision = day_revision(engine, day)
    report = build_report(engine, day)
    files = write_report(report, folder)
    if revision is not None:
        mark_reported(engine, day, revision)
    picture = base64.b64encode(files.png.read_bytes()).decode()
    return AssetMaterialization(
        REPORT,
        partition=day.isoformat(),
        metadata={
            "report": MetadataValue.md(f"![Usage on {day}](data:image/png;base64,{picture})"),
            "page": MetadataValue.path(files.html),
            "picture": MetadataValue.path(files.png),
            "picture_bytes": files.png.stat().st_size,
        },
    )
