"""Everything that Dagster knows of the analysis lab.

What belongs here: putting together what the modules beside this one define.
"""

from dagster import Definitions

from ops_pipeline.defs.analysis.pipelines import pipelines_defs
from ops_pipeline.defs.analysis.recovery import recovery_defs
from ops_pipeline.defs.analysis.worker import worker_defs
from ops_pipeline.settings import Settings


def analysis_defs(settings: Settings) -> Definitions:
    """Build the definitions of the analysis lab."""
    return Definitions.merge(pipelines_defs(settings), recovery_defs(settings), worker_defs(settings))
