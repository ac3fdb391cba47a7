"""Locks by name: one holder at a time, and none that outlives its process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect
from ops_pipeline.database.locks import Held, exclusive


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


HOLDER = """
import sys
from ops_pipeline.database.engine import connect
from ops_pipeline.database.locks import exclusive
with exclusive(connect(sys.argv[1]), "flush_firewall", wait_seconds=30):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(engine: Engine) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input closes."""
    command = [sys.executable, "-c", HOLDER, url_of(engine)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_held_by_another_process_is_told_and_refused_after_the_wait(engine: Engine) -> None:
    told: list[str] = []
    with holder(engine) as process:
        with (
            pytest.raises(Held, match=r"flush_firewall is running elsewhere .* stop the job in one of the two"),
            exclusive(engine, "flush_firewall", wait_seconds=0.6, waiting=told.append),
        ):
            pass
        process.kill()
    assert len(told) == 1 and "waiting for its end" in told[0]


def test_a_lock_of_a_killed_process_is_free_at_once(engine: Engine) -> None:
    process = holder(engine)
    process.kill()
    process.wait()
    process.communicate()
    with exclusive(engine, "flush_firewall", wait_seconds=10):
        pass


def test_whoever_waits_gets_the_lock_when_it_is_given_back(engine: Engine) -> None:
    inside, leave, second = threading.Event(), threading.Event(), threading.Event()
    other = connect(url_of(engine))

    def first() -> None:
        with exclusive(engine, "update_vm_status", wait_seconds=10):
            inside.set()
            leave.wait(30)

    def later() -> None:
        with exclusive(other, "update_vm_status", wait_seconds=30, waiting=lambda _: leave.set()):
            second.set()

    threads = [threading.Thread(target=first), threading.Thread(target=later)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert second.is_set()
    other.dispose()


def test_locks_of_other_names_and_of_other_databases_do_not_meet(engine: Engine, tmp_path: Path) -> None:
    elsewhere = connect(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    with (
        exclusive(engine, "one", wait_seconds=0),
        exclusive(engine, "another", wait_seconds=0),
        exclusive(elsewhere, "one", wait_seconds=0),
    ):
        pass


def test_a_lock_is_given_back_when_the_block_fails(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(engine, "one", wait_seconds=0):
        raise ZeroDivisionError
    with exclusive(engine, "one", wait_seconds=0):
        pass


def test_a_database_in_memory_is_nobody_elses() -> None:
    memory = connect("sqlite://")
    with exclusive(memory, "one", wait_seconds=0), exclusive(memory, "one", wait_seconds=0):
        pass
