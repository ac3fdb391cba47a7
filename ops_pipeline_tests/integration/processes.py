"""Whole deployments as processes: starting them as an operator does, asking the web server, ending them.

What belongs here: helpers of the integration tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ops_pipeline_tests.servers import free_port, wait_until

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of an operator's shell: nothing of the tests' own."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    return kept | {"DAGSTER_HOME": str(home)} | variables


@dataclass(frozen=True)
class Running:
    """A deployment started by scripts/run.sh or run-distributed.sh."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def graphql(self, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the web server."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": dict(variables or {})}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def answers(self) -> bool:
        """True once the web server answers."""
        try:
            return bool(self.graphql("{ version }"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self) -> float:
        """Press Ctrl-C; the seconds until the last process is gone."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        started = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(120)
        wait_until(lambda: not any(alive(one) for one in family), 120, "every process of the deployment to end")
        return time.monotonic() - started


def alive(process: psutil.Process) -> bool:
    """True unless the process ended, also when nobody has fetched its status."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running(home: Path, script: str = "run.sh", **variables: str) -> Iterator[Running]:
    """Start web server and daemon as `make run` does, or another script, and end them if the test did not."""
    port = free_port()
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.parent / "run.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(PROJECT / "scripts" / script)],
            env=environment(home, PORT=str(port), **variables),
            start_new_session=True,
            stdout=output,
            stderr=output,
        )
    deployment = Running(process, port, log)
    family: list[psutil.Process] = []
    try:
        wait_for(deployment, deployment.answers, 300, "the web server to answer")
        yield deployment
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
        for one in family:
            if alive(one):
                one.kill()


def wait_for(deployment: Running, condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait, but not for a deployment that has ended; its log is in the error."""
    try:
        wait_until(lambda: deployment.process.poll() is not None or condition(), seconds, what)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; the log ends with {deployment.log.read_text()[-2000:]}") from None
    assert deployment.process.poll() is None, deployment.log.read_text()[-4000:]


def command(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment in the project's folder."""
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        env=environment(home, **variables),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
