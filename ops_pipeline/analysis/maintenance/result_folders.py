"""The directories of results: finding those of tasks, and removing them.

What belongs here: paths and directories. What does not: what is in them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ops_pipeline.analysis.targets import parse_model, parse_target, task_folder


@dataclass
class Folders:
    """The results of tasks below one root; each folder of an application is listed once.

    Attributes:
        root: of all results.
    """

    root: Path
    _listed: dict[str, frozenset[str]] = field(default_factory=dict)

    def of(self, task_id: str, target: str) -> str:
        """The folder of a task, relative to the root; empty where it has none."""
        above = _above(target)
        names = self._names(above) if above else ()
        if not names:
            return ""
        name = task_folder(task_id)
        return f"{above}/{name}" if name in names else ""

    def _names(self, above: str) -> frozenset[str]:
        names = self._listed.get(above)
        if names is None:
            names = self._listed[above] = self._looked(above)
        return names

    def _looked(self, above: str) -> frozenset[str]:
        """The names in a folder: what the one above it lacks is not looked for, most applications have no results."""
        if above:
            upper, _, name = above.rpartition("/")
            try:
                if name not in self._names(upper):
                    return frozenset()
            except PermissionError:
                # It cannot be listed; what lies in it may be.
                pass
        try:
            return frozenset(os.listdir(self.root / above))  # noqa: PTH208 - paths of thousands of names cost much
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    def path(self, folder: str) -> Path:
        """The path of a folder of `of`."""
        return self.root / folder

    def remove(self, folders: Iterable[str]) -> dict[str, str]:
        """Remove folders; returns those that could not be, and why."""
        failed: dict[str, str] = {}
        for folder in folders:
            try:
                shutil.rmtree(self.path(folder))
            except FileNotFoundError:
                continue
            except OSError as error:
                failed[folder] = f"{error.filename}: {error.strerror}"
        return failed


@lru_cache(maxsize=10_000)
def _above(target: str) -> str:
    """The folder of an application, or of a model whose next one is yet to be made; empty for other targets."""
    for parse in (parse_target, parse_model):
        try:
            return "/".join(parse(target).folders)
        except ValueError:
            continue
    return ""
