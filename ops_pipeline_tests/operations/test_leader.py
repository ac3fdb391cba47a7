"""One leader: real processes that die, hang, are cut off, and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from ops_pipeline_tests.integration.processes import PROJECT
from ops_pipeline_tests.servers import PostgresServer, postgres, wait_until

LONG = 60
"""Seconds that a busy machine may need for what takes a few on a quiet one."""


@dataclass
class Place:
    """Where leaders meet, and what their daemons wrote there."""

    name: str
    folder: Path
    leaders: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        """Start a leader; its lines go to a file of its own."""
        log = (self.folder / f"leader-{len(self.leaders)}.log").open("w")
        command = [sys.executable, "-m", "ops_pipeline_tests.operations.leading", self.name]
        leader = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=PROJECT)
        self.leaders.append(leader)
        return leader

    def told(self, leader: subprocess.Popen[str]) -> str:
        """What a leader told."""
        return (self.folder / f"leader-{self.leaders.index(leader)}.log").read_text()

    def ticks(self) -> list[int]:
        """Who wrote, in order."""
        if not self.name.startswith("postgresql"):
            file = Path(self.name) / "ticks"
            return [int(line) for line in file.read_text().split()] if file.exists() else []
        engine = create_engine(self.name, poolclass=NullPool)
        with engine.begin() as connection:
            return list(connection.scalars(text("SELECT pid FROM ticks ORDER BY id")))

    def turns(self) -> list[int]:
        """Who wrote, each once for as long as nobody else did."""
        return [pid for pid, _ in groupby(self.ticks())]

    def wait_for_turns(self, count: int) -> None:
        """Wait until so many daemons wrote one after the other, and the last goes on writing."""
        wait_until(lambda: len(self.turns()) >= count, LONG, f"{count} daemons to write")
        before = len(self.ticks())
        wait_until(lambda: len(self.ticks()) > before, LONG, "the last of them to go on")


@pytest.fixture(params=["file", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A folder, or a database with a table of ticks; no leader outlives the test."""
    name = str(tmp_path)
    if request.param == "postgresql":
        name = database_of(request.getfixturevalue("postgres_server"))
    yield from cleaned(Place(name, tmp_path))


def database_of(server: PostgresServer) -> str:
    url = server.new_database()
    create = "CREATE TABLE ticks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pid int)"
    server.execute(create, url.rpartition("/")[2])
    return url


def cleaned(place: Place) -> Iterator[Place]:
    yield place
    for leader in place.leaders:
        for process in [leader, *children(leader)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        leader.wait()


def children(leader: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(leader.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def whole(leader: subprocess.Popen[str]) -> list[psutil.Process]:
    """A leader and its daemon."""
    return [psutil.Process(leader.pid), *children(leader)]


def test_a_second_leader_stands_by_and_takes_over_when_the_first_is_killed(place: Place) -> None:
    """Two daemons on one storage only log an error, and every schedule fires twice."""
    first = place.start()
    place.wait_for_turns(1)
    second = place.start()
    wait_until(lambda: "standing by" in place.told(second), LONG, "the second to stand by")
    daemon = children(first)[0]
    (ready,) = children(second)
    first.kill()
    first.wait()
    place.wait_for_turns(2)
    # Importing Dagster took longer than the take-over: the one that was ready before works now.
    assert place.turns()[-1] == ready.pid
    assert not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE
    assert len(place.turns()) == 2


def test_a_leader_that_is_stopped_loses_the_lead_and_writes_nothing_when_it_wakes_up(place: Place) -> None:
    """A paused machine kept its session and its lock; after its pause two daemons worked."""
    first = place.start()
    place.wait_for_turns(1)
    second = place.start()
    stopped = whole(first)
    for process in stopped:
        process.suspend()
    place.wait_for_turns(2)
    for process in stopped:
        if process.is_running():
            process.resume()
    daemon = stopped[-1]
    wait_until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE, LONG, "its daemon to end")
    goes_on(place)
    assert len(place.turns()) == 2
    assert second.poll() is None


def test_a_daemon_whose_leader_hangs_alone_is_shut_out_too(place: Place) -> None:
    first = place.start()
    place.wait_for_turns(1)
    place.start()
    os.kill(first.pid, signal.SIGSTOP)
    place.wait_for_turns(2)
    goes_on(place)
    assert len(place.turns()) == 2


def test_a_leader_told_to_stop_gives_the_lead_back_at_once(place: Place) -> None:
    first = place.start()
    place.wait_for_turns(1)
    second = place.start()
    # What it holds ready has died meanwhile: another one is started then.
    wait_until(lambda: children(second), LONG, "the second to stand by")
    children(second)[0].kill()
    first.terminate()
    assert first.wait(LONG) == 0
    place.wait_for_turns(2)


def test_a_daemon_that_ends_by_itself_ends_its_leader_so_that_whoever_watches_it_sees_it(place: Place) -> None:
    first = place.start()
    place.wait_for_turns(1)
    children(first)[0].kill()
    assert first.wait(LONG) != 0
    assert "ended by itself" in place.told(first)


def test_leaders_survive_a_restart_of_the_database_one_at_a_time(tmp_path: Path) -> None:
    with postgres() as server:
        place = Place(database_of(server), tmp_path)
        for _ in cleaned(place):
            place.start(), place.start()
            place.wait_for_turns(1)
            server.control("-m", "immediate", "-l", str(server.folder / "log"), "restart")
            goes_on(place)
            turns = place.turns()
            assert len(turns) == len(set(turns))


def test_leaders_wait_for_a_database_that_is_not_there_yet(postgres_server: PostgresServer, tmp_path: Path) -> None:
    missing = postgres_server.url("not_there_yet")
    place = Place(missing, tmp_path)
    leader = place.start()
    for _ in cleaned(place):
        wait_until(lambda: 'database "not_there_yet" does not exist' in place.told(leader), LONG, "it to tell")
        assert leader.poll() is None


def goes_on(place: Place, ticks: int = 20) -> None:
    """Wait until so many more ticks are written."""
    before = len(place.ticks())
    wait_until(lambda: len(place.ticks()) > before + ticks, LONG, "somebody to go on")


def cut_off(place: Place, first: subprocess.Popen[str]) -> Callable[[], bool]:
    return lambda: first.poll() is None and "lead is lost" in place.told(first)


def test_a_leader_whose_session_is_cut_ends_its_daemon_and_stands_by(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    place = Place(database_of(postgres_server), tmp_path)
    for _ in cleaned(place):
        first = place.start()
        place.wait_for_turns(1)
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()",
            place.name.rpartition("/")[2],
        )
        wait_until(cut_off(place, first), LONG, "it to notice")
        place.wait_for_turns(2)


def test_the_file_of_a_leader_that_was_removed_does_not_lead_any_more(tmp_path: Path) -> None:
    place = Place(str(tmp_path), tmp_path)
    for _ in cleaned(place):
        first = place.start()
        place.wait_for_turns(1)
        (tmp_path / "daemon.lock").unlink()
        wait_until(cut_off(place, first), LONG, "it to notice")
        place.wait_for_turns(2)


def test_a_daemon_that_ends_by_itself_is_not_aborted_while_it_watches_its_leader() -> None:
    """The thread that waits for the leader held the lock of `sys.stdin`, and Python ended with a fatal error."""
    code = "import time; from ops_pipeline.operations.fenced import end_with_leader; end_with_leader(); time.sleep(0.3)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as daemon:
        assert daemon.wait(60) == 0
        assert daemon.stderr is not None
        assert daemon.stderr.read() == b""
