"""A month of hours through Dagster, as a user on a command line would launch it.

What belongs here: a Dagster home, the process, and what it left in the run storage.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.child import peak_bytes
from benchmarks.databases import Database
from ops_pipeline.defs.usage.partitions import hour_key
from ops_pipeline.usage.hours import HOUR, Window

PROJECT = Path(__file__).parent.parent
COMMANDS = Path(sys.executable).parent


@dataclass(frozen=True)
class DagsterRun:
    """How a launch went.

    Attributes:
        wall_seconds: from starting the command to its end.
        run_seconds: from the start to the success of the run, by Dagster's own record.
        peak_bytes: the most memory of its process.
        status: SUCCESS, or what else.
    """

    wall_seconds: float
    run_seconds: float
    peak_bytes: int
    status: str


def launch(database: Database, window: Window, folder: Path, *, storage: str) -> DagsterRun:
    """Materialize the hours of a window in one run.

    Args:
        database: the operations database.
        window: the hours.
        folder: where DAGSTER_HOME is made.
        storage: `sqlite` (Dagster's default) or `postgresql`, in the operations database's server.

    Raises:
        RuntimeError: the command failed; the end of its output is in the message.
    """
    home = Path(tempfile.mkdtemp(prefix=f"dagster_home_{storage}_", dir=folder))
    environment = _environment(database, home, window.start, storage)
    first, last = hour_key(window.start), hour_key(window.end - HOUR)
    command = [COMMANDS / "dagster", "asset", "materialize", "--select", "hourly_model_usage"]
    command += ["--partition-range", f"{first}...{last}", "-m", "ops_pipeline.definitions"]
    log = home / "output.log"
    started = time.perf_counter()
    with log.open("w") as output:
        # Not the project's folder: a developer's .env there would change what is measured.
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(str(process.pid)))
            time.sleep(0.05)
    wall = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed:\n{log.read_text()[-3000:]}")
    record = json.loads(_output([sys.executable, "-m", "benchmarks.child", "last-run"], environment))
    return DagsterRun(wall, (record["ended"] or 0) - (record["started"] or 0), peak, record["status"])


def _environment(database: Database, home: Path, start: datetime, storage: str) -> dict[str, str]:
    """Dagster's variables, prepared by the same command as for `make run`."""
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "DATABASE_URL": database.url,
        "MODEL_CALL_STATS_START": start.isoformat(),
    }
    exports = _output([COMMANDS / "ops-pipeline", "home"], environment)
    for name, value in re.findall(r"^export (\w+)=(.*)$", exports, re.MULTILINE):
        environment[name] = shlex.split(value)[0]
    if storage == "sqlite":
        (home / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text())
    return environment


def _output(command: list[Path | str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
    return done.stdout
