"""Resources: plain clients for the domains.

What belongs here: opening and closing of what runs, schedules and sensors need.
"""

from dagster import ConfigurableResource, InitResourceContext, Out
from pydantic import Field, PrivateAttr
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect
from ops_pipeline.settings import load_settings

IN_MEMORY = "in_memory"
HANDED_ON = Out(io_manager_key=IN_MEMORY)
"""What one op of a job hands to the next: nothing of it is kept on disk, since all of a run is one process."""


class OperationsDatabase(ConfigurableResource):
    """The operations database, from DATABASE_URL or embedded in the Dagster home."""

    url: str | None = Field(
        default=None,
        description="Leave empty: the URL then comes from DATABASE_URL and is shown nowhere. Set by tests.",
    )
    _engine: Engine | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Make the engine; it connects when first used."""
        self._engine = connect(self.url or load_settings().operations_url())

    def teardown_after_execution(self, context: InitResourceContext) -> None:
        """Close its connections."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine of this run or tick."""
        if self._engine is None:
            self._engine = connect(self.url or load_settings().operations_url())
        return self._engine
