"""The files of a result: written beside, then renamed into place as one folder, the manifest last.

    <results>/<model slug>/app<N>/task_<id>/
        <model slug>_app<N>_task_<id>.json   task, summary, services, tools, all findings
        services/<service>.json              the reply as it came
        sarif/<tool>.sarif.json              one document per tool that speaks SARIF
        manifest.json                        size and SHA-256 of each of them

What belongs here: files. What does not: the database (`storing`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ops_pipeline.analysis.findings import Findings
from ops_pipeline.analysis.protocol import Outcome
from ops_pipeline.analysis.states import Task
from ops_pipeline.analysis.targets import Target, task_folder

MANIFEST = "manifest.json"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True)
class Staged:
    """The files of a result that are written, but not yet in place.

    Attributes:
        folder: where they lie now.
        place: where they will lie.
        manifest_sha256: of the manifest, which has those of the files.
        size: of all of them, in bytes.
    """

    folder: Path
    place: Path
    manifest_sha256: str
    size: int


def place_of(root: Path, target: Target, task_id: str) -> Path:
    """The folder of a task's result."""
    return root.joinpath(*target.folders, task_folder(task_id))


@dataclass(frozen=True)
class Record:
    """A result that is to be stored: the reply, and what was read from it."""

    task: Task
    target: Target
    outcome: Outcome
    found: Findings
    summary: Mapping[str, Any]


def stage(root: Path, record: Record, now: datetime) -> Staged:
    """Write the files of a result where nobody looks for them yet.

    Raises:
        OSError: they cannot be written.
    """
    task, target = record.task, record.target
    place = place_of(root, target, task.id)
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place, task.attempt)
    folder = place.parent / f".{place.name}.{task.attempt}.{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        written = dict(_write(folder, name, content) for name, content in _contents(record))
        manifest = {
            "task_id": task.id,
            "model_slug": target.model_slug,
            "app_number": target.app_number,
            "service": task.service,
            "attempt": task.attempt,
            "created_at": now.isoformat(),
            "files": [{"path": name, **facts} for name, facts in written.items()],
        }
        _, facts = _write(folder, MANIFEST, manifest)
        _settle(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    size = facts["size_bytes"] + sum(one["size_bytes"] for one in written.values())
    return Staged(folder, place, facts["sha256"], size)


def _contents(record: Record) -> Iterable[tuple[str, Any]]:
    task, target = record.task, record.target
    service = _file_name(task.service)
    yield f"services/{service}.json", record.outcome.reply
    by_tool: dict[str, list[Any]] = {}
    for run in record.found.runs:
        name = str(((run.get("tool") or {}).get("driver") or {}).get("name") or "unknown")
        by_tool.setdefault(_file_name(name.lower()), []).append(run)
    for tool, runs in by_tool.items():
        yield f"sarif/{tool}.sarif.json", {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": runs}
    name = "_".join((*target.folders, f"{task_folder(task.id)}.json"))
    yield (
        name,
        {
            "task": {"id": task.id, "service": task.service, "target": task.target, "attempt": task.attempt},
            **record.summary,
            "findings": [asdict(finding) for finding in record.found.findings],
        },
    )


def _write(folder: Path, name: str, content: Any) -> tuple[str, dict[str, Any]]:
    """Write one file down to the disk; its name, size and checksum."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    # ASCII: a reply may hold halves of characters, which no encoding has.
    data = json.dumps(content, ensure_ascii=True, indent=1).encode()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return name, {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _settle(folder: Path) -> None:
    """Write the names in a folder down to the disk, and in those within."""
    for one in (*(path for path in folder.iterdir() if path.is_dir()), folder):
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(place: Path, attempt: int) -> None:
    """Remove what earlier attempts of the task left behind when their workers died."""
    for left in place.parent.glob(f".{place.name}.*"):
        number = left.name.removeprefix(f".{place.name}.").partition(".")[0]
        if number == "old" or (number.isdigit() and int(number) < attempt):
            shutil.rmtree(left, ignore_errors=True)


def publish(staged: Staged) -> None:
    """Put the files in place, instead of those of an earlier attempt; only for whoever holds the task's row.

    Raises:
        OSError: they cannot be moved.
    """
    if not staged.folder.exists() and not flaws_of(staged.place, staged.manifest_sha256):
        # Already there: the transaction of the first time was not committed.
        return
    aside = staged.place.parent / f".{staged.place.name}.old.{uuid.uuid4().hex[:12]}"
    replaced = staged.place.exists()
    if replaced:
        staged.place.rename(aside)
    staged.folder.rename(staged.place)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def discard(staged: Staged) -> None:
    """Remove the files of a result that is not wanted any more."""
    shutil.rmtree(staged.folder, ignore_errors=True)


def flaws_of(folder: Path, manifest_sha256: str = "") -> list[str]:
    """What is wrong with the files of a result, in words; empty when they are whole.

    Args:
        folder: of the result.
        manifest_sha256: of the manifest, as the database has it; empty when it is not known.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = json.loads(data)
        files = {str(one["path"]): str(one["sha256"]) for one in manifest["files"]}
    except FileNotFoundError:
        return [f"{folder / MANIFEST} is missing: the result was not written to its end, or was removed"]
    except (ValueError, KeyError, TypeError):
        return [f"{folder / MANIFEST} is torn"]
    if manifest_sha256 and hashlib.sha256(data).hexdigest() != manifest_sha256:
        return [f"{folder / MANIFEST} is not the one that the database knows: the files are of another attempt"]
    return [flaw for name, checksum in files.items() for flaw in _flaws_of_file(folder, name, checksum)]


def _flaws_of_file(folder: Path, name: str, checksum: str) -> Iterable[str]:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        yield f"{folder / MANIFEST} names {name}, which lies elsewhere"
    elif not path.is_file():
        yield f"{path} is missing"
    elif hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
        yield f"{path} was changed, or is torn"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80] or "unnamed"
