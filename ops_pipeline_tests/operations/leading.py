"""A leader for tests, as a process of its own: `python -m ops_pipeline_tests.operations.leading URL_OR_FOLDER`.

Its daemon writes its number into a table (PostgreSQL) or a file (beside SQLite) many times a second, through the same
fence as Dagster's daemon: what two of them write tells whether they ever worked at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

PAUSE_SECONDS = 0.02


def work(place: str) -> None:
    """Write as Dagster's daemon does: a connection for each statement."""
    from ops_pipeline.operations.fenced import end_with_leader, fence_connections, token_of_leader

    token = token_of_leader()
    if token is None:
        return
    end_with_leader()
    if not place.startswith("postgresql"):
        while True:
            with (Path(place) / "ticks").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(PAUSE_SECONDS)
    fence_connections(token)
    engine = create_engine(place.replace("+psycopg:", "+psycopg2:"), poolclass=NullPool)
    while True:
        try:
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO ticks (pid) VALUES (:pid)"), {"pid": os.getpid()})
        except SQLAlchemyError:
            # As Dagster does: it tries again.
            time.sleep(0.2)
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    """Lead or stand by until told to stop."""
    from ops_pipeline.operations.leader import fence_for, lead

    place = sys.argv[1]
    if "--work" in sys.argv:
        return work(place)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    url = place if place.startswith("postgresql") else ""
    command = [sys.executable, "-m", __spec__.name, place, "--work"]
    sys.exit(lead(lambda: fence_for(Path(place), url), command, stop, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
