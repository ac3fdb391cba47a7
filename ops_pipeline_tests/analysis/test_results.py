"""Files of results: whole or not there, and never those of an attempt that does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ops_pipeline.analysis import results
from ops_pipeline.analysis.findings import findings_of
from ops_pipeline.analysis.protocol import Ending, Outcome
from ops_pipeline.analysis.results import Record, Staged, discard, flaws_of, place_of, publish, stage
from ops_pipeline.analysis.states import Task
from ops_pipeline.analysis.targets import Target
from ops_pipeline_tests.analysis.analyzers import FINDING, reply, sarif_run
from ops_pipeline_tests.usage.calls import at

TARGET = Target("openai/gpt-4o", 0)
NOON = at("2026-03-01 12:00")


def staged(root: Path, attempt: int = 1, **analysis: Any) -> Staged:
    whole = reply({"type": "static_analyze"})
    whole["analysis"] |= analysis
    task = Task("0123", attempt, "static-analyzer", "openai/gpt-4o/app0")
    found = findings_of(whole["analysis"])
    record = Record(task, TARGET, Outcome(Ending.COMPLETED, reply=whole), found, {"summary": {"total_findings": 1}})
    return stage(root, record, NOON)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_result_is_laid_out_as_readers_expect_it(tmp_path: Path) -> None:
    runs = [sarif_run("Ruff", [FINDING]), sarif_run("../evil tool", [FINDING]), sarif_run("ruff", [])]
    one = staged(tmp_path, sarif_export={"runs": runs})
    publish(one)
    folder = tmp_path / "openai_gpt-4o" / "app0" / "task_0123"
    assert one.place == folder == place_of(tmp_path, TARGET, "0123")
    assert names(folder) == {
        "openai_gpt-4o_app0_task_0123.json",
        "manifest.json",
        "services/static-analyzer.json",
        "sarif/ruff.sarif.json",
        "sarif/_evil_tool.sarif.json",
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["task_id"], manifest["model_slug"], manifest["app_number"]) == ("0123", "openai/gpt-4o", 0)
    assert {entry["path"] for entry in manifest["files"]} == names(folder) - {"manifest.json"}
    main = json.loads((folder / "openai_gpt-4o_app0_task_0123.json").read_text())
    assert len(main["findings"]) == 2
    assert len(json.loads((folder / "sarif/ruff.sarif.json").read_text())["runs"]) == 2
    assert one.size == sum((folder / name).stat().st_size for name in names(folder))


def test_before_it_is_published_nobody_sees_anything(tmp_path: Path) -> None:
    one = staged(tmp_path)
    assert not one.place.exists()
    assert one.folder.name.startswith(".task_0123.1.")
    discard(one)
    assert list(one.place.parent.iterdir()) == []


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written first, and told of files that a crash had never let come into being."""
    order: list[str] = []
    write = results._write

    def noted(folder: Path, name: str, content: Any) -> Any:
        order.append(name)
        return write(folder, name, content)

    monkeypatch.setattr(results, "_write", noted)
    staged(tmp_path)
    assert order[-1] == "manifest.json"


def test_what_cannot_be_written_to_its_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "_settle", full)
    with pytest.raises(OSError, match="No space left"):
        staged(tmp_path)
    assert list((tmp_path / "openai_gpt-4o" / "app0").iterdir()) == []


def test_a_later_attempt_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    first = staged(tmp_path, sarif_export={"runs": [sarif_run("old", [])]})
    publish(first)
    second = staged(tmp_path, attempt=2)
    publish(second)
    assert flaws_of(second.place, second.manifest_sha256) == []
    assert not (second.place / "sarif" / "old.sarif.json").exists()
    assert [path.name for path in second.place.parent.iterdir()] == ["task_0123"]
    assert "of another attempt" in flaws_of(second.place, first.manifest_sha256)[0]


def test_publishing_again_what_is_published_already_changes_nothing(tmp_path: Path) -> None:
    """The answer to the commit was lost, and the transaction is made once more."""
    one = staged(tmp_path)
    publish(one)
    publish(one)
    assert flaws_of(one.place, one.manifest_sha256) == []


def test_publishing_what_is_gone_is_an_error(tmp_path: Path) -> None:
    one = staged(tmp_path)
    discard(one)
    with pytest.raises(FileNotFoundError):
        publish(one)


def test_an_attempt_clears_away_what_earlier_ones_left_and_touches_no_other(tmp_path: Path) -> None:
    earlier, later = staged(tmp_path, attempt=1), staged(tmp_path, attempt=3)
    staged(tmp_path, attempt=2)
    assert not earlier.folder.exists()
    assert later.folder.exists()


def torn(folder: Path, name: str, content: bytes | None) -> list[str]:
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    return flaws_of(folder)


@pytest.mark.parametrize(
    ("name", "content", "flaw"),
    [
        ("manifest.json", None, "is missing"),
        ("manifest.json", b'{"files": [', "is torn"),
        ("manifest.json", b"[]", "is torn"),
        ("manifest.json", b'{"files": [{"path": "../../x", "sha256": ""}]}', "lies elsewhere"),
        ("services/static-analyzer.json", None, "is missing"),
        ("services/static-analyzer.json", b"{}", "was changed, or is torn"),
    ],
)
def test_results_that_are_not_whole_are_found(tmp_path: Path, name: str, content: bytes | None, flaw: str) -> None:
    one = staged(tmp_path)
    publish(one)
    (found,) = torn(one.place, name, content)
    assert flaw in found


def test_a_reply_with_halves_of_characters_is_written_all_the_same(tmp_path: Path) -> None:
    one = staged(tmp_path, note="\ud800\0")
    publish(one)
    assert json.loads((one.place / "services/static-analyzer.json").read_text())["analysis"]["note"] == "\ud800\0"
