"""What a deployment costs that has nothing to do: `python -m benchmarks.idling`; results are in RESULTS.md.

Web server, fenced daemon and code servers with everything switched on, over an empty database, beside a bare Dagster
without any definition, which is what Dagster itself costs. Both are measured at the same time, so that whatever else
the machine does falls on both. Counted: processor time of all processes, those that ended included; runs launched;
ticks written; and growth of all databases in the home folder, free pages included.

What belongs here: starting both, and counting.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.report import machine
from ops_pipeline_tests.servers import free_port, wait_until

PROJECT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
HOURLY = (
    "hourly_model_usage_job",
    "daily_model_usage_job",
    "monthly_model_usage_job",
    "usage_report_job",
    "run_maintenance",
)
"""Jobs that have something to do once an hour has passed, though nothing was called in it."""
SECONDS_A_DAY = 86_400
SECONDS_AN_HOUR = 3600
QUIET_SECONDS = 30.0
"""After the last run of the start, before anything is counted."""
FIRST_LOOKS_SECONDS = 300
"""Looks of every five minutes: what they see for the first time is told by a run."""
LONGEST_START_SECONDS = 700.0
BARE = {"dagster.yaml": "telemetry:\n  enabled: false\n", "workspace.yaml": "load_from:\n  - python_file: bare.py\n"}
BARE_DEFINITIONS = "from dagster import Definitions\n\ndefs = Definitions()\n"
SERVICES = """services:
  - {name: shell, description: Always there., recovery: none, check: {kind: command, command: [/bin/true]}}
"""
RUNS, TICKS = "history/runs.db", "schedules/schedules.db"
ENDED = "('SUCCESS', 'FAILURE', 'CANCELED')"
WORDS = (
    ("api grpc", "code server"),
    ("webserver", "web server"),
    ("defs.daemon", "daemon"),
    ("dagster-daemon", "daemon"),
    ("ops-pipeline daemon", "leader"),
)


@dataclass(frozen=True)
class Counts:
    """What was counted at one moment."""

    at: float
    cpu: Counter[str]
    runs: Counter[str]
    ticks: int
    stored: int


@dataclass(frozen=True)
class Deployment:
    """A deployment at work: its DAGSTER_HOME, and the processes that were started for it."""

    home: Path
    processes: tuple[subprocess.Popen[bytes], ...]

    def family(self) -> list[psutil.Process]:
        """All of its processes."""
        parents = [psutil.Process(process.pid) for process in self.processes]
        return [one for parent in parents for one in (parent, *parent.children(recursive=True))]

    def memory(self) -> int:
        """Resident bytes; what processes share is divided between them."""
        total = 0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def quiet(self) -> bool:
        """Whether the web server and the daemon have begun, and all runs have ended."""
        with suppress(sqlite3.OperationalError):
            beats = _ask(self.home / RUNS, "SELECT count(*) FROM daemon_heartbeats")
            waiting = _ask(self.home / RUNS, f"SELECT count(*) FROM runs WHERE status NOT IN {ENDED}")
            return beats > 0 and waiting == 0
        return False

    def count(self) -> Counts:
        """Processor seconds by kind of process, with those of children that have ended; runs, ticks and bytes."""
        cpu: Counter[str] = Counter()
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                word = next((word for mark, word in WORDS if mark in line), "others")
                cpu[word] += sum(process.cpu_times()[:4])
        with closing(sqlite3.connect(self.home / RUNS, timeout=30)) as connection:
            runs = Counter(job for (job,) in connection.execute("SELECT pipeline_name FROM runs"))
        ticks = _ask(self.home / TICKS, "SELECT coalesce(max(id), 0) FROM job_ticks")
        return Counts(time.monotonic(), cpu, runs, ticks, _stored(self.home))


def _ask(file: Path, question: str) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=30)) as connection:
        return int(connection.execute(question).fetchone()[0])


def _stored(home: Path) -> int:
    """Bytes of all files in a home; of databases their pages, since their logs are written over and over."""
    total = 0
    for file in home.rglob("*"):
        with suppress(FileNotFoundError):
            if file.suffix == ".db":
                total += _ask(file, "PRAGMA page_count") * _ask(file, "PRAGMA page_size")
            elif file.is_file() and not file.name.endswith(("-wal", "-shm", "-journal")):
                total += file.stat().st_size
    return total


@contextmanager
def ours(folder: Path) -> Generator[Deployment]:
    """This deployment, as `make run` starts it, with all that it can look at and an empty database."""
    home = folder / "home"
    home.mkdir(parents=True)
    (folder / "apps").mkdir()
    (folder / "services.yaml").write_text(SERVICES)
    variables = {
        "DAGSTER_HOME": str(home),
        "PORT": str(free_port()),
        "LIBVIRT_URI": "test:///default",
        "SERVICES_FILE": str(folder / "services.yaml"),
        "GENERATED_APPS_DIR": str(folder / "apps"),
        "MAINTENANCE_AUTO_START": "true",
    }
    environment = {**_shell(), **variables}
    command = str(BIN / "ops-pipeline")
    subprocess.run([command, "migrate"], env=environment, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    with _started([command, "with-home", "scripts/serve.sh"], environment, PROJECT, folder / "log") as process:
        yield Deployment(home, (process,))


@contextmanager
def bare(folder: Path) -> Generator[Deployment]:
    """Dagster's web server and daemon without any definition."""
    home = folder / "home"
    home.mkdir(parents=True)
    for name, content in {**BARE, "bare.py": BARE_DEFINITIONS}.items():
        (home / name).write_text(content)
    environment = {**_shell(), "DAGSTER_HOME": str(home)}
    # Web server and daemon, started at the same time, would both make the tables.
    prepare = "from dagster import DagsterInstance; DagsterInstance.get().dispose()"
    subprocess.run([sys.executable, "-c", prepare], env=environment, cwd=home, check=True)
    web = [str(BIN / "dagster-webserver"), "--port", str(free_port()), "--log-level", "warning"]
    with (
        _started([str(BIN / "dagster-daemon"), "run"], environment, home, folder / "daemon.log") as daemon,
        _started(web, environment, home, folder / "web.log") as server,
    ):
        yield Deployment(home, (daemon, server))


