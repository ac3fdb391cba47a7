"""Two real daemons on one storage for minutes, killed, stopped and cut off at random: `python -m benchmarks.leader`.

Counted afterwards from Dagster's own tables: ticks and runs per schedule and minute, and how long each take-over took.

What belongs here: the disturbances and the count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._serdes import deserialize_value
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from benchmarks.leader_schedules import LAUNCHES, SKIPS
from ops_pipeline_tests.servers import PostgresServer, postgres, wait_until

PROJECT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "ops-pipeline"
WORKSPACE = "load_from:\n  - python_module:\n      module_name: benchmarks.leader_schedules\n"
STOPPED_SECONDS = 20
RESTART_SECONDS = 5
PAUSES = (25, 55)
LONGEST_TAKEOVER = 120
STARTED = "Started by the benchmark."
STATES = ("leading:", "standing by", "lead is lost", "another one leading", STARTED.lower())
"""What a line of a leader says about its lead."""


@dataclass
class Scene:
    """Two daemons over one storage."""

    server: PostgresServer
    home: Path
    url: str
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, number: int) -> None:
        """Start a daemon, or start it again as a supervisor does."""
        environment = {**os.environ, "DAGSTER_HOME": str(self.home), "DAGSTER_POSTGRES_URL": self.url}
        command = [str(COMMAND), "daemon", "--workspace", str(self.home / "workspace.yaml")]
        with (self.home / f"daemon-{number}.log").open("ab") as log:
            log.write(f"{STARTED}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons[number : number + 1] = [process]

    def ask(self, query: str) -> list[Any]:
        """Rows of a query on Dagster's storage."""
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.connect() as connection:
            return list(connection.execute(text(query)))

    def token(self) -> str:
        """Who leads, or an empty text."""
        with suppress(SQLAlchemyError):
            return next((row[0] for row in self.ask("SELECT token FROM ops_pipeline_leader")), "")
        return ""

    def scheduler(self) -> str:
        """Which daemon's scheduler gave the last sign of life."""
        with suppress(SQLAlchemyError):
            query = "SELECT daemon_id FROM daemon_heartbeats WHERE daemon_type = 'SCHEDULER'"
            return next((row[0] for row in self.ask(query)), "")
        return ""

    def leader(self) -> int:
        """The number of the daemon that leads: which said so last."""
        for number, daemon in enumerate(self.daemons):
            lines = (self.home / f"daemon-{number}.log").read_text().splitlines()
            states = [line for line in lines if any(word in line.lower() for word in STATES)]
            if daemon.poll() is None and "Leading" in states[-1]:
                return number
        raise RuntimeError(f"nobody leads; the logs are in {self.home}")


def kill_leader(scene: Scene) -> None:
    """Kill -9 the process that holds the lead; its supervisor starts it again."""
    number = scene.leader()
    scene.daemons[number].kill()
    scene.daemons[number].wait()
    time.sleep(RESTART_SECONDS)
    scene.start(number)


def kill_all_of_it(scene: Scene) -> None:
    """Kill -9 the leader, its daemon and the code server, as a machine that loses power does."""
    number = scene.leader()
    for process in _family(scene.daemons[number]):
        process.kill()
    scene.daemons[number].wait()
    time.sleep(RESTART_SECONDS)
    scene.start(number)


def stop_and_continue(scene: Scene) -> None:
    """SIGSTOP the leader with all that it started, SIGCONT later, as a paused virtual machine."""
    family = _family(scene.daemons[scene.leader()])
    for process in family:
        process.suspend()
    time.sleep(STOPPED_SECONDS)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def restart_database(scene: Scene) -> None:
    """Restart PostgreSQL without waiting for anybody."""
    scene.server.control("-m", "immediate", "-l", str(scene.server.folder / "log"), "restart")


DISTURBANCES: tuple[Callable[[Scene], None], ...] = (kill_leader, kill_all_of_it, stop_and_continue, restart_database)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@dataclass
class TakeOver:
    """One disturbance, and how long it took until somebody led, and until a scheduler was at work again."""

    what: str
    at: datetime
    led_after: float = float("inf")
    worked_after: float = float("inf")


def disturb(scene: Scene, what: Callable[[Scene], None]) -> TakeOver:
    """Disturb once, and watch the take-over meanwhile."""
    token, scheduler, began = scene.token(), scene.scheduler(), time.monotonic()
    takeover = TakeOver(getattr(what, "__name__", ""), datetime.now(UTC))
    watcher = _watcher(scene, token, scheduler, began, takeover)
    what(scene)
    watcher.join(LONGEST_TAKEOVER)
    return takeover


