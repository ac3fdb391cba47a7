"""A distinctive secret in every place that takes one is found in nothing that a deployment prints, stores or sends."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ops_pipeline.database.engine import connect, reading
from ops_pipeline.operations.home import DAGSTER_SCHEMA
from ops_pipeline.operations.tables import alerts, job_outcomes
from ops_pipeline.services.tables import service_states
from ops_pipeline.settings import secret_file_variables
from ops_pipeline_tests.integration.processes import BIN, PROJECT, command, environment
from ops_pipeline_tests.servers import PostgresServer, free_port
from ops_pipeline_tests.usage.calls import call, rows, write

MARK = "Gehe1m"
"""A part of every secret, so that one cut in half is found too."""
NOWHERE = "127.0.0.1:1"
FAILING = ("cleanup_checkpoints", "update_vm_status", "run_maintenance")
JOBS = (*FAILING, "check_running_services", "check_model_status", "cleanup_stale_model_calls", "flush_firewall")
SERVICES = """
services:
  - {name: database, description: It., recovery: none, check: {kind: postgresql, url_env: OTHER_DATABASE_URL}}
  - {name: nowhere, description: It., recovery: none, check: {kind: postgresql, url_env: LOST_DATABASE_URL}}
  - {name: cache, description: It., recovery: none, check: {kind: redis, url_env: OTHER_REDIS_URL}}
  - {name: odd, description: It., recovery: none, check: {kind: redis, url_env: ODD_URL}}
  - {name: locked, description: It., recovery: none, check: {kind: postgresql, url_env: LOCKED_URL}}
"""
PROBES = """
models:
  - {provider: p, base_url: "http://127.0.0.1:PORT/v1", model: m, type: chatCompletion, api_key_env: MODEL_KEY}
"""
ALERTS = """
channels:
  - {name: night-shift, kind: slack, url_env: NIGHT_SHIFT_URL}
  - {name: broken, kind: apprise, url_env: BROKEN_URL}
routes:
  - {match: "*", channels: [webhook, email, apprise, night-shift, broken]}
"""


class Chatty(BaseHTTPRequestHandler):
    """A provider and a webhook that refuse, and repeat what they were told."""

    def do_POST(self) -> None:
        """Refuse."""
        told = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(told)  # type: ignore[attr-defined]
        self.send_response(401)
        self.end_headers()
        refused = {"error": {"message": f"{self.headers.get('Authorization')} is refused at {self.path}"}}
        self.wfile.write(json.dumps(refused).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def chatty() -> Iterator[tuple[int, list[bytes]]]:
    """Its port, and what it received."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chatty)
    received: list[bytes] = []
    server.received = received  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def planted(server: PostgresServer, database: str, port: int) -> dict[str, str]:
    """A secret in every variable that takes one; each differs, so that what leaks is known."""
    password = f"{MARK}0"
    server.guard_role("planted", "scram-sha-256", password)
    server.execute("ALTER ROLE planted SUPERUSER")
    url = server.url(database, "planted", password)
    return {
        "DATABASE_URL": url,
        "DAGSTER_POSTGRES_URL": f"{url.replace('+psycopg:', '+psycopg2:')}?options=-csearch_path%3D{DAGSTER_SCHEMA}",
        "CHECKPOINT_REDIS_URL": f"redis://:{MARK}1@{NOWHERE}/2",
        "NAUTOBOT_REDIS_PASSWORD": f"{MARK}2",
        "ALERT_WEBHOOK_URL": f"http://127.0.0.1:{port}/{MARK}3",
        "ALERT_SMTP_URL": f"smtp://ops:{MARK}4@{NOWHERE}",
        "ALERT_APPRISE_URL": f"json://ops:{MARK}5@127.0.0.1:{port}/{MARK}5",
        "OTHER_DATABASE_URL": url.replace(password, f"{MARK}6"),
        "LOST_DATABASE_URL": f"postgresql://ops:{MARK}7@{NOWHERE}/ops",
        "OTHER_REDIS_URL": f"rediss://:{MARK}8@{NOWHERE}/0",
        "ODD_URL": f"{MARK}9 is no URL",
        "LOCKED_URL": f"postgresql://ops:{MARK}@10@{NOWHERE}/ops?password={MARK}11",
        "MODEL_KEY": f"sk-{MARK}12",
        "NIGHT_SHIFT_URL": f"http://127.0.0.1:{port}/{MARK}13",
        "BROKEN_URL": f"{MARK}14://{MARK}14",
    }


def leaks(where: str, content: bytes | str) -> list[str]:
    """Each place of a secret, with what stands around it."""
    data = content if isinstance(content, bytes) else content.encode()
    around = re.compile(rb".{0,80}" + MARK.encode() + rb".{0,20}", re.IGNORECASE)
    return [f"{where}: {found.decode(errors='replace')}" for found in around.findall(data)]


