"""The Dagster layer of the analysis lab: worker, recovery, pipelines and maintenance."""
