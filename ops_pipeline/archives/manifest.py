"""What stands beside an archive's files: the manifest, written last, and what its deletion left out.

An archive is a folder `<kind>/<id>` of Parquet files, tar files and `manifest.json`. Without a manifest it is none.
`deleted.json` follows once its rows are deleted, and names those that were left in the database after all.

What belongs here: these two documents. What does not: reading or writing rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from ops_pipeline.archives.store import Store, names_in, write_small
from ops_pipeline.database.types import parse_instant

MANIFEST, DELETED = "manifest.json", "deleted.json"
FORMAT = 1


@dataclass(frozen=True)
class Part:
    """A file of an archive; `table` is empty for a tar file of result directories."""

    name: str
    table: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an archive holds.

    Attributes:
        id: its name; begins with the time.
        kind: of what, for example `analysis_tasks`.
        created_at: when it was written, by the database's clock.
        reason: why its rows went, in words.
        parts: its files.
        facts: whatever else helps a person, such as a month.
        left_out: by table, keys of rows that stayed in the database after all; None while rows are being deleted.
    """

    id: str
    kind: str
    created_at: datetime
    reason: str
    parts: tuple[Part, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[Any]] | None = None

    @property
    def folder(self) -> str:
        """Its folder in the store."""
        return folder_of(self.kind, self.id)

    @property
    def rows(self) -> dict[str, int]:
        """Rows by table, as they were written."""
        found: dict[str, int] = {}
        for part in self.parts:
            found[part.table or "files"] = found.get(part.table or "files", 0) + part.rows
        return found


def folder_of(kind: str, archive_id: str) -> str:
    """The folder of an archive in its store."""
    return f"{kind}/{archive_id}"


def new_id(now: datetime) -> str:
    """A name that sorts by time, and that nobody else makes."""
    return f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Write the manifest: from now on the archive is one."""
    document = asdict(manifest) | {"format": FORMAT, "created_at": manifest.created_at.isoformat()}
    document.pop("left_out")
    write_small(store, manifest.folder, MANIFEST, json.dumps(document, indent=1).encode())


def write_deleted(store: Store, manifest: Manifest, left_out: Mapping[str, Sequence[Any]]) -> None:
    """Tell that the rows are deleted, and which were left in the database."""
    write_small(store, manifest.folder, DELETED, json.dumps({"left_out": left_out}).encode())


def read_manifest(store: Store, kind: str, archive_id: str) -> Manifest | None:
    """The manifest of an archive; None where there is none.

    Raises:
        ValueError: it is damaged, or of a newer version.
    """
    folder = folder_of(kind, archive_id)
    document = _json(store, folder, MANIFEST)
    if document is None:
        return None
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        raise ValueError(f"{store.where}: {folder}/{MANIFEST} has format {version}, this version reads {FORMAT}")
    deleted = _json(store, folder, DELETED)
    try:
        return Manifest(
            id=document["id"],
            kind=document["kind"],
            created_at=parse_instant(document["created_at"]),
            reason=document["reason"],
            parts=tuple(Part(**part) for part in document["parts"]),
            facts=document["facts"],
            left_out=deleted["left_out"] if deleted else None,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{store.where}: {folder}/{MANIFEST} is damaged ({error})") from error


def read_manifests(store: Store, kind: str | None = None) -> Iterator[Manifest]:
    """Every archive of a store, by kind and time.

    Raises:
        ValueError: a manifest is damaged.
    """
    for one, archive_id in archive_names(store, kind):
        manifest = read_manifest(store, one, archive_id)
        if manifest is not None:
            yield manifest


def archive_names(store: Store, kind: str | None = None) -> Iterator[tuple[str, str]]:
    """Kind and id of every archive of a store, and of what has no manifest."""
    for one in [kind] if kind else names_in(store):
        for archive_id in names_in(store, one):
            yield one, archive_id


def _json(store: Store, folder: str, name: str) -> Any:
    try:
        content = store.files.cat_file(store.path(folder, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{store.where}: {folder}/{name} is damaged ({error})") from error
