"""The command `ops-pipeline`, as an operator types it: what it says, what it returns, and what it never shows."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, func, insert, select

from ops_pipeline.cli import main
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.migrate import newest_version
from ops_pipeline.settings import Settings
from ops_pipeline.usage.tables import model_calls
from ops_pipeline_tests.servers import PostgresServer, free_port, wait_until
from ops_pipeline_tests.usage.calls import call, run, totals, write

PROJECT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).parent / "ops-pipeline"
SECRET = "geheim"
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DEMO = ("demo", "--days", "2", "--calls", "300", "--seed", "5", "--until", "2026-03-10T12:00Z")
COMMANDS = {
    "migrate": ("migrate",),
    "check": ("check",),
    "demo": DEMO,
    "usage": ("usage", "--from", "2026-03-10", "--to", "2026-03-10"),
    "with-home": ("with-home", "true"),
}


def ops(*arguments: str, **environment: str) -> Result:
    """Run the command in this process; whatever it prints must be free of secrets and of tracebacks."""
    result = CliRunner().invoke(main, arguments, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    return result


def done(*arguments: str, **environment: str) -> Result:
    """Run a command that must succeed."""
    result = ops(*arguments, **environment)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str, status: int = 1, **environment: str) -> str:
    """What a command says that must not succeed."""
    result = ops(*arguments, **environment)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, named by DATABASE_URL."""
    found = f"sqlite:///{tmp_path / 'operations.db'}"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        found = server.new_database()
    monkeypatch.setenv("DATABASE_URL", found)
    return found


