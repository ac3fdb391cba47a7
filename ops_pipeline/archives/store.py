"""Where archives lie: a folder, or an object store that fsspec reaches. Files are whole or not there.

What belongs here: writing, reading and listing files, with checksums. What does not: what is in them.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from ops_pipeline.reconcile import Unavailable

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """A file that was written: its name within the archive, its size, and the SHA-256 of its bytes."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Store:
    """A place for archives.

    Attributes:
        files: the fsspec file system.
        root: the folder in it.
        where: how an operator would name it.
    """

    files: Any
    root: str
    where: str

    def path(self, *names: str) -> str:
        """The path of something below the root.

        Raises:
            ValueError: a name leads out of it.
        """
        joined = PurePosixPath(*names)
        if joined.is_absolute() or ".." in joined.parts:
            raise ValueError(f"{joined} leads out of {self.where}")
        return f"{self.root.rstrip('/')}/{joined}"


@dataclass
class Hashing:
    """A file that computes size and checksum of what is written to it, in order."""

    file: Any
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    closed: bool = False

    def write(self, data: Any) -> int:
        """Write bytes."""
        view = memoryview(data)
        self.file.write(view)
        self.digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """How many bytes were written."""
        return self.size

    def flush(self) -> None:
        """Leave it to the file when to write."""

    def close(self) -> None:
        """Leave closing to whoever opened the file."""

    def writable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """No."""
        return False

    def seekable(self) -> bool:
        """No: an object store takes bytes in order."""
        return False


def open_store(location: str) -> Store:
    """The store at a folder or an fsspec URL; nothing is looked at yet.

    Raises:
        Unavailable: no library for this kind of URL is installed, or it is no URL.
    """
    # fsspec takes 0.1 s to import, which commands that touch no archive need not pay.
    from fsspec.core import url_to_fs  # noqa: PLC0415

    try:
        # Listings are asked for anew each time: another process may have written meanwhile.
        files, root = url_to_fs(location, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise Unavailable(f"{location}: {error}") from error
    return Store(files, root, location)


def library_errors() -> tuple[type[Exception], ...]:
    """What the library of an object store raises beside OSError, for example since it finds no credentials."""
    # Only where it is loaded: whoever keeps archives in a folder has none.
    botocore = sys.modules.get("botocore.exceptions")
    return (botocore.BotoCoreError,) if botocore else ()


def is_local(store: Store) -> bool:
    """Whether the store is a folder of this machine."""
    protocol = store.files.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


@contextmanager
def writing_file(store: Store, folder: str, name: str) -> Generator[tuple[Hashing, list[Written]], None, None]:
    """Write a file in order; at the end its facts stand in the list.

    A file whose writing failed is not there: on a disk it is removed, in an object store it never appears.

    Raises:
        OSError: it could not be written, for example since the disk is full.
    """
    path = store.path(folder, name)
    store.files.makedirs(store.path(folder), exist_ok=True)
    facts: list[Written] = []
    file = store.files.open(path, "wb")
    hashing = Hashing(file)
    try:
        yield hashing, facts
        _settle(store, file)
    except BaseException:
        _discard(store, file, path)
        raise
    facts.append(Written(name, hashing.size, hashing.digest.hexdigest()))


def write_small(store: Store, folder: str, name: str, content: bytes) -> Written:
    """Write a small file in one step: whoever reads it sees all of it, or none."""
    if not is_local(store):
        with writing_file(store, folder, name) as (file, facts):
            file.write(content)
        return facts[0]
    beside = f".{name}.new"
    with writing_file(store, folder, beside) as (file, facts):
        file.write(content)
    os.replace(store.path(folder, beside), store.path(folder, name))  # noqa: PTH105 - these are fsspec's texts
    _settle_folder(store.path(folder))
    return Written(name, facts[0].bytes, facts[0].sha256)


def read_checked(store: Store, folder: str, name: str, sha256: str) -> bytes:
    """The bytes of a file.

    Raises:
        ValueError: they are not those that were written.
    """
    content = store.files.cat_file(store.path(folder, name))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{store.where}: {folder}/{name} is damaged, its checksum is another one: put a copy back")
    return content


@contextmanager
def reading_checked(store: Store, folder: str, name: str, sha256: str) -> Generator[BinaryIO, None, None]:
    """A file to read in any order, after its checksum was computed once.

    Raises:
        ValueError: its bytes are not those that were written.
    """
    path = store.path(folder, name)
    with store.files.open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{store.where}: {folder}/{name} is damaged, its checksum is another one: put a copy back")
        file.seek(0)
        yield file


def remove_folder(store: Store, folder: str) -> None:
    """Remove an archive's folder, if it is there."""
    with suppress(FileNotFoundError):
        store.files.rm(store.path(folder), recursive=True)


def names_in(store: Store, *folder: str) -> list[str]:
    """The names in a folder, in order; none where there is no such folder."""
    path = store.path(*folder) if folder else store.root
    try:
        found = store.files.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted({PurePosixPath(one).name for one in found})


def _settle(store: Store, file: Any) -> None:
    """Close a file so that a power cut does not take it away any more; an object store does so by itself."""
    if is_local(store):
        file.flush()
        os.fsync(file.fileno())
    file.close()


def _settle_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(store: Store, file: Any, path: str) -> None:
    # Called while the error of the write itself is on its way, which must not be replaced. A file may never have been
    # made (OSError), and not every store of fsspec can discard one (the others): without a manifest, what stays is no
    # archive.
    with suppress(OSError, NotImplementedError, AttributeError):
        if is_local(store):
            file.close()
            store.files.rm_file(path)
        else:
            file.discard()
            # Otherwise it would complain when it is collected.
            file.closed = True
