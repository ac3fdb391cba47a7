"""The jobs that run the usage assets.

What belongs here: one job per asset, since their partitions differ; each may run once at a time.
"""

from dagster import AssetSelection, define_asset_job, in_process_executor
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from ops_pipeline.defs.runs import JOB_TAG


def usage_job(asset: str, what: str) -> UnresolvedAssetJobDefinition:
    """The job `<asset>_job`, also for `dagster job backfill` and launching by hand."""
    name = job_name(asset)
    return define_asset_job(
        name,
        selection=AssetSelection.assets(asset),
        tags={JOB_TAG: name},
        executor_def=in_process_executor,
        description=what,
    )


def job_name(asset: str) -> str:
    """The name of the job of an asset."""
    return f"{asset}_job"
