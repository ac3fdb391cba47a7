"""A lock by name in the operations database: what holds it excludes every other holder, on whatever machine.

What belongs here: taking and giving back. A lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from sqlalchemy import Engine, func, select

from ops_pipeline.database.engine import where
from ops_pipeline.database.errors import DatabaseProblem

LOOK_SECONDS = 0.5


class Held(DatabaseProblem):
    """Somebody else holds the lock, and did so all the while that it was waited for."""


@contextmanager
def exclusive(
    engine: Engine, name: str, *, wait_seconds: float, waiting: Callable[[str], None] = lambda _: None
) -> Generator[None, None, None]:
    """Hold the lock `name` for the length of a block.

    On PostgreSQL it is an advisory lock of a session of its own; beside SQLite, which only one machine can share, a
    lock on a file next to the database.

    Args:
        engine: the database.
        name: of what must not happen twice at once.
        wait_seconds: how long to wait for another holder.
        waiting: told once, in words, when there is one.

    Raises:
        Held: it was not free in time.
        DatabaseProblem: the database cannot be used.
    """
    take = _postgres(engine, name) if engine.dialect.name == "postgresql" else _file(engine, name)
    with take as tried:
        deadline = time.monotonic() + wait_seconds
        told = False
        while not tried():
            if time.monotonic() >= deadline:
                raise Held(
                    f"{name} is running elsewhere on {where(engine)}, and did not end within {wait_seconds:.0f} s. If"
                    " that is another deployment, stop the job in one of the two."
                )
            if not told:
                waiting(f"{name} is running elsewhere on {where(engine)}: waiting for its end.")
                told = True
            time.sleep(LOOK_SECONDS)
        yield


@contextmanager
def _postgres(engine: Engine, name: str) -> Generator[Callable[[], bool], None, None]:
    key = int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"ops_pipeline").digest(), signed=True)
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield lambda: bool(connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one())
    finally:
        # Not back into the pool: the session holds the lock as long as it lives.
        connection.invalidate()
        connection.close()


@contextmanager
def _file(engine: Engine, name: str) -> Generator[Callable[[], bool], None, None]:
    database = engine.url.database
    if not database or "uri" in engine.url.query:
        # In memory: nobody else can reach it.
        yield lambda: True
        return
    path = Path(database)
    handle = os.open(path.with_name(f"{path.name}.{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield lambda: _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
