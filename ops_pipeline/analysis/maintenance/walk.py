"""One walk over the root of generated applications, in a process of its own, which `root.look` starts.

A network file system that hangs would hang whoever looks at it, so the looking is done by a process that can be left
behind. Its start is a good part of a look at 100,000 applications: it imports nothing but `os`, `sys` and `marshal`,
and `typing` or `json` alone would take longer than all of its start.

What belongs here: listing. What does not: what follows from it (`applications`), and the deadline (`root`).
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from _operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Entries = Iterable[tuple[str, str]]
    """Names in a folder, each with what it is: `DIRECTORY`, `FILE`, `DANGLING`, or the text of an error."""
    List = Callable[[str], Entries]
    """Lists a folder, which it names relative to the root; raises OSError when it cannot look."""
    Numbers = Callable[[str], list[int] | None]
    """The numbers of the applications in a folder that holds nothing else; None for every other one."""

MARKER = ".ops-pipeline-applications.json"
DIRECTORY, FILE, DANGLING = "directory", "file", "dangling link"


def main() -> None:
    """Answer one request, in the form that this interpreter keeps its own compiled modules in."""
    gc.disable()
    request = marshal.load(sys.stdin.buffer)  # noqa: S302 - written by the process that started this one
    try:
        answer = answer_to(request)
    except Exception as error:  # noqa: BLE001 - whatever a file system raises means that nobody could look
        answer = {"error": words(error)}
    # Version 2 looks for no repetitions, of which 100,000 numbers have many.
    marshal.dump(answer, sys.stdout.buffer, 2)


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """Look at the root, or write the marker; see `root.look` for both shapes."""
    location = request["location"]
    if "://" in location and not location.startswith("file://"):
        from ops_pipeline.analysis.maintenance.object_store import opened  # noqa: PLC0415

        place = opened(location)
        list_, numbers, device = place.list, None, None
    else:
        path = location.removeprefix("file://")
        device = device_of(path)
        list_, numbers = local(path), numbered(path)
        place = Folder(path)
    if "write_marker" in request:
        place.write(request["write_marker"])
    marker = place.marker()
    return {"device": device, "marker": marker, **walk(list_, request["slugs"], numbers)}


def device_of(path: str) -> int:
    """The device of a directory.

    Raises:
        NotADirectoryError: it is something else.
    """
    facts = os.stat(path)  # noqa: PTH116 - pathlib is not needed for anything else here
    if facts.st_mode & 0o170000 != 0o040000:
        raise NotADirectoryError(20, "it is no directory", path)
    return facts.st_dev


class Folder:
    """The marker of a root that is a folder."""

    def __init__(self, path: str) -> None:
        self.path = os.path.join(path, MARKER)  # noqa: PTH118

    def marker(self) -> str | None:
        """Its text; None where there is none."""
        try:
            with open(self.path, encoding="utf-8") as file:  # noqa: PTH123
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, text: str) -> None:
        """Write it, unless somebody else did."""
        try:
            with open(self.path, "x", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            pass


def local(root: str, scandir: Callable[[str], Any] = os.scandir) -> List:
    """Lists folders of this machine."""

    def list_(relative: str) -> Entries:
        with scandir(f"{root}/{relative}" if relative else root) as entries:
            for entry in entries:
                try:
                    kind = DIRECTORY if entry.is_dir() else DANGLING if entry.is_symlink() else FILE
                    if kind == DANGLING and os.path.exists(entry.path):  # noqa: PTH110
                        kind = FILE
                except OSError as error:
                    kind = words(error)
                yield entry.name, kind

    return list_


class _Known(dict):
    """The number of each name of an application: most models have the same ones."""

    def __missing__(self, name: str) -> int:
        number = int(name[3:])
        if name != f"app{number}":
            raise ValueError(name)
        self[name] = number
        return number


def numbered(root: str) -> Numbers:
    """The quick way for the folders of this machine as they mostly are, with nothing odd in them."""
    number_of, name_of, is_directory = _Known().__getitem__, attrgetter("name"), os.DirEntry.is_dir

    def numbers(relative: str) -> list[int] | None:
        try:
            with os.scandir(f"{root}/{relative}") as found:
                entries = list(found)
            # Without a loop of Python: it is no slower than the bare walk.
            return list(map(number_of, map(name_of, entries))) if all(map(is_directory, entries)) else None
        except (OSError, ValueError):
            return None

    return numbers


def walk(list_: List, slugs: Iterable[str], numbers: Numbers | None = None) -> dict[str, Any]:
    """List the root, and below it the folders of these models and no others.

    Returns:
        `present`: numbers of applications by model. `odd`: by model and number what stands there instead of a
        directory, or cannot be looked at. `absent`: models without a folder. `unknown`: models whose folder cannot be
        looked at, or is spelled differently, and why. A model stands in one of `present`, `absent` and `unknown`.
    """
    found: dict[str, Any] = {"present": {}, "odd": {}, "absent": [], "unknown": {}}
    tree: dict[str, Any] = {}
    for slug in slugs:
        names = slug.split("/")
        if not all(names) or {".", ".."} & set(names) or "\0" in slug:
            found["unknown"][slug] = "its name is no path"
            continue
        node = tree
        for name in names:
            node = node.setdefault(name, {})
        node[""] = slug
    # The root must be readable: an error here is told to the caller.
    _descend(found, (list_, numbers), "", tree, dict(list_("")))
    return found


def _descend(
    found: dict[str, Any],
    how: tuple[List, Numbers | None],
    relative: str,
    tree: dict[str, Any],
    names: dict[str, str],
) -> None:
    by_case: dict[str, str] | None = None
    for name, below in tree.items():
        if not name:
            continue
        kind, path = names.get(name), f"{relative}/{name}" if relative else name
        if kind is None:
            by_case = by_case if by_case is not None else {one.casefold(): one for one in names}
            spelled = by_case.get(name.casefold())
            reason = f"its folder is spelled {spelled}" if spelled else None
            _every(found, below, reason)
        elif kind != DIRECTORY:
            _every(found, below, f"{path} is a {kind}" if kind in {FILE, DANGLING} else kind)
        else:
            _look_into(found, how, path, below)


def _look_into(found: dict[str, Any], how: tuple[List, Numbers | None], path: str, below: dict[str, Any]) -> None:
    (list_, numbers), slug = how, below.get("")
    if numbers is not None and slug is not None and len(below) == 1:
        present = numbers(path)
        if present is not None:
            found["present"][slug] = present
            return
    try:
        entries = list_(path)
        if len(below) > (slug is not None):
            names = dict(entries)
            _descend(found, how, path, below, names)
            entries = names.items()
        if slug is not None:
            _applications(found, slug, entries)
    except FileNotFoundError:
        _every(found, below, None)
    except OSError as error:
        _every(found, below, words(error))


def _applications(found: dict[str, Any], slug: str, names: Entries) -> None:
    present: list[int] = []
    odd: dict[str, str] = {}
    for name, kind in names:
        digits = name[3:]
        if name[:3].lower() != "app" or not (digits.isascii() and digits.isdigit()):
            continue
        exact = name.startswith("app") and (digits[0] != "0" or digits == "0")
        if exact and kind == DIRECTORY:
            present.append(int(digits))
        else:
            reason = f"its folder is spelled {name}" if not exact else f"{name} is a {kind}"
            odd.setdefault(str(int(digits)), reason if kind in {DIRECTORY, FILE, DANGLING} else kind)
    found["present"][slug] = present
    if odd:
        found["odd"][slug] = {number: reason for number, reason in odd.items() if int(number) not in set(present)}


def _every(found: dict[str, Any], below: dict[str, Any], reason: str | None) -> None:
    """Tell the same of every model below a folder: absent, or why nobody could look."""
    for name, one in below.items():
        if name:
            _every(found, one, reason)
        elif reason is None:
            found["absent"].append(one)
        elif one not in found["present"]:
            found["unknown"][one] = reason


def words(error: BaseException) -> str:
    """An error in words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"
