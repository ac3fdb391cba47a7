"""The commands `ops-pipeline pipelines …`: what they print, and what they refuse in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from ops_pipeline.cli import main
from ops_pipeline_tests.analysis.pipelines.lab import end, job_statuses, run_all, status, unfinished

FILE = """\
name: nightly
steps:
  - name: generation
    services: generation
    models: [gpt]
    templates: [chat, todo]
    critical: true
  - name: analysis
    services: [static-analyzer, ai-analyzer]
    applications_of: generation
"""


@pytest.fixture
def database(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The operations database, named in the environment."""
    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    return engine


def ran(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["pipelines", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["pipelines", *arguments])
    assert result.exit_code == 1, result.output
    return result.output


def submitted(folder: Path, *options: str) -> str:
    path = folder / "nightly.yaml"
    path.write_text(FILE)
    return ran("submit", str(path), *options).strip()


def test_a_pipeline_is_submitted_seen_and_steered(database: Engine, tmp_path: Path) -> None:
    pipeline = submitted(tmp_path)
    assert job_statuses(database, pipeline) == ["running", "running"]
    line = ran("list")
    assert line.split()[:5] == [pipeline, "running", "0%", "0/4", "jobs"]
    assert line.rstrip().endswith("nightly (generation)")
    assert ran("pause", pipeline) == f"{pipeline} is paused; 2 of its tasks are held until it is resumed.\n"
    assert " paused " in ran("list")
    assert ran("resume", pipeline) == f"{pipeline} goes on.\n"
    end(database, unfinished(database, pipeline)[:1], "failed", error_message="no such model")
    shown = ran("show", pipeline)
    assert "  generation               running          1 failed, 1 running  critical\n" in shown
    assert "  generation job 0: failed: no such model\n" in shown
    assert "generation running 2 jobs\n" in shown
    assert "is cancelled; 1 of its tasks were told" in ran("cancel", pipeline, "--reason", "wrong model")
    assert status(database, pipeline) == "cancelled"
    assert ran("list").rstrip().endswith("nightly (4 failed) (wrong model)")
    assert ran("retry", pipeline) == f"{pipeline} goes on: 4 jobs run again.\n"
    run_all(database, pipeline)
    assert "completed" in ran("list", "--status", "completed")
    assert ran("list", "--status", "failed") == ""


def test_json_for_programs(database: Engine, tmp_path: Path) -> None:
    pipeline = submitted(tmp_path)
    (line,) = json.loads(ran("list", "--format", "json"))
    assert (line["id"], line["status"], line["progress"]["total"]) == (pipeline, "running", 4)
    page = json.loads(ran("show", pipeline, "--format", "json"))
    assert [step["jobs"] for step in page["steps"]] == [{"running": 2}, {"waiting": 2}]


def test_a_key_of_ones_own_is_submitted_once_and_may_be_paused(database: Engine, tmp_path: Path) -> None:
    assert submitted(tmp_path, "--id", "nightly-10", "--paused") == "nightly-10"
    assert submitted(tmp_path, "--id", "nightly-10") == "nightly-10"
    assert status(database, "nightly-10") == "pending"


def test_mistakes_are_told_in_a_line_with_file_and_number(database: Engine, tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(FILE.replace("applications_of: generation", "applications_of: generatoin"))
    assert refused("submit", str(path)).strip() == (
        f"Error: {path}:10: steps.1.applications_of: generatoin is no earlier step"
    )
    for command in ("show", "pause", "resume", "cancel", "retry"):
        assert refused(command, "nobody").strip() == "Error: There is no pipeline nobody."
    pipeline = submitted(tmp_path)
    run_all(database, pipeline)
    assert refused("cancel", pipeline).strip() == f"Error: {pipeline} has ended: it is completed."


def test_a_database_that_cannot_be_used_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    assert "no such table" in refused("list") and "ops-pipeline migrate" in refused("list")
