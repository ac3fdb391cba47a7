"""A root of generated applications that is no folder: an object store, through fsspec.

A folder is listed with one request per page, not one per application.

What belongs here: listing and the marker, for `walk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ops_pipeline.analysis.maintenance.walk import DIRECTORY, FILE, MARKER

if TYPE_CHECKING:
    from ops_pipeline.analysis.maintenance.walk import Entries


@dataclass(frozen=True)
class Bucket:
    """A root in an object store."""

    files: Any
    root: str

    def list(self, relative: str) -> Entries:
        """What stands directly below a folder.

        Raises:
            FileNotFoundError: there is nothing below it.
        """
        path = f"{self.root}/{relative}" if relative else self.root
        for entry in self.files.ls(path, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            # A store may hold an empty object that stands for the folder itself.
            if entry["name"].rstrip("/") != path:
                yield name, DIRECTORY if entry["type"] == "directory" else FILE

    def marker(self) -> str | None:
        """The text of the marker; None where there is none."""
        try:
            return self.files.cat_file(f"{self.root}/{MARKER}").decode()
        except FileNotFoundError:
            return None

    def write(self, text: str) -> None:
        """Write the marker."""
        if self.marker() is None:
            self.files.pipe_file(f"{self.root}/{MARKER}", text.encode())


def opened(location: str) -> Bucket:
    """The root at a URL such as `s3://bucket/apps`; credentials come from the usual variables of its library."""
    from fsspec.core import url_to_fs  # noqa: PLC0415

    files, root = url_to_fs(location, use_listings_cache=False, skip_instance_cache=True)
    return Bucket(files, root.rstrip("/"))
