"""The roles of deploy/postgres/roles.sql: jobs of every domain run under them, and each may do its work and no more."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from dagster import DagsterInstance, ExecuteInProcessResult, OpDefinition
from dagster._core.definitions.dependency import Node
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, Engine, delete, func, insert, inspect, select, text, update
from sqlalchemy.exc import ProgrammingError

from ops_pipeline.analysis.pipelines.tables import pipelines
from ops_pipeline.analysis.submitting import submit_task
from ops_pipeline.analysis.tables import analysis_tasks, generated_applications
from ops_pipeline.cli import main
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.migrate import VERSION_TABLE, migrate
from ops_pipeline.definitions import defs
from ops_pipeline.defs.watching import measurers, repository_of_deployment
from ops_pipeline.hypervisor.tables import gpus, machines
from ops_pipeline.operations.alerts.store import read_open
from ops_pipeline.operations.exposition import MeasureCollector
from ops_pipeline.operations.fences import PostgresFence
from ops_pipeline.operations.home import prepare_home
from ops_pipeline.operations.tables import alerts, job_outcomes
from ops_pipeline.services.tables import service_states
from ops_pipeline.settings import load_settings
from ops_pipeline.usage.tables import hourly_model_usage, model_calls, usage_hours
from ops_pipeline_tests.checkpoints.redis_servers import redis_server
from ops_pipeline_tests.database.test_migrate import ALL_METADATA
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.defs.test_model_status import probes_file
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain
from ops_pipeline_tests.hypervisor.scenes import add_machines, fleet
from ops_pipeline_tests.integration.processes import PROJECT
from ops_pipeline_tests.servers import PostgresServer
from ops_pipeline_tests.usage.calls import call, rows
from ops_pipeline_tests.usage.probes.provider import provider

ROLES = PROJECT / "deploy" / "postgres" / "roles.sql"
HOUR = datetime(2026, 3, 1, tzinfo=UTC)
JOBS = [name for name in defs.get_repository_def().job_names if not name.startswith("__")]
DOMAINS = ("usage", "hypervisor", "services", "analysis", "maintenance", "operations")


@dataclass(frozen=True)
class Guarded:
    """A database with the roles, migrated by the migrator."""

    server: PostgresServer
    name: str
    prefix: str

    def url(self, role: str) -> str:
        """The URL for a login."""
        return self.server.url(self.name, f"{self.prefix}_{role}")

    def grant(self) -> None:
        """Run the script, as an operator does."""
        psql = [str(self.server.binaries / "psql"), "-X", "-h", "127.0.0.1", "-p", str(self.server.port)]
        done = subprocess.run(
            [*psql, "-U", "postgres", "-d", self.name, "-v", f"prefix={self.prefix}", "-f", str(ROLES)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "PGOPTIONS": "-c client_min_messages=warning"},
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def guarded(postgres_server: PostgresServer) -> Iterator[Guarded]:
    """The order of the README: roles, migration as the migrator, roles again."""
    url = postgres_server.new_database("template0")
    made = Guarded(postgres_server, url.rpartition("/")[2], f"t{uuid.uuid4().hex[:8]}")
    made.grant()
    engine = connect(made.url("migrator"))
    migrate(engine)
    engine.dispose()
    made.grant()
    yield made
    postgres_server.drop_database(url)
    roles = ("migrator", "jobs", "gateway", "platform", "lab", "reader", *(f"domain_{name}" for name in DOMAINS))
    for role in roles:
        postgres_server.execute(f"DROP ROLE {made.prefix}_{role}")


@pytest.fixture
def role(guarded: Guarded) -> Iterator[Callable[[str], Engine]]:
    """An engine that logs in as one of the roles."""
    engines: list[Engine] = []

    def log_in(name: str) -> Engine:
        engines.append(connect(guarded.url(name)))
        return engines[-1]

    yield log_in
    for engine in engines:
        engine.dispose()


def refused(engine: Engine, work: Callable[[Connection], object]) -> None:
    forbidden = pytest.raises((DatabaseProblem, ProgrammingError), match=r"permission denied|must be owner")
    with forbidden, writing(engine) as connection:
        work(connection)


def test_every_table_belongs_to_the_migrator_and_to_some_domain(
    guarded: Guarded, role: Callable[[str], Engine]
) -> None:
    """A table that a migration adds and the script forgets is found here, and not by a job at night."""
    tables = {table.name for metadata in ALL_METADATA for table in metadata.sorted_tables}
    question = text(
        "SELECT c.relname, pg_get_userbyid(c.relowner),"
        " array(SELECT DISTINCT (aclexplode(c.relacl)).grantee::regrole::text)"
        " FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace"
    )
    with reading(role("jobs")) as connection:
        found = {name: (owner, set(granted)) for name, owner, granted in connection.execute(question)}
    assert set(found) == tables | {VERSION_TABLE}
    assert {owner for owner, _ in found.values()} == {f"{guarded.prefix}_migrator"}
    domains = {f"{guarded.prefix}_domain_{name}" for name in DOMAINS}
    assert [name for name, (_, granted) in found.items() if not granted & domains] == []


@contextmanager
def deployed(jobs: Engine, others: dict[str, Engine], folder: Path) -> Iterator[Deployment]:
    """A deployment with something to do for every job; what its jobs find was written by those who write it."""
    old = datetime.now(UTC) - timedelta(days=60)
    with writing(others["gateway"]) as connection:
        connection.execute(insert(model_calls), [call(HOUR, id="first"), call(HOUR, id="stale", status="processing")])
        done = update(model_calls).where(model_calls.c.id == "first", model_calls.c.status != "failed")
        assert connection.execute(done.values(status="success")).rowcount == 1
    add_machines(others["platform"], {"id": "a", "status": "running"}, {"id": "b", "status": "running"})
    with writing(others["lab"]) as connection:
        app = {"model_slug": "gpt", "version": 1}
        connection.execute(insert(generated_applications), [{"id": "here", "app_number": 1} | app])
        ended = {"status": "completed", "created_at": old, "updated_at": old, "completed_at": old}
        connection.execute(insert(analysis_tasks), [{"id": "old", "service": "s", "target": "gpt/app1"} | ended])
    submit_task(others["lab"], ["static"], "gpt/app1")

    (folder / "apps" / "gpt" / "app1").mkdir(parents=True)
    services = folder / "services.yaml"
    services.write_text(
        "services:\n  - {name: sh, description: It., recovery: none, check: {kind: command, command: [/bin/true]}}\n"
    )
    fleet(folder / "fleet.xml", [TestDomain("a")])
    (folder / "dagster").mkdir()
    with (
        redis_server() as redis,
        provider() as models,
        DagsterInstance.local_temp(str(folder / "dagster")) as instance,
    ):
        yield deployment(
            jobs,
            instance,
            libvirt_uri=f"test://{folder}/fleet.xml",
            services_file=services,
            model_probes_file=probes_file(folder, models, "chat"),
            generated_apps_dir=str(folder / "apps"),
            analysis_results_dir=folder / "results",
            maintenance_archive=str(folder / "archive"),
            reports_dir=folder / "reports",
            checkpoint_redis_url=redis.url(),
            analyzer_urls={},
            analysis_worker_linger_seconds=1,
        )


def test_jobs_of_every_domain_run_under_their_role_and_dry_runs_write_nothing(
    guarded: Guarded, role: Callable[[str], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = role("jobs")
    monkeypatch.setenv("PROBE_KEY", "sk-of-nobody")
    with deployed(jobs, {name: role(name) for name in ("gateway", "platform", "lab")}, tmp_path) as home:
        before = everything(jobs)
        for job in JOBS:
            tried = dry_run(home, job)
            assert tried.success, (job, [event for event in tried.all_events if event.is_failure])
            assert everything(jobs) == before, f"a dry run of {job} wrote something, if only an outcome"
        assert not (tmp_path / "reports").exists() and not (tmp_path / "archive").exists()

        assert home.run("hourly_model_usage_job", "2026-03-01-00:00").success
        assert home.run("daily_model_usage_job", "2026-03-01").success
        assert home.run("monthly_model_usage_job", "2026-03-01").success
        assert home.run("usage_report_job", "2026-03-01").success
        for job in (
            "check_model_status",
            "cleanup_stale_model_calls",
            "update_vm_status",
            "update_graphics_information",
            "flush_firewall",
            "check_running_services",
            "advance_pipelines",
            "recover_analysis_tasks",
            "execute_analysis_tasks",
            "cleanup_checkpoints",
            "run_maintenance",
            "prune_dagster_storage",
        ):
            result = home.run_job(job)
            assert result.success, [event for event in result.all_events if event.is_failure]
        for sensor in ("late_model_calls_sensor", "usage_partition_status_sensor", "alerts_sensor", "pipelines_sensor"):
            home.sense(sensor)
        asked = measurers(load_settings(), repository_of_deployment())
        registry = CollectorRegistry(auto_describe=False)
        registry.register(MeasureCollector(jobs, asked))
        assert [registry.get_sample_value("ops_pipeline_up", {"domain": name}) for name in asked] == [1] * len(asked)
    assert sum(row["calls"] for row in rows(jobs, hourly_model_usage)) == 2
    assert {row["id"]: row["status"] for row in rows(jobs, model_calls)} == {"first": "success", "stale": "failed"}
    assert {row["name"] for row in rows(jobs, service_states)} == {"sh"}
    assert "old" not in {row["id"] for row in rows(jobs, analysis_tasks)}
    reported = {row["job"] for row in rows(jobs, job_outcomes)}
    # Reports are files, and have none.
    assert reported | {"usage_report"} == {job.removesuffix("_job") for job in JOBS}
    with reading(jobs) as connection:
        read_open(connection)

    commands_work(guarded, tmp_path, monkeypatch)
    assert "old" in {row["id"] for row in rows(jobs, analysis_tasks)}


def commands_work(guarded: Guarded, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` finds all rights, and what maintenance removed is put back."""
    monkeypatch.setenv("DATABASE_URL", guarded.url("jobs"))
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "home"))
    monkeypatch.setenv("MODEL_CALL_STATS_START", HOUR.isoformat())
    checked = CliRunner().invoke(main, ["check"])
    assert checked.exit_code == 0, checked.output
    assert "tables: can be read and written" in checked.output

    monkeypatch.setenv("MAINTENANCE_ARCHIVE", str(folder / "archive"))
    archives = [line.split()[0] for line in CliRunner().invoke(main, ["archive", "list"]).output.splitlines()]
    restored = [CliRunner().invoke(main, ["archive", "restore", name]) for name in archives]
    assert [one.output for one in restored if one.exit_code] == []


