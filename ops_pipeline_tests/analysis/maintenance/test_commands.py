"""The commands by which an operator takes back what maintenance did."""

from __future__ import annotations

from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from ops_pipeline.analysis.maintenance.archive_tasks import archive_old_tasks
from ops_pipeline.analysis.tables import analysis_results, analysis_tasks, generated_applications
from ops_pipeline.cli import main
from ops_pipeline_tests.analysis.maintenance.scene import DAY, Scene, now


@pytest.fixture
def operator(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A lab whose places stand in the environment."""
    monkeypatch.setenv("DATABASE_URL", scene.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("MAINTENANCE_ARCHIVE", str(scene.archive))
    monkeypatch.setenv("ANALYSIS_RESULTS_DIR", str(scene.results))
    return scene


def told(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def archive_one(scene: Scene) -> str:
    folder = scene.results / "gpt" / "app1" / "task_t1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    task = {"id": "t1", "service": "s", "target": "gpt/app1", "status": "failed", "completed_at": now() - 60 * DAY}
    scene.write(analysis_tasks, task)
    scene.write(analysis_results, {"id": "r1", "task_id": "t1"})
    report = archive_old_tasks(scene.lab(), timedelta(days=30), scene.options())
    (name,) = report.facts["archives"]
    return name


def test_archives_are_listed_and_restored_by_name(operator: Scene) -> None:
    name = archive_one(operator)
    listed = told("archive", "list")
    assert listed.exit_code == 0
    assert listed.output.startswith(f"{name}  ")
    assert "1 analysis_tasks, 1 analysis_results, 1 files" in listed.output
    assert "deleted: tasks that ended more than 30 days ago" in listed.output
    restored = told("archive", "restore", name)
    assert (restored.exit_code, restored.output.splitlines()) == (
        0,
        [
            "analysis_tasks: 1 rows restored, 0 were there already.",
            "analysis_results: 1 rows restored, 0 were there already.",
            f"1 directories restored below {operator.results}.",
        ],
    )
    assert [row["id"] for row in operator.rows(analysis_tasks)] == ["t1"]
    assert (operator.results / "gpt" / "app1" / "task_t1" / "manifest.json").exists()
    assert "0 rows restored, 1 were there already" in told("archive", "restore", name).output


def test_without_archives_the_list_says_so(operator: Scene) -> None:
    assert told("archive", "list").output == f"There are no archives in {operator.archive}.\n"
    assert told("archive", "list", "--kind", "model_calls").exit_code == 0


def test_a_name_that_is_none_is_refused(operator: Scene) -> None:
    missing = told("archive", "restore", "analysis_tasks/nothing")
    assert (missing.exit_code, missing.output) == (
        1,
        f"Error: There is no archive analysis_tasks/nothing in {operator.archive}.\n",
    )
    assert told("archive", "restore", "nothing").exit_code == 2
    out = told("archive", "restore", "../x")
    assert (out.exit_code, "leads out of" in out.output) == (1, True)


def test_a_damaged_archive_is_told_and_restores_nothing(operator: Scene) -> None:
    name = archive_one(operator)
    path = operator.archive / name / "analysis_tasks.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    result = told("archive", "restore", name)
    assert (result.exit_code, "is damaged, its checksum is another one" in result.output) == (1, True)
    assert operator.rows(analysis_tasks) == []


def test_a_missing_application_is_restored_within_its_grace(operator: Scene) -> None:
    operator.applications(20)
    operator.clean()
    operator.remove(3)
    operator.clean()
    result = told("restore", "app", "gpt/app3")
    assert (result.exit_code, result.output.startswith("gpt/app3 was missing since ")) == (0, True)
    (row,) = [row for row in operator.rows(generated_applications) if row["app_number"] == 3]
    assert (row["missing_since"], row["missing_looks"], row["missing_seen_at"]) == (None, 0, None)


def test_an_application_that_is_not_marked_is_told(operator: Scene) -> None:
    operator.application("gpt", 1)
    result = told("restore", "app", "gpt/app1")
    assert result.exit_code == 1
    assert "No application gpt/app1 is marked as missing" in result.output
    assert "archive list --kind generated_applications" in result.output
