"""A deployment with something to see, and a browser on it.

What belongs here: starting both. What does not: what a person does there (`person`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import insert

from ops_pipeline.database.engine import connect, sqlite_url, writing
from ops_pipeline.usage.hours import floor_hour
from ops_pipeline.usage.tables import model_calls
from ops_pipeline_tests.integration.processes import Running, command, running, wait_for

PATIENCE_SECONDS = 600
"""For a machine that does other things as well; on a quiet one nothing here takes a tenth of it."""
TIGHT_SHARE = "0.1"
"""A sweep of the demo's checkpoints would remove nearly half of the threads."""
ODD_TYPE = "chat"
"""Not a type of call that anybody knows: the writer of the calls in which it stands means `chatCompletion`."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
STATES = "{ assetNodes { assetKey { path } partitionStats { numMaterialized numPartitions } } }"
SERVICES = """
services:
  - name: clock
    description: Keeps the time of this host.
    recovery: none
    check: {kind: command, command: ["/bin/date", "+%s"]}
  - name: billing-api
    description: Hands the numbers to billing.
    critical: true
    alert: "#billing"
    recovery: manual
    down_after: 1
    check: {kind: tcp, host: 127.0.0.1, port: 9}
    steps: Look at its log, then start it by hand.
"""


@contextmanager
def deployment(home: Path, *, days: int, calls: int, lab: bool) -> Iterator[Running]:
    """Start what `make run` starts, on demo data in which one call is odd, and with a tight limit for checkpoints.

    Args:
        home: DAGSTER_HOME, which is made.
        days: so much history.
        calls: so many calls in it.
        lab: whether applications are analysed as well, which keeps a machine busy for a while.
    """
    home.mkdir(parents=True)
    apps, services = home / "apps", home / "services.yaml"
    services.write_text(SERVICES)
    apps.mkdir()
    for words in (("migrate",), ("demo", "--days", str(days), "--calls", str(calls), "--seed", "7")):
        result = command("ops-pipeline", *words, home=home)
        assert result.returncode == 0, result.stderr
    _write_odd_call(home)
    variables = {"CHECKPOINT_MAX_SHARE": TIGHT_SHARE, "SERVICES_FILE": str(services)}
    with running(home, **variables, **({} if lab else {"GENERATED_APPS_DIR": str(apps)})) as started:
        waits_for(started, "hourly_model_usage")
        yield started
        started.stop()


def waits_for(started: Running, asset: str) -> None:
    """Wait until every partition of an asset is there."""
    wait_for(started, lambda: _filled(started, asset), PATIENCE_SECONDS, f"{asset} to be filled")


def _write_odd_call(home: Path) -> None:
    engine = connect(sqlite_url(home))
    yesterday = floor_hour(datetime.now(UTC)) - timedelta(hours=24)
    odd = {
        "id": "demo-odd",
        "provider": "openai",
        "model": "gpt-4o",
        "type": ODD_TYPE,
        "status": "success",
        "called_at": yesterday + timedelta(minutes=7),
    }
    with writing(engine) as connection:
        connection.execute(insert(model_calls), [odd])
    engine.dispose()


def _filled(started: Running, asset: str) -> bool:
    stats = {one["assetKey"]["path"][0]: one["partitionStats"] for one in started.graphql(STATES)["assetNodes"]}
    # Until the code is loaded there are no assets.
    return asset in stats and 0 < stats[asset]["numMaterialized"] == stats[asset]["numPartitions"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium without a window; a browser of Playwright's own is not needed."""
    binary = shutil.which("chromium")
    assert binary, "Chromium is not installed: scripts/install-servers.sh does that"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS, env=dict(os.environ))
        yield browser
        browser.close()
