"""Secrets that stand in files, as containers and systemd hand them over: read, or refused with what to do."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from ops_pipeline.cli import main
from ops_pipeline.defs.watching import open_instance
from ops_pipeline.operations.home import prepare_home
from ops_pipeline.settings import (
    Settings,
    SettingsError,
    environment_of_leader,
    load_settings,
    operations_url,
    secret_file_variables,
    secret_variable,
)
from ops_pipeline_tests.integration.processes import PROJECT
from ops_pipeline_tests.servers import PostgresServer

SECRET = "geh/e%40im"
VALUES = {
    "DATABASE_URL": f"postgresql+psycopg://ops:{SECRET}@db/ops",
    "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://ops:{SECRET}@db/ops",
    "CELERY_BROKER_URL": f"redis://:{SECRET}@cache:6379/1",
    "CHECKPOINT_REDIS_URL": f"redis://:{SECRET}@cache:6379/2",
    "NAUTOBOT_REDIS_PASSWORD": SECRET,
    "ALERT_WEBHOOK_URL": f"https://chat.example/{SECRET}",
    "ALERT_SMTP_URL": f"smtp://ops:{SECRET}@mail.example:587",
    "ALERT_APPRISE_URL": f"json://{SECRET}@chat.example",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a secret, the last line ended as an editor does."""
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def refused() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


@pytest.mark.parametrize("name", VALUES)
def test_every_secret_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, file: Path, name: str) -> None:
    file.write_text(f"{VALUES[name]}\r\n")
    monkeypatch.setenv(f"{name}_FILE", str(file))
    value = getattr(load_settings(), name.lower())
    assert isinstance(value, SecretStr)
    assert value.get_secret_value() == VALUES[name]
    assert secret_variable(name) == value


def test_ticks_find_the_database_where_all_the_settings_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    """They read the few variables that say where, and no others."""
    monkeypatch.chdir(tmp_path)

    def same() -> str:
        assert operations_url() == load_settings().operations_url()
        return operations_url()

    assert same() == f"sqlite:///{tmp_path}/.dagster_home/ops_pipeline.db"
    monkeypatch.setenv("dagster_home", "elsewhere")
    assert same() == f"sqlite:///{tmp_path}/elsewhere/ops_pipeline.db"
    (tmp_path / ".env").write_text("DATABASE_URL=sqlite:////srv/env.db\n")
    assert same() == "sqlite:////srv/env.db"
    file.write_text(VALUES["DATABASE_URL"])
    monkeypatch.setenv("DATABASE_URL_FILE", str(file))
    monkeypatch.setenv("DATABASE_URL", "")
    (tmp_path / ".env").unlink()
    assert same() == VALUES["DATABASE_URL"]
    monkeypatch.setenv("DATABASE_URL", "mysql://h/d")
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        operations_url()


def test_no_secret_is_forgotten_here_and_example_names_them_all() -> None:
    assert {f"{name}_FILE" for name in VALUES} == secret_file_variables()
    secrets = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secrets == set(VALUES)
    head = (PROJECT / ".env.example").read_text().partition("\n\n")[0]
    assert [name for name in VALUES if name not in head] == []


def test_a_secret_of_a_file_keeps_what_looks_like_the_end_of_one(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """A password that ended in a space was cut, and nobody found out why the login failed."""
    file.write_text(" a b \n")
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD_FILE", str(file))
    assert load_settings().nautobot_redis_password.get_secret_value() == " a b "


def test_a_file_named_in_env_file_is_read_and_empty_means_unset(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    Path(".env").write_text(f"nautobot_redis_password_file={file}\n")
    assert load_settings().nautobot_redis_password.get_secret_value() == SECRET
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD_FILE", "")
    Path(".env").unlink()
    assert load_settings().nautobot_redis_password.get_secret_value() == ""


def test_what_cannot_be_read_is_told_with_the_file_and_beside_all_other_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("ALERT_WEBHOOK_URL_FILE", str(tmp_path))
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv("ALERT_SMTP_URL_FILE", str(tmp_path / "empty"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("ALERT_APPRISE_URL_FILE", str(tmp_path / "bytes"))
    monkeypatch.setenv("DATABASE_URL_FILE", str(file))
    monkeypatch.setenv("USAGE_REPORT_DAYS", "-1")
    lines = sorted(refused().splitlines())
    assert [line.partition(":")[0] for line in lines] == [
        "ALERT_APPRISE_URL_FILE",
        "ALERT_SMTP_URL_FILE",
        "ALERT_WEBHOOK_URL_FILE",
        "DATABASE_URL",
        "NAUTOBOT_REDIS_PASSWORD_FILE",
        "USAGE_REPORT_DAYS",
    ]
    assert f"{tmp_path / 'none'} cannot be read: No such file or directory. Correct the path" in lines[4]
    assert "Is a directory" in lines[2]
    assert "is empty" in lines[1]
    assert "no text in UTF-8" in lines[0]


def test_two_different_secrets_are_refused_and_the_same_twice_is_one(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    """Whichever of two passwords won, somebody had changed the other one and wondered."""
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD_FILE", str(file))
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD", "another")
    assert refused() == (
        "NAUTOBOT_REDIS_PASSWORD_FILE: NAUTOBOT_REDIS_PASSWORD is set as well, to something else: unset one of the two."
    )
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD", SECRET)
    assert load_settings().nautobot_redis_password.get_secret_value() == SECRET


def test_variables_that_yaml_files_name_may_be_files_too_and_check_tells_of_bad_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    services = tmp_path / "services.yaml"
    services.write_text(
        "services:\n  - {name: cache, description: Cache., recovery: none, check: {kind: redis, url_env: CACHE_URL}}\n"
    )
    monkeypatch.setenv("SERVICES_FILE", str(services))
    monkeypatch.setenv("CACHE_URL_FILE", str(file))
    assert secret_variable("CACHE_URL") == SecretStr(SECRET)
    assert f"ok     SERVICES_FILE: {services} lists 1 service" in CliRunner().invoke(main, ["check"]).output
    monkeypatch.setenv("CACHE_URL_FILE", str(tmp_path / "none"))
    output = CliRunner().invoke(main, ["check"]).output
    assert f"FAILED SERVICES_FILE: CACHE_URL_FILE: {tmp_path / 'none'} cannot be read" in output


def test_check_does_not_take_the_name_of_a_file_for_a_slip(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("NAUTOBOT_REDIS_PASSWORD_FILE", str(file))
    output = CliRunner().invoke(main, ["check"]).output
    assert "is meant?" not in output
    assert "NAUTOBOT_REDIS_PASSWORD: set\n" in output
    assert SECRET not in output


def test_dagster_is_given_the_url_of_its_storage_from_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path, postgres_server: PostgresServer
) -> None:
    """Dagster reads DAGSTER_POSTGRES_URL itself, and knows of no files."""
    url = postgres_server.new_database()
    dagsters = url.replace("+psycopg:", "+psycopg2:")
    file.write_text(f"{dagsters}\n")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL_FILE", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    exports = prepare_home(load_settings(database_url=url), PROJECT, lambda _: datetime(2026, 3, 1, tzinfo=UTC))
    assert exports["DAGSTER_POSTGRES_URL"] == dagsters
    assert environment_of_leader()["DAGSTER_POSTGRES_URL"] == dagsters
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "")
    with open_instance() as instance:
        assert instance.get_runs_count() == 0
