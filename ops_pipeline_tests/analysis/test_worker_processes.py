"""Workers as processes: killed, told to end, and with a database that goes away beneath them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.leases import recover_leases
from ops_pipeline.analysis.results import flaws_of
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.database.engine import connect, reading
from ops_pipeline_tests.analysis.analyzers import Analyzer, after, analyzer, answers, is_silent
from ops_pipeline_tests.analysis.working import (
    add_task,
    change,
    findings_in,
    lines_of,
    plan_for,
    row_of,
    status_of,
    working,
)
from ops_pipeline_tests.servers import PostgresServer, postgres, wait_until

LEASE = timedelta(seconds=3)
POLICY = Policy(lease=LEASE)
WORKER = """
import signal, sys
from datetime import timedelta
from pathlib import Path
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.worker.life import run_worker
from ops_pipeline.analysis.worker.plan import WorkerPlan
from ops_pipeline.database.engine import connect

def interrupted(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupted)
url, folder, service, lease = sys.argv[1:]
policy = Policy(lease=timedelta(seconds=float(lease)))
plan = WorkerPlan(Path(folder) / "results", policy, {"static-analyzer": service}, linger=60.0, watch=0.2)
run_worker(connect(url), plan, told=lambda line: print(line, flush=True))
"""


@contextmanager
def process(engine: Engine, folder: Path, service: Analyzer) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own."""
    arguments = [engine.url.render_as_string(hide_password=False), str(folder), service.url, str(LEASE.total_seconds())]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def test_the_task_of_a_worker_that_was_killed_comes_back_after_its_lease_and_not_before(
    engine: Engine, tmp_path: Path
) -> None:
    add_task(engine)
    with analyzer(is_silent) as service:
        with process(engine, tmp_path, service) as worker:
            wait_until(lambda: bool(service.requests), 30, "the request")
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        wait_until(lambda: bool(service.dropped), 10, "the socket to be closed")
        assert recover_leases(engine, POLICY).outcome.changed == 0
        assert status_of(engine) == "running"
        wait_until(lambda: recover_leases(engine, POLICY).outcome.changed == 1, 10, "the lease to run out")
        assert (status_of(engine), row_of(engine).lost_leases) == ("pending", 1)
        service.behaviour = answers
        lines_of(engine, plan_for(tmp_path, service))
        assert [request["id"][-2:] for request in service.requests] == ["_1", "_2"]
    assert (status_of(engine), row_of(engine).attempt, len(findings_in(engine))) == ("completed", 2, 1)


def test_a_worker_that_was_stopped_and_wakes_up_stores_nothing_of_a_task_that_another_has(
    engine: Engine, tmp_path: Path
) -> None:
    """A virtual machine was paused for minutes: its worker went on where it was."""
    add_task(engine)
    with analyzer(after(1.0, answers)) as service, process(engine, tmp_path, service) as worker:
        wait_until(lambda: bool(service.requests), 30, "the request")
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: recover_leases(engine, POLICY).outcome.changed == 1, 15, "the lease to run out")
        change(engine, status="running", lease_owner="another", attempt=2)
        worker.send_signal(signal.SIGCONT)
        assert worker.stdout is not None
        told = next(line for line in worker.stdout if "dropped" in line or "-> lost" in line or "-> completed" in line)
        assert "-> completed" not in told
    row = row_of(engine)
    assert (row.status, row.lease_owner, row.result_summary) == ("running", "another", None)
    assert findings_in(engine) == []
    assert not (tmp_path / "results" / "openai_gpt-4o" / "app0" / "task_1").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_hands_its_tasks_back_at_once(
    engine: Engine, tmp_path: Path, number: signal.Signals
) -> None:
    add_task(engine)
    with analyzer(is_silent) as service, process(engine, tmp_path, service) as worker:
        wait_until(lambda: bool(service.requests), 30, "the request")
        worker.send_signal(number)
        worker.wait(30)
    row = row_of(engine)
    assert (row.status, row.attempt, row.lease_owner) == ("pending", 0, None)
    assert row.error_message == "interrupted (KeyboardInterrupt)"


@contextmanager
def own_postgres() -> Iterator[tuple[PostgresServer, Engine]]:
    """A server that a test may stop and start, with a migrated database."""
    from ops_pipeline.database.migrate import migrate

    with postgres() as server:
        engine = connect(server.new_database())
        migrate(engine)
        yield server, engine
        engine.dispose()


@pytest.mark.xdist_group("postgres-restart")
def test_a_restart_of_the_database_while_tasks_run_loses_no_result(tmp_path: Path) -> None:
    """Results that come while it is away are kept until it is back; leases that ran out meanwhile are prolonged."""
    with own_postgres() as (server, engine), analyzer(after(1.5, answers)) as service:
        for number in range(20):
            add_task(engine, f"task_{number}")
        plan = plan_for(tmp_path, service, linger=10.0, policy=Policy(lease=timedelta(seconds=10)))
        with working(engine, plan) as worker:
            wait_until(lambda: len(service.requests) == 20, 20, "the requests")
            server.control("-m", "immediate", "stop")
            worker.until("waits for the database")
            server.control("-o", _options(server), "-l", str(server.folder / "log"), "start")
            wait_until(lambda: statuses(engine) == {"completed"}, 40, "all tasks to end")
            add_task(engine, "task_new")
            wait_until(lambda: status_of(engine, "task_new") == "completed", 20, "a new task")
        assert len(service.requests) == 21
        for number in range(20):
            files = row_of(engine, f"task_{number}").result_summary["files"]
            assert flaws_of(Path(files["folder"]), files["manifest_sha256"]) == []
            assert len(findings_in(engine, f"task_{number}")) == 1


def _options(server: PostgresServer) -> str:
    return f"-p {server.port} -k {server.folder} -c fsync=off -c max_connections=60 -c listen_addresses=127.0.0.1"


def statuses(engine: Engine) -> set[str]:
    with reading(engine) as connection:
        return set(connection.scalars(select(analysis_tasks.c.status)))


def test_four_workers_do_every_task_once(engine: Engine, tmp_path: Path) -> None:
    for number in range(120):
        add_task(engine, f"task_{number}")
    from contextlib import ExitStack

    with analyzer(after(0.05, answers)) as service:
        plan = plan_for(tmp_path, service, concurrency=10)
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(working(engine, plan))
            wait_until(lambda: statuses(engine) == {"completed"}, 60, "all tasks to end")
        assert len({request["id"] for request in service.requests}) == len(service.requests) == 120


def test_what_a_worker_left_behind_between_files_and_database_is_cleared_away(engine: Engine, tmp_path: Path) -> None:
    """It died after it had written the files, before the transaction: they belong to no result."""
    add_task(engine)
    app = tmp_path / "results" / "openai_gpt-4o" / "app0"
    left = app / ".task_1.0.0123456789ab"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text("{")
    neighbour = app / ".task_10.1.0123456789ab"
    neighbour.mkdir()
    with analyzer() as service:
        lines_of(engine, plan_for(tmp_path, service))
    assert sorted(path.name for path in app.iterdir()) == [".task_10.1.0123456789ab", "task_1"]
    assert flaws_of(app / "task_1") == []