def pages(home: Path, variables: dict[str, str]) -> dict[str, str]:
    """What `ops-pipeline metrics` serves and prints."""
    port = free_port()
    arguments = [str(BIN / "ops-pipeline"), "metrics", "--port", str(port)]
    found: dict[str, str] = {}
    with subprocess.Popen(
        arguments,
        env=environment(home, **variables),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            found["its first line"] = process.stdout.readline()
            for page in ("metrics", "livez", "readyz", "health"):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=60) as answer:
                        found[page] = answer.read().decode()
                except urllib.error.HTTPError as error:
                    found[page] = error.read().decode()
        finally:
            process.terminate()
        found["its other lines"] = process.stdout.read()
    return found


def test_no_secret_is_found_in_anything_that_a_deployment_leaves(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    database = postgres_server.new_database().rpartition("/")[2]
    postgres_server.execute(f"CREATE SCHEMA {DAGSTER_SCHEMA}", database)
    home, files = tmp_path / "home", tmp_path / "files"
    files.mkdir()
    said: dict[str, str] = {}
    with chatty() as (port, received):
        variables = planted(postgres_server, database, port)
        # The broker's is planted for single commands below: with it the home would be one of several machines.
        names = {f"{name}_FILE" for name in (*variables, "CELERY_BROKER_URL")}
        assert names > secret_file_variables(), "a variable has no secret here"
        for name, content in {"services": SERVICES, "model_probes": PROBES, "alerts": ALERTS}.items():
            (files / f"{name}.yaml").write_text(content.replace("PORT", str(port)))
            variables[f"{name.upper()}_FILE"] = str(files / f"{name}.yaml")
        variables |= {
            "ALERT_EMAIL_TO": "ops@example.org",
            "LIBVIRT_URI": f"qemu+unix:///system?socket={files}/none",
            "MODEL_CALL_STATS_START": "2026-03-01T00:00Z",
            "GENERATED_APPS_DIR": str(files / "none"),
        }

        def run(*arguments: str, **more: str) -> str:
            name = " ".join(Path(one).name for one in arguments)
            done = command(*arguments, home=home, **(variables | more))
            said[f"{name} {sorted(more)}"] = done.stdout + done.stderr
            return done.stdout + done.stderr

        assert "the schema went from nothing" in run("ops-pipeline", "migrate")
        engine = connect(variables["DATABASE_URL"])
        write(engine, call(datetime.fromisoformat("2026-03-01T00:10Z")))
        run("ops-pipeline", "with-home", "true")
        worked = run("python", "-m", "ops_pipeline_tests.integration.secret_work", *JOBS)
        for job in FAILING:
            assert f"{job} failed" in worked, worked[-3000:]
        for arguments in (("check",), ("health",), ("alerts", "test"), ("alerts", "list")):
            assert run("ops-pipeline", *arguments)
        assert "FAILED CHECKPOINT_REDIS_URL" in said["ops-pipeline check []"]
        for broker in (f"redis://:{MARK}19@{NOWHERE}/1", f"{MARK}20 is no URL"):
            assert "CELERY_BROKER_URL" in run("ops-pipeline", "check", CELERY_BROKER_URL=broker)
        unreachable = f"postgresql+psycopg://ops:{MARK}15@{NOWHERE}/ops"
        for arguments in (("check",), ("with-home", "true")):
            assert NOWHERE in run("ops-pipeline", *arguments, DATABASE_URL=unreachable, DAGSTER_POSTGRES_URL="")
        run("ops-pipeline", "check", DATABASE_URL=f"mysql://ops:{MARK}16@db/ops", ALERT_SMTP_URL=f"{MARK}18")
        run("ops-pipeline", "check", CHECKPOINT_REDIS_URL=f"redis://:{MARK}17@{NOWHERE}/x")
        named = {"CHECKPOINT_REDIS_URL": "", "NAUTOBOT_REDIS_HOST": "127.0.0.1", "NAUTOBOT_REDIS_PORT": "1"}
        assert "127.0.0.1:1" in run("ops-pipeline", "check", DATABASE_URL="", DAGSTER_POSTGRES_URL="", **named)
        said |= {f"page {name}": content for name, content in pages(home, variables).items()}

    # What is searched is there: the jobs failed for the reason that was planted, and people were told.
    assert {row["job"] for row in rows(engine, job_outcomes)} >= {"check_running_services", "cleanup_stale_model_calls"}
    assert len(rows(engine, service_states)) == 5
    assert len(rows(engine, alerts)) >= len(FAILING)
    assert len(received) >= 3
    assert "ops_pipeline_" in said["page metrics"]
    with reading(engine) as connection:
        tables = connection.exec_driver_sql(f"SELECT count(*) FROM {DAGSTER_SCHEMA}.event_logs").scalar_one()
    assert tables > 50
    engine.dispose()

    assert len([name for name, value in variables.items() if leaks(name, value)]) == 15, "the search finds secrets"
    found = [leak for name, content in said.items() for leak in leaks(name, content)]
    found += [leak for body in received for leak in leaks("sent", body)]
    dump = subprocess.run(
        [
            *(str(postgres_server.binaries / "pg_dump"), "-h", "127.0.0.1", "-p", str(postgres_server.port)),
            *("-U", "postgres", database),
        ],
        capture_output=True,
        check=True,
    )
    found += leaks("database", dump.stdout)
    for file in [*home.rglob("*"), *files.rglob("*")]:
        if file.is_file():
            found += leaks(str(file.relative_to(tmp_path)), file.read_bytes())
    assert found == []