def everything(engine: Engine) -> dict[str, list[object]]:
    """All rows of all tables but those of locks, in a comparable form."""
    with reading(engine) as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for metadata in ALL_METADATA
            for table in metadata.sorted_tables
            if table.name != "leases"
        }


def dry_run(home: Deployment, job: str) -> ExecuteInProcessResult:
    """Run a job dry: every op that takes `dry_run` is told so, and there is at least one in each job."""
    nodes = home.definitions.resolve_job_def(job).nodes
    config = {node.name: {"dry_run": True} for node in nodes if "dry_run" in fields_of(node)}
    assert config, f"{job} knows no dry_run"
    if job.endswith("_job"):
        key = "2026-03-01-00:00" if job.startswith("hourly") else "2026-03-01"
        return home.run(job, key, **config[job.removesuffix("_job")])
    return home.run_job(job, **config)


def fields_of(node: Node) -> Collection[str]:
    """The names of an op's config."""
    field = node.definition.config_field if isinstance(node.definition, OpDefinition) else None
    return getattr(field.config_type, "fields", {}) if field else ()


def test_dagster_keeps_its_own_tables_and_the_lead_under_the_role_of_the_jobs(guarded: Guarded, tmp_path: Path) -> None:
    settings = load_settings(dagster_home=tmp_path / "home", database_url=guarded.url("jobs"))
    url = prepare_home(settings, PROJECT, lambda _: HOUR)["DAGSTER_POSTGRES_URL"]
    instance = (tmp_path / "home" / "dagster.yaml").read_text().replace("env: DAGSTER_POSTGRES_URL", f"'{url}'")
    (tmp_path / "home" / "dagster.yaml").write_text(instance.replace("postgres_url:\n      '", "postgres_url: '"))
    with DagsterInstance.from_config(str(tmp_path / "home")) as dagster:
        assert dagster.get_runs_count() == 0
    fence = PostgresFence(url)
    assert fence.take()
    fence.beat()
    fence.release()


