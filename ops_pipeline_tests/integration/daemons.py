"""A real Dagster daemon over a deployment, without a web server.

What belongs here: starting and stopping it, for tests and benchmarks of how soon something follows.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ops_pipeline.database.engine import connect, sqlite_url
from ops_pipeline.database.migrate import migrate
from ops_pipeline_tests.integration.processes import BIN, PROJECT, environment


@contextmanager
def daemon(home: Path, **variables: str) -> Iterator[str]:
    """Run a daemon on a home of its own; gives the URL of its operations database.

    No hour of model calls is wanted, so nothing but what the variables ask for is launched.
    """
    home.mkdir(parents=True)
    url = sqlite_url(home)
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0).isoformat()
    command = [str(BIN / "ops-pipeline"), "with-home", str(BIN / "dagster-daemon"), "run"]
    with (home / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workspace", "workspace.yaml", "--log-level", "warning"],
            cwd=PROJECT,
            env=environment(home, **{"MODEL_CALL_STATS_START": start, **variables}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
