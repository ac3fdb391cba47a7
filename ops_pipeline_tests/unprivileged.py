"""Running a piece of a test as a user whom file modes stop, also where the tests themselves run as root.

What belongs here: dropping privileges in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may read; pytest's own ones are closed to all but the user of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="ops_pipeline_open_"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)


def as_nobody(told: Callable[[], object], folder: Path) -> str:
    """The text of what `told` returns or raises when an ordinary user without any rights calls it in `folder`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.chdir(folder)
            text = str(told())
        except BaseException as error:  # noqa: BLE001 - the parent judges it
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text
