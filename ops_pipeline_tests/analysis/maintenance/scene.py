"""An analysis lab for tests of maintenance: applications on a disk, tasks in a database, and times that are given.

What belongs here: making rows and directories, and reading them back.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, delete, insert, select, text, update

from ops_pipeline.analysis.maintenance.applications import Policy
from ops_pipeline.analysis.maintenance.clean_applications import clean_orphan_applications
from ops_pipeline.analysis.maintenance.lab import Lab
from ops_pipeline.analysis.tables import generated_applications
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.passes import Options, Report
from ops_pipeline.reconcile import SafetyLimit

DAY, HOUR, MINUTE, SECOND = (timedelta(**{unit: 1}) for unit in ("days", "hours", "minutes", "seconds"))
WEEK = Policy(7 * DAY)
NO_LIMIT = SafetyLimit()


@dataclass
class Scene:
    """A lab with its folders in the test's own; ages are counted from now, by the database's clock nearly enough."""

    engine: Engine
    folder: Path
    lines: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The root of applications."""
        return self.folder / "apps"

    @property
    def results(self) -> Path:
        """The root of results."""
        return self.folder / "results"

    @property
    def archive(self) -> Path:
        """Where archives lie."""
        return self.folder / "archive"

    def lab(self, **changed: Any) -> Lab:
        """The lab."""
        places = {"applications": str(self.root), "results": self.results, "archive": str(self.archive)}
        return Lab(self.engine, **(places | changed))

    def options(self, **changed: Any) -> Options:
        """No limits, and the log is kept."""
        return Options(**({"told": self.lines.append, "limit": NO_LIMIT, "run_id": "run"} | changed))

    def application(self, slug: str = "gpt", number: int = 1, *, on_disk: bool = True, **fields: Any) -> str:
        """Write an application, with a directory unless told otherwise; returns its id."""
        if on_disk:
            (self.root / slug / f"app{number}").mkdir(parents=True, exist_ok=True)
        row = {"id": uuid.uuid4().hex, "model_slug": slug, "app_number": number, "version": 1} | fields
        self.write(generated_applications, row)
        return row["id"]

    def applications(self, count: int, slug: str = "gpt", *, on_disk: bool = True) -> None:
        """Many of them, from app1 on."""
        for number in range(1, count + 1):
            self.application(slug, number, on_disk=on_disk)

    def remove(self, number: int, slug: str = "gpt") -> None:
        """Remove a directory."""
        (self.root / slug / f"app{number}").rmdir()

    def clean(
        self, policy: Policy = WEEK, *, adopt_root: bool = False, lab: Lab | None = None, **options: Any
    ) -> Report:
        """Run the pass over applications."""
        return clean_orphan_applications(lab or self.lab(), policy, self.options(**options), adopt_root=adopt_root)

    def grow_older(self, by: timedelta) -> None:
        """Let every mark be older: as if so much time had passed since."""
        with writing(self.engine) as connection:
            for row in connection.execute(select(generated_applications)).mappings().all():
                moved = {name: row[name] - by for name in ("missing_since", "missing_seen_at") if row[name]}
                if moved:
                    mine = generated_applications.c.id == row["id"]
                    connection.execute(update(generated_applications).where(mine).values(moved))

    def marks(self) -> dict[str, tuple[bool, int]]:
        """Whether each application is marked, and how often it was seen missing."""
        return {
            f"{row['model_slug']}/app{row['app_number']}": (row["missing_since"] is not None, row["missing_looks"])
            for row in self.rows(generated_applications)
        }

    def write(self, table: Table, *rows: dict[str, Any]) -> None:
        """Insert rows, one by one: each may have other columns."""
        with writing(self.engine) as connection:
            for row in rows:
                connection.execute(insert(table), [row])

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Every row, by its key."""
        with reading(self.engine) as connection:
            order = list(table.primary_key.columns)
            return [dict(row) for row in connection.execute(select(table).order_by(*order)).mappings()]

    def execute(self, *statements: str) -> None:
        """Run statements as another program would."""
        with writing(self.engine) as connection:
            for statement in statements:
                connection.execute(text(statement))

    def empty(self, *tables: Table) -> None:
        """Delete all rows of tables."""
        with writing(self.engine) as connection:
            for table in tables:
                connection.execute(delete(table))


def changed(report: Report) -> list[tuple[str, str]]:
    """Object and action of each change of a report."""
    return [(change.key, change.action) for change in report.changes]


def now() -> datetime:
    """The present."""
    return datetime.now(UTC)


def names(paths: Sequence[Path], root: Path) -> list[str]:
    """Paths relative to a root, in order."""
    return sorted(str(path.relative_to(root)) for path in paths)
