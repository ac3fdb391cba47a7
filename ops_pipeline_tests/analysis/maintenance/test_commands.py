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


OLD = {"id": "t1", "service": "s", "target": "gpt/app1", "status": "failed", "completed_at": now() - 60 * DAY}


def archive_one(scene: Scene) -> str:
    folder = scene.results / "gpt" / "app1" / "task_t1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    scene.write(analysis_tasks, OLD)
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
    other = told("archive", "list", "--kind", "model_calls")
    assert (other.exit_code, other.output) == (
        0,
        f"There are no archives of the kind model_calls in {operator.archive}.\n",
    )
    archive_one(operator)
    misspelled = told("archive", "list", "--kind", "tasks").output
    assert "There are no archives of the kind tasks (there are analysis_tasks)" in misspelled


def test_a_name_that_is_none_is_refused(operator: Scene) -> None:
    missing = told("archive", "restore", "analysis_tasks/nothing")
    assert missing.exit_code == 1
    assert f"There is no archive analysis_tasks/nothing in {operator.archive}: `ops-pipeline" in missing.output
    for name in ("nothing", "", "../x", "x/..", "/x", "analysis_tasks/", "a/b/c"):
        refused = told("archive", "restore", name)
        assert (refused.exit_code, f"{name!r} is no name of an archive, KIND/ID" in refused.output) == (2, True)


def test_a_damaged_archive_is_told_and_restores_nothing(operator: Scene) -> None:
    name = archive_one(operator)
    path = operator.archive / name / "analysis_tasks.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    result = told("archive", "restore", name)
    assert (result.exit_code, "is damaged, its checksum is another one" in result.output) == (1, True)
    assert operator.rows(analysis_tasks) == []
    path.unlink()
    lost = told("archive", "restore", name)
    assert lost.exit_code == 1
    assert f"{path}: No such file or directory. Archives are looked for in {operator.archive}" in lost.output


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is damaged"), ('{"format": 1}', "is damaged"), ("[]", "has format None, this version reads 1")],
)
def test_a_damaged_manifest_hides_no_other_archive(operator: Scene, content: str, says: str) -> None:
    """One of them made the whole list fail."""
    damaged, whole = (archive_one(operator), archive_one(operator))
    (operator.archive / damaged / "manifest.json").write_text(content)
    listed = told("archive", "list")
    assert listed.exit_code == 1
    assert f"{damaged}/manifest.json {says}" in listed.output
    assert f"\n{whole}  " in f"\n{listed.output}"
    assert "1 archives cannot be read" in listed.output
    assert says in told("archive", "restore", damaged).output
    assert told("archive", "restore", whole).exit_code == 0


def test_an_object_store_without_credentials_is_told(operator: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library has errors of its own, which ended the command with a traceback and the pass without a report."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MAINTENANCE_ARCHIVE", "s3://bucket/archive")
    says = "Unable to locate credentials"
    listed = told("archive", "list")
    assert (listed.exit_code, listed.output) == (
        1,
        f"Error: {says}. Archives are looked for in s3://bucket/archive (MAINTENANCE_ARCHIVE).\n",
    )
    operator.write(analysis_tasks, OLD)
    report = archive_old_tasks(operator.lab(archive="s3://bucket/archive"), timedelta(days=30), operator.options())
    assert (report.status, report.error) == ("failed", says)
    assert len(operator.rows(analysis_tasks)) == 1


def test_a_missing_application_is_restored_within_its_grace(operator: Scene) -> None:
    operator.applications(20)
    operator.clean()
    operator.remove(3)
    operator.clean()
    result = told("restore", "app", "gpt/app3")
    assert (result.exit_code, result.output.startswith("gpt/app3 was missing since ")) == (0, True)
    (row,) = [row for row in operator.rows(generated_applications) if row["app_number"] == 3]
    assert (row["missing_since"], row["missing_looks"], row["missing_seen_at"]) == (None, 0, None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt/app1", "gpt/app1 is not marked as missing: there is nothing to take back."),
        ("gpt/app2", "There is no application gpt/app2. If maintenance has deleted it, it is in an archive"),
        ("nonsense", "'nonsense' names no application; write for example openai_gpt-4o/app1."),
        ("../x/app1", "'../x' is no model slug"),
    ],
)
def test_an_application_that_is_not_marked_not_there_or_none_is_told(operator: Scene, name: str, says: str) -> None:
    operator.application("gpt", 1)
    result = told("restore", "app", name)
    assert result.exit_code == 1
    assert says in result.output
