"""A month of hours through Dagster, as a user on a command line would launch it.

What belongs here: a Dagster home, the process, and what it left in the run storage.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import peak_bytes
from benchmarks.report import Reading
from benchmarks.scene import Scene
from ops_pipeline.defs.usage.partitions import hour_key
from ops_pipeline.operations.home import prepare_home
from ops_pipeline.settings import load_settings
from ops_pipeline.usage.hours import HOUR

PROJECT = Path(__file__).parent.parent
COMMANDS = Path(sys.executable).parent


@dataclass(frozen=True)
class DagsterRun:
    """How a launch went.

    Attributes:
        cost: from starting the command to its end.
        run_seconds: from the start to the success of the run, by Dagster's own record.
        peak_bytes: the most memory of its process.
        status: SUCCESS, or what else.
    """

    cost: Reading
    run_seconds: float
    peak_bytes: int
    status: str


def launch(scene: Scene, folder: Path, storage: str) -> DagsterRun:
    """Materialize all hours in one run.

    Args:
        scene: the operations database, emptied.
        folder: where DAGSTER_HOME is made.
        storage: `sqlite` (Dagster's default) or `postgresql`, in the operations database's server.

    Raises:
        RuntimeError: the command failed; the end of its output is in the message.
    """
    home = Path(tempfile.mkdtemp(prefix=f"dagster_home_{storage}_", dir=folder))
    environment = _environment(scene, home, storage)
    first, last = hour_key(scene.window.start), hour_key(scene.window.end - HOUR)
    command = [COMMANDS / "dagster", "asset", "materialize", "--select", "hourly_model_usage"]
    command += ["--partition-range", f"{first}...{last}", "-m", "ops_pipeline.definitions"]
    peaks: list[int] = []
    cost = scene.measure(lambda: peaks.append(_watched(command, home, environment)))
    record = json.loads(_output([sys.executable, "-m", "benchmarks.child", "last-run"], environment))
    return DagsterRun(cost, (record["ended"] or 0) - (record["started"] or 0), peaks[0], record["status"])


def _watched(command: Sequence[Path | str], home: Path, environment: dict[str, str]) -> int:
    """Run a command to its end; returns its peak of memory."""
    log = home / "output.log"
    with log.open("w") as output:
        # Not in the project's folder: a developer's .env there would change what is measured.
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(str(process.pid)))
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed:\n{log.read_text()[-3000:]}")
    return peak


def _environment(scene: Scene, home: Path, storage: str) -> dict[str, str]:
    """Dagster's variables, prepared as for `make run`."""
    start = scene.window.start
    settings = load_settings(dagster_home=home, database_url=scene.database.url, model_call_stats_start=start)
    variables = prepare_home(settings, PROJECT, lambda _: start)
    if storage == "sqlite":
        (home / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text())
    return {
        **os.environ,
        **variables,
        "DAGSTER_HOME": str(home),
        "DATABASE_URL": scene.database.url,
        "MODEL_CALL_STATS_START": start.isoformat(),
    }


def _output(command: Sequence[Path | str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
    return done.stdout
