"""What the passes of the analysis lab work on, and how a pass is run so that it tells whatever happens.

What belongs here: the deployment's places, and the translation of errors into a report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.archives.store import library_errors
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.leases import LeaseHeld
from ops_pipeline.passes import Report
from ops_pipeline.reconcile import PlanRefused, Unavailable


@dataclass(frozen=True)
class Lab:
    """Where the lab keeps what is maintained.

    Attributes:
        engine: the operations database.
        applications: the root of generated applications, a folder or a URL; empty when there is none.
        results: the folder of result directories.
        archive: where archives are written, a folder or a URL.
        look_seconds: how long a look at the root may take.
    """

    engine: Engine
    applications: str
    results: Path
    archive: str
    look_seconds: float = 60.0


def telling(name: str, work: Callable[[], Report]) -> Report:
    """Run a pass; what stops it becomes its report, so that no pass stops another one."""
    try:
        return replace(work(), name=name)
    except (Unavailable, PlanRefused, LeaseHeld, DatabaseProblem, OSError, ValueError, *library_errors()) as error:
        return Report(name, error=str(error))
    except SQLAlchemyError as error:
        return Report(name, error=str(error).partition("\n")[0])
