"""Pages that tell people what to write and do: their code runs, and no variable is left unexplained."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, Definitions, mem_io_manager
from sqlalchemy import Engine, insert, select

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.defs.resources import IN_MEMORY, OperationsDatabase
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.settings import Settings

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "adding-a-job.md"
NAMES = ("ops_pipeline.keys", "ops_pipeline.keys.expiry", "ops_pipeline.defs.keys")
MOST_LINES = 60


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The two modules of the page, as if they lay where it says."""
    package = types.ModuleType(NAMES[0])
    modules = [types.ModuleType(name) for name in NAMES[1:]]
    for module in (package, *modules):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for module, code in zip(modules, blocks(), strict=True):
        exec(compile(code, module.__name__, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the page's own code
        package.__dict__.setdefault(module.__name__.rpartition(".")[2], module)
    yield modules[0], modules[1]


def run(domain: Any, defs: Any, engine: Engine, **config: Any) -> Any:
    with writing(engine) as connection:
        domain.metadata.create_all(connection)
        now = datetime.now(UTC)
        ends = {"old": now - timedelta(days=1), "new-1": now + timedelta(days=1), "new-2": now + timedelta(days=2)}
        rows = [{"id": key, "status": "active", "expires_at": end} for key, end in ends.items()]
        connection.execute(insert(domain.api_keys), rows)
    database = OperationsDatabase(url=engine.url.render_as_string(hide_password=False))
    common = Definitions(resources={"database": database, IN_MEMORY: mem_io_manager})
    job = Definitions.merge(common, defs.keys_defs).resolve_job_def(defs.JOB)
    with DagsterInstance.ephemeral() as instance:
        config = {"ops": {"expire_keys": {"config": config}}}
        return job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)


def statuses(domain: Any, engine: Engine) -> dict[str, str]:
    with reading(engine) as connection:
        return dict(connection.execute(select(domain.api_keys.c.id, domain.api_keys.c.status)).tuples().all())


def test_the_job_of_the_page_does_what_the_page_says(written: tuple[Any, Any], sqlite_engine: Engine) -> None:
    domain, defs = written
    assert run(domain, defs, sqlite_engine).success
    assert statuses(domain, sqlite_engine) == {"old": "expired", "new-1": "active", "new-2": "active"}
    with reading(sqlite_engine) as connection:
        row = connection.execute(select(job_outcomes)).one()
    assert (row.job, row.status, row.scanned, row.changed) == ("expire_api_keys", "success", 3, 1)


def test_the_job_of_the_page_can_be_watched_before_it_acts(written: tuple[Any, Any], sqlite_engine: Engine) -> None:
    domain, defs = written
    assert run(domain, defs, sqlite_engine, dry_run=True).success
    assert set(statuses(domain, sqlite_engine).values()) == {"active"}


def test_the_job_of_the_page_is_refused_when_it_would_take_too_much(
    written: tuple[Any, Any], sqlite_engine: Engine
) -> None:
    domain, defs = written
    assert not run(domain, defs, sqlite_engine, max_share=0.1).success
    assert set(statuses(domain, sqlite_engine).values()) == {"active"}


def test_the_job_of_the_page_is_as_short_as_it_says() -> None:
    code = [line for block in blocks() for line in block.splitlines() if line.strip()]
    assert len(code) < MOST_LINES


def test_every_variable_is_explained_in_some_page() -> None:
    """Operators found variables in `.env.example` whose effect no page told."""
    pages = "\n".join(page.read_text() for page in [PROJECT / "README.md", *PROJECT.glob("docs/*.md")])
    assert [name for name in map(str.upper, Settings.model_fields) if f"`{name}" not in pages] == []


def test_every_link_of_a_page_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [PROJECT / "README.md", *PROJECT.glob("docs/*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_picture_is_there_shown_and_small() -> None:
    pages = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
    shown = {
        (page.parent / name).resolve()
        for page in pages
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    there = {file.resolve() for file in (PROJECT / "docs" / "images").iterdir()}
    assert {file for file in shown if file.parent.name == "images"} == there
    assert not [file.name for file in there if file.stat().st_size > 300_000]