@pytest.fixture
def used(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Two hours of calls, rolled up, in the database that DATABASE_URL names."""
    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    write(
        engine,
        call(NOON, user_id="anna", model="gpt, large", credits=Decimal("0.1")),
        call(NOON + HOUR, user_id="anna", model="gpt, large", credits=Decimal("0.2")),
        call(NOON + HOUR, user_id="böb|", model="claude", credits=Decimal("12345678.0123456789")),
    )
    run(engine, NOON, NOON + HOUR)
    return engine


def test_migrate_may_be_repeated_and_says_what_it_did(url: str) -> None:
    version = newest_version()
    assert f": the schema went from nothing to {version} (version {version})." in done("migrate").output
    assert f": the schema is up to date (version {version})." in done("migrate").output
    assert url in done("migrate").output


def test_migrate_makes_the_embedded_database_in_dagsters_home(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    done("migrate", DAGSTER_HOME=str(home))
    assert [path.name for path in home.iterdir()] == ["ops_pipeline.db"]


def test_migrate_into_a_database_with_a_table_of_that_name_is_one_line(url: str) -> None:
    engine = connect(url)
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE model_calls (theirs TEXT)")
    engine.dispose()
    said = refused("migrate")
    assert "model_calls" in said
    assert "already exists" in said
    assert len(said.splitlines()) == 1


def test_check_passes_a_sound_deployment_line_by_line(url: str) -> None:
    done("migrate")
    lines = done("check").output.splitlines()
    assert {line[:7] for line in lines} == {"ok     "}
    assert f"ok     DATABASE_URL: {url} answers" in lines
    assert "ok     MODEL_CALL_STATS_CRON_TIME: 0 * * * * (default)" in lines
    assert lines[-2:] == ["ok     tables: can be read and written", "ok     model_calls: there are no calls yet"]
    named = {line[7:].partition(":")[0] for line in lines}
    assert {name.upper() for name in Settings.model_fields} <= named


def test_check_shows_values_as_they_are_written_into_the_environment(url: str) -> None:
    done("migrate")
    lines = done("check", MAINTENANCE_AUTO_START="true", CHECKPOINT_PINNED_THREADS="a,b*").output.splitlines()
    written = {
        *("MAINTENANCE_AUTO_START: true", "CHECKPOINT_PINNED_THREADS: a,b*", "ALERT_EMAIL_TO: not set (default)"),
        *(
            "TASK_RETENTION_DAYS: 30d (default)",
            "GRACE_PERIOD_MINUTES: 5m (default)",
            "ALERT_UI_URL: not set (default)",
        ),
        *("CHECKPOINT_RETENTION_DAYS: 30 (default)", "STALE_MODEL_CALL_MINUTES_BY_TYPE: video=120 (default)"),
    }
    assert written <= {line[7:] for line in lines}


def test_a_brief_check_leaves_out_what_nobody_set(url: str) -> None:
    done("migrate")
    lines = done("check", "--brief", TASK_POLL_INTERVAL="20").output.splitlines()
    assert "ok     TASK_POLL_INTERVAL: 20" in lines and f"ok     DATABASE_URL: {url} answers" in lines
    assert not [line for line in lines if line.endswith("(default)")]
    assert lines[-1].endswith(" have their defaults: `ops-pipeline check` shows each.")


def test_check_tells_of_a_variable_that_is_almost_one_of_ours(url: str) -> None:
    """With MODEL_CALLS_STATS_START, one letter too many, everything from January on was metered."""
    done("migrate")
    said = done("check", MODEL_CALLS_STATS_START="2026-03-01T00:00Z", STATS_START="x").output
    wrong = "warn   MODEL_CALLS_STATS_START: no such variable, MODEL_CALL_STATS_START is meant?"
    assert wrong in said
    assert "STATS_START: no such variable" not in said.replace(wrong, "")


def test_check_tells_of_calls_before_the_start(url: str) -> None:
    done("migrate")
    done(*DEMO)
    said = done("check", MODEL_CALL_STATS_START="2026-03-10T00:00Z").output
    assert "warn   model_calls: the first call lies in the hour 2026-03-08 12:00, before MODEL_CALL_STATS_START" in said


def test_check_fails_when_one_thing_fails_and_still_shows_the_others(url: str) -> None:
    done("migrate")
    lines = refused("check", MODEL_CALL_STATS_START="2999-01-01T00:00Z").splitlines()
    assert lines[0].startswith("FAILED MODEL_CALL_STATS_START: 2999-01-01 00:00 UTC lies in the future")
    assert {line[:7] for line in lines[1:]} == {"ok     "}
    assert f"ok     DATABASE_URL: {url} answers" in lines


def test_check_of_a_database_without_our_schema_says_migrate(url: str) -> None:
    assert "run `ops-pipeline migrate`." in refused("check")


def test_check_of_a_home_that_is_a_file_says_so(url: str, tmp_path: Path) -> None:
    done("migrate")
    (tmp_path / "file").touch()
    assert "FAILED DAGSTER_HOME: " in refused("check", DAGSTER_HOME=str(tmp_path / "file"))


@pytest.fixture(scope="module")
def guarded_server(postgres_server: PostgresServer) -> PostgresServer:
    """The server with a role whose password is another."""
    postgres_server.guard_role("cli_role", "scram-sha-256", password=f"not {SECRET}")
    return postgres_server


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_each_command_tells_of_a_refused_login_without_the_password(
    guarded_server: PostgresServer, arguments: tuple[str, ...]
) -> None:
    said = refused(*arguments, DATABASE_URL=guarded_server.url("postgres", "cli_role", SECRET))
    assert "Check user and password in DATABASE_URL." in said
    assert "cli_role:***@127.0.0.1" in said


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_each_command_tells_of_a_server_that_is_not_there(arguments: tuple[str, ...]) -> None:
    said = refused(*arguments, DATABASE_URL=f"postgresql://ops:{SECRET}@127.0.0.1:{free_port()}/ops")
    assert "Check that the server runs and that host and port in DATABASE_URL are right." in said


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    "url", [f"mysql://ops:{SECRET}@db/ops", f"postgresql://ops:a@{SECRET}@db/ops", f"postgresql://ops:{SECRET}@db:x/o"]
)
def test_each_command_refuses_an_unusable_environment(arguments: tuple[str, ...], url: str) -> None:
    said = refused(*arguments, DATABASE_URL=url, MODEL_CALL_STATS_CRON_TIME="0 1 * * * *")
    lines = said.splitlines()
    assert lines[0] == "Error: The environment is not usable."
    assert [line.partition(":")[0] for line in lines[1:]] == ["DATABASE_URL", "MODEL_CALL_STATS_CRON_TIME"]


@pytest.mark.parametrize("command", ["migrate", "demo", "with-home"])
def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    said = refused(*COMMANDS[command], DAGSTER_HOME=str(tmp_path / "file" / "home"))
    assert said.endswith("/file/home: Not a directory. Correct DAGSTER_HOME, or the owner of that folder.\n")


@pytest.mark.parametrize("command", ["demo", "usage"])
def test_a_database_that_was_never_migrated_says_migrate(url: str, command: str) -> None:
    assert "Run `ops-pipeline migrate` with the same DATABASE_URL." in refused(*COMMANDS[command])


def test_usage_as_csv_is_exact_and_nothing_but_csv(used: Engine) -> None:
    result = done("usage", "--from", "2026-03-10", "--to", "2026-03-10", "--by", "user", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert {row["user"]: row["credits"] for row in rows} == {"anna": "0.3000000000", "böb|": "12345678.0123456789"}
    assert sum(int(row["calls"]) for row in rows) == 3
    assert "22 of 24 hours not aggregated yet" in result.stderr


def test_usage_as_json_can_be_read_by_a_program(used: Engine) -> None:
    result = done("usage", "--from", "2026-03-10T12:00", "--to", "2026-03-10T14:00", "--format", "json")
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["final"]
    assert result.stderr == ""
    assert answer["total"]["calls"] == 3
    assert Decimal(answer["total"]["credits"]) == totals(used)["credits"] == Decimal("12345678.3123456789")
    assert {row["model"] for row in answer["rows"]} == {"gpt, large", "claude"}


def test_usage_as_a_table_says_once_what_is_missing(used: Engine) -> None:
    """The note came twice on a terminal: below the table, and again on standard error."""
    output = done("usage", "--from", "2026-03-10", "--to", "2026-03-10").output
    assert "gpt, large" in output
    assert "total" in output
    assert output.count("Not final: 22 of 24 hours not aggregated yet.") == 1


def test_usage_by_day_cuts_days_in_the_readers_zone(used: Engine) -> None:
    zone = ("--tz", "Asia/Tokyo", "--by", "day", "--format", "csv")
    result = done("usage", "--from", "2026-03-10", "--to", "2026-03-11", *zone)
    assert [(row["day"], row["calls"]) for row in csv.DictReader(io.StringIO(result.stdout))] == [
        ("2026-03-10", "3"),
        ("2026-03-11", "0"),
    ]


def test_usage_without_options_is_of_today(url: str) -> None:
    done("migrate")
    assert "Usage by model, " in done("usage").output


def stored(url: str) -> list[tuple[Any, ...]]:
    engine = connect(url)
    try:
        with reading(engine) as connection:
            columns = [column for column in model_calls.c if column.name not in {"created_at", "updated_at"}]
            return [tuple(row) for row in connection.execute(select(*columns).order_by(model_calls.c.id))]
    finally:
        engine.dispose()


def test_demo_writes_once_what_was_asked_for(url: str) -> None:
    done("migrate")
    first = done(*DEMO)
    assert first.stdout == f"300 calls written to {url}.\n"
    rows = stored(url)
    assert len(rows) == 300
    assert done(*DEMO).stdout == f"0 calls written to {url}.\n"
    assert done(*DEMO, "--if-empty").stdout == "There are calls already: no demo data written.\n"
    assert stored(url) == rows


def test_demo_data_is_not_written_among_real_calls_by_mistake(url: str) -> None:
    """With the DATABASE_URL of production in the environment, a demo made up a week of usage there."""
    done("migrate")
    engine = connect(url)
    with writing(engine) as connection:
        connection.execute(insert(model_calls), {"id": "real-7", "model": "m", "called_at": datetime.now(UTC)})
    assert "holds real calls (real-7 is none of the demo's)" in refused(*DEMO)
    assert "give --force" in refused("demo", "--if-empty", "--live")
    assert "no demo data written" in done(*DEMO, "--if-empty").stdout
    done(*DEMO, "--force")
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(model_calls)).scalar_one() > 1
    engine.dispose()


def test_a_database_with_real_calls_gets_no_demo_checkpoints(url: str, tmp_path: Path) -> None:
    """Outcomes of demo checkpoints stood among those of a real deployment."""
    done("migrate")
    engine = connect(url)
    with writing(engine) as connection:
        connection.execute(insert(model_calls), {"id": "real-7", "model": "m", "called_at": datetime.now(UTC)})
    engine.dispose()
    shell = ("sh", "-c", 'echo "redis: $CHECKPOINT_REDIS_URL."')
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path / "home")}
    told = subprocess.run(
        [COMMAND, "with-demo-redis", *shell], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told == "No Redis is named, and the database holds real calls: checkpoints are not cleaned up.\nredis: .\n"


def test_usage_makes_no_database_where_there_is_none(tmp_path: Path) -> None:
    """Asked in the wrong folder it left an empty database there, and said that a table lacks."""
    home = tmp_path / "nowhere"
    assert f"There is no {home}: run this in the project's folder" in refused("usage", DAGSTER_HOME=str(home))
    assert not home.exists()


def test_demo_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    seen = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        url = f"sqlite:///{tmp_path / name}"
        done("migrate", DATABASE_URL=url)
        done(*DEMO, "--seed", seed, "--if-empty", DATABASE_URL=url)
        seen.append(stored(url))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_a_command_gets_what_dagster_needs_without_a_word_of_it_being_printed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("migrate")
    done(*DEMO)
    monkeypatch.chdir(PROJECT)
    shell = ("sh", "-c", 'echo "$MODEL_CALL_STATS_START ${DAGSTER_POSTGRES_URL%%:*}"')
    environment = os.environ | {"DATABASE_URL": url, "DAGSTER_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [COMMAND, "with-home", *shell], env=environment, capture_output=True, text=True, check=False
    )
    driver = "postgresql+psycopg2" if url.startswith("postgresql") else ""
    assert result.stdout == f"2026-03-08T12:00:00+00:00 {driver}\n", result.stderr
    assert result.stderr == ""


def test_with_home_away_from_the_project_says_where_to_run_it(tmp_path: Path) -> None:
    done("migrate", DAGSTER_HOME=str(tmp_path / "home"))
    said = refused("with-home", "true", DAGSTER_HOME=str(tmp_path / "home"))
    assert said.endswith(
        "dagster.yaml: No such file or directory. Run this in the project's folder, and see who owns DAGSTER_HOME.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("usage", "--by", "colour"), "Invalid value for '--by': 'colour' is not one of 'model', 'user'"),
        (("usage", "--format", "xml"), "Invalid value for '--format': 'xml' is not one of 'table', 'csv', 'json'."),
        (("usage", "--from", "yesterday"), "--from, --to and --tz: 'yesterday' is no date or time."),
        (("usage", "--from", "2026-03-10", "--to", "2026-03-09"), "--from, --to and --tz: The period"),
        (("usage", "--tz", "Europe/Bärlin"), "There is no time zone 'Europe/Bärlin'."),
        (("usage", "--tz", "../../etc/passwd"), "There is no time zone"),
        (("usage", "--tz", "Asia/Kathmandu", "--by", "day"), "Ask in UTC, or in a zone that is whole hours away."),
        (("demo", "--days", "0"), "--days and --calls: days is 0; a history covers 1 to"),
        (("demo", "--days", "many"), "Invalid value for '--days': 'many' is not a valid integer."),
        (("demo", "--calls", "0"), "Invalid value for '--calls': 0 is not in the range"),
        (("demo", "--calls", "99999999999999999999"), "Invalid value for '--calls'"),
        (("demo", "--until", "soon"), "--until: Invalid isoformat string: 'soon'"),
        (("demo", "--until", "0001-01-01"), "--until: '0001-01-01' lies outside the years 1970 to 2999"),
        (("demo", "--until", "9999-12-31T23:00-02:00"), "lies outside the years 1 to 9999 in UTC"),
        (("demo", "--live", "--calls-per-minute", "-1"), "Invalid value for '--calls-per-minute': -1 is not in"),
        (("migrate", "--force"), "No such option"),
        (("migrations",), "No such command 'migrations'"),
    ],
)
def test_a_wrong_option_is_told_by_its_name_and_writes_nothing(
    sqlite_engine: Engine, arguments: tuple[str, ...], message: str
) -> None:
    """A pace of -1 and an end in the year 1 ended in tracebacks, the first after the history was written."""
    said = refused(*arguments, status=2, DATABASE_URL=str(sqlite_engine.url))
    assert message in said
    with reading(sqlite_engine) as connection:
        assert connection.scalar(select(func.count()).select_from(model_calls)) == 0


def test_help_names_every_command_and_needs_no_environment() -> None:
    output = done("--help", DATABASE_URL="nonsense").output
    assert [name for name in COMMANDS if f"\n  {name} " in output] == list(COMMANDS)
    for name in COMMANDS:
        assert done(name, "-h", DATABASE_URL="nonsense").output.startswith(f"Usage: main {name} ")
    assert done("--version").output.startswith("main, version ")


def process(*arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Run the installed command with nothing in its environment but what is given."""
    given = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"} | dict(environment or {})
    result = subprocess.run(
        [COMMAND, *arguments], cwd=folder, env=given, capture_output=True, text=True, check=False, timeout=60
    )
    assert SECRET not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_a_new_deployment_comes_up_with_three_commands_and_nothing_set(tmp_path: Path) -> None:
    assert process("check", folder=tmp_path).returncode == 1
    assert process("migrate", folder=tmp_path).returncode == 0
    assert process(*DEMO, folder=tmp_path).stdout.startswith("300 calls written to sqlite:////")
    checked = process("check", folder=tmp_path)
    assert checked.returncode == 0
    assert "FAILED" not in checked.stdout
    assert json.loads(process("usage", "--format", "json", folder=tmp_path).stdout)["total"]["calls"] == 0


def test_the_env_file_of_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL=postgresql://ops:{SECRET}@127.0.0.1:{free_port()}/ops\n")
    result = process("migrate", folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: connection failed")
    assert "postgresql+psycopg://ops:***@127.0.0.1" in result.stderr


def test_live_demo_goes_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    signals = (signal.SIGINT, signal.SIGTERM)
    urls = [f"sqlite:///{tmp_path / number.name}" for number in signals]
    outputs = [tmp_path / f"{number.name}.txt" for number in signals]
    command = [COMMAND, "demo", "--live", "--days", "1", "--calls", "10", "--calls-per-minute", "600"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for url, output in zip(urls, outputs, strict=True):
            environment = {"PATH": os.environ["PATH"], "DATABASE_URL": url}
            process("migrate", folder=tmp_path, environment=environment)
            with output.open("wb") as file:
                started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
        for number, output, live in zip(signals, outputs, started, strict=True):
            wait_until(lambda output=output: " began, " in output.read_text(), 30, "the first round")
            live.send_signal(number)
            assert live.wait(10) == 0
            assert "Traceback" not in output.read_text()
    finally:
        for live in started:
            live.kill()
            live.wait()
    assert all(len(stored(url)) > 10 for url in urls)