def test_each_narrower_role_may_not_do_more_than_its_work(role: Callable[[str], Engine]) -> None:
    reader, gateway, platform, lab, jobs = map(role, ("reader", "gateway", "platform", "lab", "jobs"))
    with reading(reader) as connection:
        for table in (hourly_model_usage, usage_hours, job_outcomes, service_states):
            connection.execute(select(func.count()).select_from(table)).scalar_one()
    for table in (model_calls, alerts, analysis_tasks, machines):
        refused(reader, lambda connection, table=table: connection.execute(select(table)).all())
    for table in (hourly_model_usage, usage_hours, job_outcomes, model_calls):
        refused(reader, lambda connection, table=table: connection.execute(delete(table)))
        refused(gateway, lambda connection, table=table: connection.execute(delete(table)))
    for engine in (gateway, platform, lab):
        refused(engine, lambda connection: connection.execute(select(hourly_model_usage)).all())
        refused(engine, lambda connection: connection.execute(select(model_calls)).all())
    refused(gateway, lambda connection: connection.execute(select(model_calls.c.user_id)).all())
    refused(gateway, lambda connection: connection.execute(update(usage_hours).values(calls=0)))
    refused(platform, lambda connection: connection.execute(update(gpus).values(state="free")))
    refused(platform, lambda connection: connection.execute(select(analysis_tasks)).all())
    refused(lab, lambda connection: connection.execute(delete(pipelines)))
    refused(lab, lambda connection: connection.execute(update(machines).values(status="off")))
    for name, engine in {"reader": reader, "gateway": gateway, "platform": platform, "lab": lab, "jobs": jobs}.items():
        refused(engine, lambda connection: connection.execute(text("CREATE TABLE mine (id int)")))
        refused(engine, lambda connection: connection.execute(text("DROP TABLE model_calls")))
        refused(engine, lambda connection: connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'x'")))
        if name != "jobs":
            refused(engine, lambda connection: connection.execute(text("CREATE TEMPORARY TABLE mine (id int)")))
            refused(engine, lambda connection: connection.execute(text("CREATE TABLE dagster.mine (id int)")))


def test_a_domain_alone_reaches_no_table_of_another(guarded: Guarded) -> None:
    """For a deployment that runs some domains only: jobs that are broken or broken into stay within theirs."""
    alone = f"{guarded.prefix}_services_only"
    guarded.server.execute(f"CREATE ROLE {alone} LOGIN", guarded.name)
    for domain in ("services", "operations"):
        guarded.server.execute(f"GRANT {guarded.prefix}_domain_{domain} TO {alone}", guarded.name)
    guarded.server.execute(f"GRANT CONNECT ON DATABASE {guarded.name} TO {alone}", guarded.name)
    guarded.server.execute(f"GRANT USAGE ON SCHEMA public TO {alone}", guarded.name)
    engine = connect(guarded.server.url(guarded.name, alone))
    mine = {"service_states", "service_events", "job_outcomes", "alerts", "alert_messages", "leases"}
    for metadata in ALL_METADATA:
        for table in metadata.sorted_tables:
            if table.name in mine:
                rows(engine, table)
            else:
                refused(engine, lambda connection, table=table: connection.execute(select(table)).all())
    engine.dispose()
    guarded.server.execute(f"DROP OWNED BY {alone}", guarded.name)
    guarded.server.execute(f"DROP ROLE {alone}")


def test_a_stranger_does_not_even_connect(guarded: Guarded) -> None:
    stranger = f"{guarded.prefix}_stranger"
    guarded.server.execute(f"CREATE ROLE {stranger} LOGIN")
    engine = connect(guarded.server.url(guarded.name, stranger))
    with pytest.raises(DatabaseProblem, match="permission denied for database"), reading(engine):
        pass
    engine.dispose()
    guarded.server.execute(f"DROP ROLE {stranger}")


def test_what_a_later_migration_makes_is_usable_by_the_jobs_at_once(
    guarded: Guarded, role: Callable[[str], Engine]
) -> None:
    with writing(role("migrator")) as connection:
        connection.execute(text("CREATE TABLE later (id int)"))
    with writing(role("jobs")) as connection:
        connection.execute(text("INSERT INTO later VALUES (1)"))
    refused(role("reader"), lambda connection: connection.execute(text("SELECT * FROM later")))
    guarded.grant()
    with writing(role("migrator")) as connection:
        assert inspect(connection).has_table("later")
        connection.execute(text("DROP TABLE later"))
