"""Workers that are killed and stopped, and a database that is restarted under them: no task is lost or done twice."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.events import CLAIMED, ENDED
from ops_pipeline.analysis.recovery.leases import recover_leases
from ops_pipeline.analysis.submitting import Submission, submit
from ops_pipeline.analysis.tables import analysis_results, analysis_tasks, task_events
from ops_pipeline.database.engine import connect, database_now, reading, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.migrate import migrate
from ops_pipeline_tests.analysis.noop_worker import POLICY
from ops_pipeline_tests.servers import PostgresServer, postgres

PROJECT = Path(__file__).parents[2]
TASKS = 5000
LONGEST = 240


@dataclass
class Crew:
    """Four workers, of which whoever dies is replaced."""

    url: str
    members: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopped: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def fill(self) -> None:
        """Replace whoever died."""
        while len(self.members) < 4:
            command = [sys.executable, "-m", "ops_pipeline_tests.analysis.noop_worker", self.url, "worker"]
            self.members.append(subprocess.Popen(command, cwd=PROJECT))

    def kill(self) -> None:
        """Kill one, whatever it is doing."""
        victim = self.members.pop(random.randrange(len(self.members)))  # noqa: S311
        victim.kill()
        victim.wait()

    def stop(self) -> None:
        """Stop one for longer than its lease; it goes on afterwards with what it had."""
        victim = self.members.pop(random.randrange(len(self.members)))  # noqa: S311
        victim.send_signal(signal.SIGSTOP)
        self.stopped.append(victim)

    def nothing(self) -> None:
        """Let them work."""

    def go_on(self) -> None:
        """Let those that were stopped go on with what they had."""
        while self.stopped:
            sleeper = self.stopped.pop()
            sleeper.send_signal(signal.SIGCONT)
            self.members.append(sleeper)

    def end(self) -> None:
        """Kill all."""
        for process in (*self.members, *self.stopped):
            process.kill()
            process.wait()


@contextlib.contextmanager
def crew_of(url: str) -> Iterator[Crew]:
    crew = Crew(url)
    try:
        yield crew
    finally:
        crew.end()


def put_in(engine: Engine) -> None:
    migrate(engine)
    submissions = [Submission((("a",), ("b",), ("c", "d"))[number % 3], f"t/app{number}") for number in range(TASKS)]
    leaves = 0
    with writing(engine) as connection:
        for number, submission in enumerate(submissions):
            leaves += len(submission.services)
            if leaves > TASKS:
                submit(connection, submissions[:number], database_now(connection))
                return


def left(engine: Engine) -> int:
    """How many tasks have not ended; as many as can be while the database is away."""
    unfinished = select(func.count()).where(analysis_tasks.c.status.in_(("pending", "running")))
    with contextlib.suppress(DatabaseProblem), reading(engine) as connection:
        return connection.execute(unfinished).scalar_one()
    return TASKS


def live_through(engine: Engine, url: str, restart: Callable[[], None]) -> None:
    """Let four workers do everything, while they are killed and stopped, and the database is restarted."""
    deadline = time.monotonic() + LONGEST
    with crew_of(url) as crew:
        # Whoever is stopped sleeps longer than its lease.
        disasters = [crew.stop, crew.kill, restart, crew.kill, crew.nothing, crew.go_on, crew.kill, restart]
        coming = iter(disasters * 3)
        while unfinished := left(engine):
            assert time.monotonic() < deadline, f"{unfinished} tasks are stuck"
            crew.fill()
            time.sleep(0.6)
            if unfinished < TASKS * 0.95:
                next(coming, crew.nothing)()
            try:
                recover_leases(engine, POLICY)
            except DatabaseProblem:
                # SQLite has one lock: whoever was stopped with it keeps everybody waiting.
                if engine.dialect.name == "sqlite":
                    crew.go_on()
        crew.go_on()
        # Whoever was stopped until now tries to end what it had.
        time.sleep(1)


def judge(engine: Engine) -> None:
    tasks, events, results = analysis_tasks.c, task_events.c, analysis_results.c
    with reading(engine) as connection:
        rows = connection.execute(select(tasks.id, tasks.service, tasks.status, tasks.attempt)).all()
        ended = Counter(connection.scalars(select(events.task_id).where(events.kind.in_((ENDED, "aggregated")))))
        claimed = Counter(connection.scalars(select(events.task_id).where(events.kind == CLAIMED)))
        stored = connection.execute(select(results.task_id, results.attempt)).all()
    leaves = {row.id: row.attempt for row in rows if row.service != "unified"}
    assert len(leaves) > TASKS - 3
    assert {row.status for row in rows} == {"completed"}
    assert ended == Counter({row.id: 1 for row in rows})
    assert Counter(row.task_id for row in stored) == Counter(dict.fromkeys(leaves, 1))
    assert {row.task_id: row.attempt for row in stored} == leaves
    assert claimed == Counter(leaves)
    assert max(leaves.values()) > 1


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that may be restarted."""
    with postgres() as server:
        yield server


def test_five_thousand_tasks_end_once_each_whatever_dies(own_server: PostgresServer) -> None:
    url = own_server.new_database()
    engine = connect(url)
    put_in(engine)

    def restart() -> None:
        own_server.control("-m", "immediate", "restart", "-l", "/dev/null")

    live_through(engine, url, restart)
    judge(engine)
    engine.dispose()


def test_five_thousand_tasks_end_once_each_on_sqlite_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'operations.db'}"
    engine = connect(url)
    put_in(engine)
    live_through(engine, url, lambda: None)
    judge(engine)
    engine.dispose()


def test_a_restart_in_the_middle_of_a_claim_loses_nothing(own_server: PostgresServer) -> None:
    engine = connect(own_server.new_database())
    migrate(engine)
    with writing(engine) as connection:
        ids = submit(connection, [Submission(("a",), "t/app1")] * 50, database_now(connection))
    with pytest.raises(DatabaseProblem), writing(engine) as connection:
        claimed = claim(connection, "worker", 20, policy=POLICY, now=database_now(connection))
        assert len(claimed) == 20
        own_server.control("-m", "immediate", "restart", "-l", "/dev/null")
    with writing(engine) as connection:
        again = claim(connection, "worker", 100, policy=POLICY, now=database_now(connection))
    assert {task.id for task in again} == set(ids)
    assert {task.attempt for task in again} == {1}
    engine.dispose()