def _watcher(scene: Scene, token: str, scheduler: str, began: float, into: TakeOver) -> threading.Thread:
    def watch() -> None:
        with suppress(TimeoutError):
            wait_until(lambda: scene.token() not in {"", token}, LONGEST_TAKEOVER, "a new leader")
            into.led_after = time.monotonic() - began
            wait_until(lambda: scene.scheduler() not in {"", scheduler}, LONGEST_TAKEOVER, "a new scheduler")
            into.worked_after = time.monotonic() - began

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def count(scene: Scene, first: datetime, last: datetime) -> dict[str, Any]:
    """Ticks and runs per schedule and minute, from the first minute to the last."""
    ticks: Counter[tuple[str, datetime]] = Counter()
    late: list[float] = []
    for body, written in scene.ask("SELECT tick_body, create_timestamp FROM job_ticks"):
        tick = deserialize_value(body, TickData)
        if tick.status in {TickStatus.SUCCESS, TickStatus.SKIPPED}:
            ticks[tick.instigator_name, datetime.fromtimestamp(tick.timestamp, UTC)] += 1
            late.append(written.replace(tzinfo=UTC).timestamp() - tick.timestamp)
    runs: Counter[str] = Counter(row[0] for row in scene.ask("SELECT value FROM run_tags WHERE key = 'minute'"))
    minutes = [first + timedelta(minutes=one) for one in range(int((last - first).total_seconds() // 60) + 1)]
    wanted = [(name, minute) for name in (LAUNCHES, *SKIPS) for minute in minutes]
    missing = [f"{name} {minute:%H:%M}" for name, minute in wanted if not ticks[name, minute]]
    return {
        "minutes": len(minutes),
        "ticks_wanted": len(wanted),
        "ticks_once": sum(ticks[one] == 1 for one in wanted),
        "ticks_missing": missing,
        "ticks_double": [f"{name} {at:%H:%M}" for (name, at), number in ticks.items() if number > 1],
        "runs_once": sum(number == 1 for number in runs.values()),
        "runs_missing": [f"{one:%H:%M}" for one in minutes if not runs[f"{one:%H:%M}"]],
        "runs_double": [when for when, number in runs.items() if number > 1],
        "ticks_later_than_10_s": sum(one > 10 for one in late),
        "latest_seconds": round(max(late, default=0), 1),
    }


def measure(minutes: float, seed: int, keep: Path | None) -> dict[str, Any]:
    """Run two daemons and disturb them."""
    chance = random.Random(seed)  # noqa: S311 - the same seed disturbs alike
    folder = Path(tempfile.mkdtemp(prefix="ops_pipeline_leader_"))
    with postgres() as server:
        url = server.new_database().replace("+psycopg:", "+psycopg2:")
        scene = Scene(server, folder, url)
        shutil.copy(PROJECT / "deploy" / "postgres" / "dagster.yaml", folder)
        (folder / "workspace.yaml").write_text(WORKSPACE)
        try:
            scene.start(0)
            wait_until(scene.scheduler, LONGEST_TAKEOVER, "the first daemon")
            scene.start(1)
            began = datetime.now(UTC)
            # From the second full minute on: Dagster begins a new schedule with the minute after it first saw it.
            first = began.replace(second=0, microsecond=0) + timedelta(minutes=2)
            takeovers: list[TakeOver] = []
            kinds: list[Callable[[Scene], None]] = []
            time.sleep(PAUSES[0])
            while datetime.now(UTC) < began + timedelta(minutes=minutes):
                if not kinds:
                    kinds = chance.sample(DISTURBANCES, len(DISTURBANCES))
                takeovers.append(disturb(scene, kinds.pop()))
                print(f"{takeovers[-1]}", file=sys.stderr, flush=True)
                time.sleep(chance.uniform(*PAUSES))
            last = datetime.now(UTC).replace(second=0, microsecond=0)
            time.sleep(PAUSES[1])
            result = count(scene, first, last)
        finally:
            for daemon in scene.daemons:
                with suppress(psutil.NoSuchProcess):
                    for process in _family(daemon):
                        process.send_signal(signal.SIGKILL)
                daemon.wait()
            if keep is not None:
                shutil.copytree(folder, keep, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    result["takeovers"] = [
        {"what": one.what, "led_after": round(one.led_after, 1), "worked_after": round(one.worked_after, 1)}
        for one in takeovers
    ]
    result["load_average"] = os.getloadavg()
    return result


def main() -> int:
    """Measure, and print the count as JSON; 1 when a tick came twice or never."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="A folder for the logs of the daemons.")
    options = parser.parse_args()
    result = measure(options.minutes, options.seed, options.keep)
    print(json.dumps(result, indent=1))
    wrong = ("ticks_double", "ticks_missing", "runs_double", "runs_missing")
    return 1 if any(result[name] for name in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
