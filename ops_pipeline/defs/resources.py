"""Resources: plain clients for the domains.

What belongs here: opening and closing of what runs, schedules and sensors need.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

from dagster import ConfigurableResource, DagsterType, In, InitResourceContext, Out
from pydantic import Field, PrivateAttr
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect
from ops_pipeline.database.locks import exclusive
from ops_pipeline.defs.runs import JOB_TAG
from ops_pipeline.settings import operations_url

IN_MEMORY = "in_memory"


@dataclass(frozen=True)
class Handed:
    """What one op of a job hands to the next, under a name that a person understands beside the line between them.

    Nothing of it is kept on disk, since all of a run is one process.

    Attributes:
        out: for the op that makes it.
        into: for the op that takes it.
    """

    out: Out
    into: In


def handed(name: str, description: str) -> Handed:
    """Name what is handed on; what it is in Python, the types of both ops say."""
    kind = DagsterType(name=name, description=description, type_check_fn=lambda _context, _value: True)
    return Handed(Out(kind, io_manager_key=IN_MEMORY), In(kind))


FAILURES = handed("failures", "What failed, in words. Everything else was done; the run fails for these.")
"""From the op that acts to the one that judges."""


LONGEST_WAIT_SECONDS = 600.0
"""Longer than any job with a schedule takes; what waited finds nothing left to do."""


def job_of(context: InitResourceContext) -> str | None:
    """The job whose lock a run takes; None for ticks, for assets launched in the UI, and for workers in slots.

    Assets have locks of their own in their transactions, and several workers share the queue by design: the tags of
    both name no job, or another one.
    """
    run = context.run
    return run.job_name if run is not None and run.tags.get(JOB_TAG) == run.job_name else None


@lru_cache(maxsize=4)
def _engine(url: str) -> Engine:
    """The engine of a URL, kept for the SQL that it has compiled: ticks are many, and send the same.

    Its connections are not kept: whoever has used it disposes of them, and others go on with theirs.
    """
    return connect(url)


class OperationsDatabase(ConfigurableResource):
    """The operations database, from DATABASE_URL or embedded in the Dagster home."""

    url: str | None = Field(
        default=None,
        description="Leave empty: the URL then comes from DATABASE_URL and is shown nowhere. Set by tests.",
    )
    _engine: Engine | None = PrivateAttr(default=None)
    _held: ExitStack | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Make the engine, and take the lock of the run's job.

        Raises:
            Held: another deployment has run the same job all the while.
        """
        self._engine = _engine(self.url or operations_url())
        job = job_of(context)
        if job is not None:
            # Dagster's limits hold within one deployment; two that share this database know nothing of each other.
            log = context.log
            self._held = ExitStack()
            self._held.enter_context(
                exclusive(
                    self._engine,
                    job,
                    wait_seconds=LONGEST_WAIT_SECONDS,
                    waiting=lambda words: log.info(words) if log else None,
                )
            )

    def teardown_after_execution(self, context: InitResourceContext) -> None:
        """Give the lock back, and close all connections."""
        if self._held is not None:
            self._held.close()
            self._held = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine of this run or tick."""
        if self._engine is None:
            self._engine = _engine(self.url or operations_url())
        return self._engine
