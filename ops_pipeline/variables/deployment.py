"""The variables that say where the deployment keeps its data."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr


class DeploymentVariables(BaseModel):
    """Folders and the database."""

    dagster_home: Path = Field(default=Path(".dagster_home"), description="Dagster's folder; holds the embedded data.")
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="The operations database: postgresql+psycopg://… or sqlite:///…; empty for SQLite in DAGSTER_HOME.",
    )
    dagster_postgres_url: SecretStr = Field(
        default=SecretStr(""),
        description="Dagster's own storage, where that is PostgreSQL: postgresql+psycopg2://…; `make run` sets it.",
    )
    celery_broker_url: SecretStr = Field(
        default=SecretStr(""),
        description="The Redis through which runs reach Celery workers, when there are several machines: redis://…/1.",
    )