def _shell() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], folder: Path, log: Path
) -> Generator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            # Not SIGINT: what a shell starts in the background ignores it, and so does all that this starts.
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def settle(deployment: Deployment, looked: float) -> None:
    """Wait until the start is over: everything has looked once, all runs have ended, none was launched for a while."""
    since = time.monotonic()

    def settled() -> bool:
        nonlocal since
        if not deployment.quiet():
            since = time.monotonic()
        time.sleep(1)
        return time.time() > looked and time.monotonic() - since > QUIET_SECONDS

    wait_until(settled, LONGEST_START_SECONDS, f"{deployment.home} to have nothing to do")


def compare(before: Counts, after: Counts) -> dict[str, Any]:
    """Rates between two counts."""
    seconds = after.at - before.at
    # Not `-`, which drops what is negative: the seconds of a process that ended are its parent's from then on.
    cpu = Counter(after.cpu)
    cpu.subtract(before.cpu)
    return {
        "cpu_seconds_per_hour": round(cpu.total() * SECONDS_AN_HOUR / seconds),
        "by_process": {word: round(one * SECONDS_AN_HOUR / seconds) for word, one in cpu.most_common()},
        "ticks_per_minute": round((after.ticks - before.ticks) * 60 / seconds, 1),
        "bytes_per_day": round((after.stored - before.stored) * SECONDS_A_DAY / seconds),
        "runs": dict(after.runs - before.runs),
    }


@click.command(context_settings={"show_default": True})
@click.option("--minutes", default=10.0, type=click.FloatRange(min=0.1), help="For how long to count.")
@click.option("--keep", type=click.Path(path_type=Path), help="A new folder for homes and logs, which stay.")
def main(*, minutes: float, keep: Path | None) -> None:
    """Count what idling costs."""
    with tempfile.TemporaryDirectory(prefix="ops_pipeline_idling_") as name:
        folder = keep or Path(name)
        with bare(folder / "bare") as floor, ours(folder / "ours") as deployment:
            print("starting both, and waiting until they have nothing to do", file=sys.stderr, flush=True)
            both = (floor, deployment)
            looked = (time.time() // FIRST_LOOKS_SECONDS + 1) * FIRST_LOOKS_SECONDS + QUIET_SECONDS
            for one in both:
                settle(one, looked)
            where = machine()
            before = [one.count() for one in both]
            time.sleep(minutes * 60)
            after = [one.count() for one in both]
            memory = [one.memory() for one in both]
    idle, used = (compare(first, last) for first, last in zip(before, after, strict=True))
    report = {"machine": where, "minutes": minutes, "bare": idle, "ours": used}
    for told, size in zip((idle, used), memory, strict=True):
        told["memory_bytes"] = size
    print(json.dumps(report, indent=1))
    extra = {job: runs for job, runs in used["runs"].items() if job not in HOURLY}
    print(f"runs launched beyond the hourly ones: {extra or 'none'}")
    ratio = used["cpu_seconds_per_hour"] / idle["cpu_seconds_per_hour"]
    print(f"processor time: {ratio:.1f} x a bare Dagster, {used['cpu_seconds_per_hour'] / 36:.1f} % of one core")
    sys.exit(1 if extra else 0)


if __name__ == "__main__":
    main()
