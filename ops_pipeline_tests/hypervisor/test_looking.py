"""Hosts are asked all at once, and none can hold up the others or the run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops_pipeline.hypervisor import look
from ops_pipeline.hypervisor.hosts import UNREACHABLE, Host
from ops_pipeline.hypervisor.looking import Answer, ask_hosts
from ops_pipeline.reconcile import Unavailable
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain, test_node_xml
from ops_pipeline_tests.servers import wait_until

HERE = "ops_pipeline_tests.hypervisor.questions"
TEST = Host("test", "test:///default")


def ask(function: str, *hosts: Host, deadline: float = 20, **more: object) -> dict[str, Answer]:
    return ask_hosts(hosts or (TEST,), f"{HERE}:{function}", deadline_seconds=deadline, **more)  # type: ignore[arg-type]


def test_each_host_answers_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "fleet.xml"
    path.write_text(test_node_xml([TestDomain("a"), TestDomain("b", 5)]))
    answers = ask("names", Host("one", f"test://{path}"), TEST)
    assert {name: answer.facts for name, answer in answers.items()} == {"one": ["a", "b"], "test": ["test"]}
    assert answers["one"].sure() == ["a", "b"]


def test_each_host_may_get_an_argument_of_its_own() -> None:
    other = Host("other", "test:///default")
    answers = ask("given", TEST, other, argument=1, arguments={"other": (2, "b")})
    assert [answers[name].facts for name in ("test", "other")] == [1, (2, "b")]


def test_no_hosts_need_no_process() -> None:
    assert ask_hosts([], f"{HERE}:names", deadline_seconds=1) == {}


def test_a_host_that_hangs_costs_its_deadline_and_nothing_else() -> None:
    """A thread that hangs inside C cannot be killed; one such host stopped a whole run."""
    late = [Host(f"late{number}", "test:///default") for number in range(3)]
    hosts = [TEST, *late, Host("last", "test:///default")]
    answers = ask("sleep", *hosts, deadline=2, argument=60, arguments={"test": 0, "last": 0})
    assert [name for name, answer in answers.items() if answer.problem] == ["late0", "late1", "late2"]
    assert "no answer within 2 s: its libvirt hangs" in answers["late1"].problem
    with pytest.raises(Unavailable, match="late1: test:///default: no answer"):
        answers["late1"].sure()


def test_more_hosts_than_are_asked_at_once_get_their_turn() -> None:
    hosts = [Host(str(number), "test:///default") for number in range(7)]
    answers = ask("given", *hosts, at_once=2, argument="x")
    assert [answer.facts for answer in answers.values()] == ["x"] * 7
    assert list(answers) == [host.id for host in hosts]


def test_hosts_whose_turn_does_not_come_in_the_time_for_all_are_told_as_not_looked_at() -> None:
    """A tick that takes more than a minute is given up by Dagster, and what it saw with it."""
    known = Host("known", "test:///default", state=UNREACHABLE)
    hosts = [known, *(Host(name, "test:///default") for name in ("late", "quick", "next"))]
    started = time.monotonic()
    seconds = {"known": 60, "late": 60}
    answers = ask("sleep", *hosts, deadline=30, at_once=2, argument=0, arguments=seconds, total_seconds=1)
    assert time.monotonic() - started < 20
    assert {name: answer.unreached for name, answer in answers.items()} == {
        "known": True,
        "late": True,
        "quick": False,
        "next": False,
    }
    assert "a run takes longer and does the rest" in answers["late"].problem
    waiting = ask("sleep", *hosts, deadline=30, at_once=1, argument=0, arguments=seconds, total_seconds=0.5)
    assert all(answer.unreached for answer in waiting.values())
    # Its own time was over: that is its own fault.
    (answer,) = ask("sleep", known, deadline=0.2, argument=60, total_seconds=0.5).values()
    assert not answer.unreached and "no answer within 0.2 s" in answer.problem


def test_what_was_done_before_the_deadline_is_told() -> None:
    (answer,) = ask("in_steps", deadline=1, argument=60).values()
    assert (answer.items, answer.facts) == ((1, 2), None)
    assert "no answer within 1 s" in answer.problem
    (answer,) = ask("in_steps", argument=0).values()
    assert (answer.items, answer.facts, answer.problem) == ((1, 2, 3), "all", "")


def test_what_a_host_started_is_killed_with_it(tmp_path: Path) -> None:
    """A connection over SSH has an ssh process, which would hang on."""
    ask("with_a_child", deadline=1, argument=str(tmp_path / "pid"))
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _alive(pid), 10, "the child's child to end")


def test_what_cannot_be_killed_holds_up_nobody() -> None:
    """A process inside a driver that hangs survives its kill with its files open; the end of its answer never came."""
    hosts, seconds = (TEST, Host("quick", "test:///default")), {"test": 60, "quick": 0}
    started = time.monotonic()
    answers = ask("with_an_escapee", *hosts, deadline=2, arguments=seconds)
    assert "no answer within 2 s" in answers["test"].problem
    assert answers["quick"].facts == "answered"
    assert time.monotonic() - started < 15


def test_a_process_that_is_not_gone_is_not_waited_for() -> None:
    with subprocess.Popen(["sleep", "30"]) as process:
        assert look._reaped(process.pid, time.monotonic() + 0.1) is None
        process.kill()
        assert look._reaped(process.pid, time.monotonic() + 20) == signal.SIGKILL


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_host_whose_process_crashes_is_told_from_one_that_hangs() -> None:
    answers = ask("crash", TEST)
    assert "ended by signal 11" in answers["test"].problem


def test_what_no_host_is_to_blame_for_is_named() -> None:
    assert ask("fail")["test"].problem == "test:///default: KeyError: 'surprise'"
    assert "has no attribute 'nothing'" in ask("nothing")["test"].problem


def test_what_a_function_prints_does_not_spoil_its_answer() -> None:
    assert ask("chatter")["test"].facts == "quiet"


def test_looks_cannot_change_anything() -> None:
    assert "read only access prevents" in ask("destroy", argument="test")["test"].problem
    assert ask("destroy", argument="test", writes=True)["test"].problem == ""


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("qemu+unix:///system?socket=/nowhere", "nothing answers: is libvirtd (or virtqemud) running there"),
        ("hyperv:///system", "libvirt"),
        ("test:///nowhere.xml", "libvirt"),
        ("qemu+tcp://user:secret@127.0.0.1:1/system", "qemu+tcp://user:***@127.0.0.1:1/system"),
        ("", "its libvirt_uri is empty"),
    ],
)
def test_a_uri_that_leads_nowhere_says_what_to_do(uri: str, words: str) -> None:
    problem = ask("names", Host("x", uri))["x"].problem
    assert words in problem
    assert "secret" not in problem


def test_without_libvirt_python_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libvirt.py").write_text("raise ModuleNotFoundError(\"No module named 'libvirt'\")")
    monkeypatch.syspath_prepend(tmp_path)
    assert "install ops-pipeline[hypervisor]" in ask("names")["test"].problem


KILLED = """
from ops_pipeline.hypervisor.hosts import Host
from ops_pipeline.hypervisor.looking import ask_hosts
ask_hosts([Host("x", "test:///default")], "ops_pipeline_tests.hypervisor.questions:with_a_child", deadline_seconds=30,
          argument={path!r})
"""


def test_nothing_is_left_of_a_run_that_was_killed(tmp_path: Path) -> None:
    """Dagster kills a run that is cancelled; what it asked hosts must not go on changing them."""
    path = tmp_path / "pid"
    command = [sys.executable, "-c", KILLED.format(path=str(path))]
    run = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    wait_until(lambda: path.exists() and path.read_text(), 20, "the host to be asked")
    run.kill()
    run.wait()
    wait_until(lambda: not _alive(int(path.read_text())), 10, "its processes to end")


def test_the_installed_command_finds_the_package_for_its_processes_too(tmp_path: Path, migrated_file: Path) -> None:
    """An editable installation is on no path: every look of `ops-pipeline check` failed, and `make run` with it."""
    command = Path(sys.executable).parent / "ops-pipeline"
    home = {"DAGSTER_HOME": str(tmp_path), "PATH": os.environ["PATH"], "LIBVIRT_URI": "test:///default"}
    home["DATABASE_URL"] = f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'operations.db')}"
    checked = subprocess.run([command, "check"], env=home, cwd=tmp_path, check=False, capture_output=True, text=True)
    (line,) = [line for line in checked.stdout.splitlines() if "hypervisor local" in line]
    assert line.startswith("ok"), line
