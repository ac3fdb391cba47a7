"""Every variable of the environment: its default, its bounds, and a message that names it and what to do."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster._utils.schedules import is_valid_cron_string
from pydantic import SecretStr

from ops_pipeline.database.types import parse_instant
from ops_pipeline.settings import DEFAULT_START, Settings, SettingsError, load_settings
from ops_pipeline.variables.operations import RUN_RETENTION_DAYS_BY_JOB

SECRET = "geheim"
DEFAULTS: dict[str, Any] = {
    "LOG_FORMAT": "text",
    "DEBUG_CATEGORIES": (),
    "DAGSTER_HOME": Path(".dagster_home"),
    "DATABASE_URL": "",
    "DAGSTER_POSTGRES_URL": "",
    "CELERY_BROKER_URL": "",
    "MODEL_CALL_STATS_CRON_TIME": "0 * * * *",
    "MODEL_CALL_STATS_START": DEFAULT_START,
    "MODEL_CALLS_PRUNED_BEFORE": None,
    "MODEL_CALL_STATS_MAX_RANGE_HOURS": 744,
    "MODEL_CALL_STATS_MAX_ATTEMPTS": 3,
    "LATE_MODEL_CALLS_OVERLAP_SECONDS": 300,
    "LATE_MODEL_CALLS_SWEEP_SECONDS": 600,
    "LATE_MODEL_CALLS_SWEEP_HOURS": 168,
    "CLEANUP_STALE_MODEL_CALLS_CRON_TIME": "*/5 * * * *",
    "STALE_MODEL_CALL_MINUTES": 30,
    "STALE_MODEL_CALL_MINUTES_BY_TYPE": {"video": 120},
    "STALE_MODEL_CALLS_ALARM_SHARE": 0.2,
    "CHECK_MODEL_STATUS_CRON_TIME": "0 */6 * * *",
    "MODEL_PROBES_FILE": None,
    "CHECKPOINT_REDIS_URL": "",
    "NAUTOBOT_REDIS_HOST": "",
    "NAUTOBOT_REDIS_PORT": 6379,
    "NAUTOBOT_REDIS_PASSWORD": "",
    "LANGGRAPH_REDIS_DB": 2,
    "CHECKPOINT_CLEANUP_CRON_TIME": "0 3 * * *",
    "CHECKPOINT_RETENTION_DAYS": 30,
    "CHECKPOINT_RETENTION_BY_THREAD": {},
    "CHECKPOINT_PINNED_THREADS": (),
    "CHECKPOINT_GRACE_HOURS": 24,
    "CHECKPOINT_IN_USE_MINUTES": 10,
    "CHECKPOINT_KEEP_NEWEST": None,
    "CHECKPOINT_TRIM_DAYS": 1,
    "CHECKPOINT_MEMORY_LIMIT_MB": None,
    "CHECKPOINT_SHORT_RETENTION_DAYS": 7,
    "CHECKPOINT_RETENTION_FLOOR_DAYS": 7,
    "CHECKPOINT_MAX_SHARE": 0.8,
    "CHECKPOINT_TIME_BUDGET_SECONDS": 600,
    "CHECKPOINT_PREFIX": "checkpoint",
    "CHECKPOINT_WRITE_PREFIX": "checkpoint_write",
    "CHECKPOINT_SCAN_REPLICAS": False,
    "SERVICES_FILE": None,
    "SERVICES_INTERVAL": "*/5 * * * *",
    "USAGE_REPORT_DAYS": 7,
    "REPORTS_DIR": None,
    "LIBVIRT_URI": "",
    "VM_STATUS_INTERVAL": "*/1 * * * *",
    "GRAPHICS_INTERVAL": "0 */6 * * *",
    "FIREWALL_INTERVAL": "0 */1 * * *",
    "NETWORK_FILTER_PREFIX": "ibay-",
    "NETWORK_FILTER_ORPHAN_HOURS": 24,
    "NETWORK_FILTER_MAX_REMOVALS": 50,
    "NETWORK_FILTER_MAX_REMOVAL_SHARE": 0.5,
    "NETWORK_FILTER_APPLY_SECONDS": 300,
    "HYPERVISOR_DEADLINE_SECONDS": 20,
    "HYPERVISOR_REFRESH_MINUTES": 15,
    "VM_STOPPED_STATUS": "stopped",
    "VM_MISSING_LOOKS": 3,
    "VM_STUCK_MINUTES": 60,
    "VM_LOCK_STUCK_MINUTES": 1440,
    "VM_MAX_DOWN_SHARE": 0.5,
    "VM_MAX_DOWN_MINIMUM": 10,
    "VM_EVENTS_SECONDS": 3,
    "GRAPHICS_MISSING_SCANS": 3,
    "GRAPHICS_MISSING_GAP_SECONDS": 3600,
    "GRAPHICS_ALLOW_BOOT_VGA": False,
    "TASK_POLL_INTERVAL": 10,
    "TASK_TIMEOUT": 1800,
    "TASK_LEASE_SECONDS": 60,
    "TASKS_PER_SERVICE": 5,
    "TASKS_PER_TARGET": 0,
    "PREFLIGHT_MAX_RETRIES": 3,
    "TRANSIENT_FAILURE_MAX_RETRIES": 3,
    "ANALYSIS_WORKERS": 1,
    "ANALYSIS_WORKER_CONCURRENCY": 100,
    "ANALYSIS_WORKER_LINGER_SECONDS": 30,
    "ANALYSIS_WORKER_LIFETIME_SECONDS": 1800,
    "ANALYZER_URLS": {
        "static-analyzer": "ws://localhost:2001",
        "dynamic-analyzer": "ws://localhost:2002",
        "performance-tester": "ws://localhost:2003",
        "ai-analyzer": "ws://localhost:2004",
    },
    "ANALYZER_GATEWAY_URL": "",
    "GENERATED_APPS_DIR": "",
    "ANALYSIS_RESULTS_DIR": None,
    "MAINTENANCE_AUTO_START": False,
    "MAINTENANCE_INTERVAL_SECONDS": 3600,
    "MAINTENANCE_ARCHIVE": "",
    "MAINTENANCE_TIME_BUDGET_SECONDS": 600,
    "MAINTENANCE_LOOK_SECONDS": 60,
    "MAINTENANCE_MAX_DELETIONS": 100_000,
    "MAINTENANCE_MAX_SHARE": 0.5,
    "CLEANUP_ORPHAN_APPS": True,
    "CLEANUP_ORPHAN_TASKS": True,
    "CLEANUP_STUCK_TASKS": True,
    "CLEANUP_OLD_TASKS": True,
    "ORPHAN_APP_RETENTION_DAYS": timedelta(days=7),
    "ORPHAN_APP_MAX_NEWLY_MISSING_SHARE": 0.2,
    "STUCK_TASK_TIMEOUT_MINUTES": timedelta(minutes=120),
    "PENDING_TASK_TIMEOUT_MINUTES": timedelta(minutes=240),
    "GRACE_PERIOD_MINUTES": timedelta(minutes=5),
    "TASK_RETENTION_DAYS": timedelta(days=30),
    "MODEL_CALL_RETENTION_DAYS": None,
    "ALERT_WEBHOOK_URL": "",
    "ALERT_WEBHOOK_FORMAT": "webhook",
    "ALERT_EMAIL_TO": (),
    "ALERT_EMAIL_FROM": "",
    "ALERT_SMTP_URL": "",
    "ALERT_APPRISE_URL": "",
    "ALERTS_FILE": None,
    "ALERT_AFTER_FAILURES": 1,
    "ALERT_REMIND_HOURS": 24,
    "ALERT_MAX_PER_HOUR": 30,
    "ALERT_UI_URL": "",
    "PRUNE_DAGSTER_STORAGE_CRON_TIME": "30 4 * * *",
    "RUN_RETENTION_DAYS": 30,
    "RUN_RETENTION_DAYS_BY_JOB": RUN_RETENTION_DAYS_BY_JOB,
    "PRUNE_DAGSTER_STORAGE_BUDGET_SECONDS": 600,
}
BOUNDS = {
    "MODEL_CALL_STATS_MAX_RANGE_HOURS": (1, 8784),
    "MODEL_CALL_STATS_MAX_ATTEMPTS": (1, 100),
    "LATE_MODEL_CALLS_OVERLAP_SECONDS": (0, 86_400),
    "LATE_MODEL_CALLS_SWEEP_SECONDS": (30, 86_400),
    "LATE_MODEL_CALLS_SWEEP_HOURS": (1, 8784),
    "STALE_MODEL_CALL_MINUTES": (1, 10_080),
    "NAUTOBOT_REDIS_PORT": (1, 65_535),
    "LANGGRAPH_REDIS_DB": (0, 100_000),
    "CHECKPOINT_KEEP_NEWEST": (1, 1_000_000),
    "CHECKPOINT_TIME_BUDGET_SECONDS": (1, 86_400),
    "USAGE_REPORT_DAYS": (0, 366),
    "NETWORK_FILTER_MAX_REMOVALS": (0, 100_000),
    "NETWORK_FILTER_APPLY_SECONDS": (1, 3600),
    "HYPERVISOR_DEADLINE_SECONDS": (1, 45),
    "HYPERVISOR_REFRESH_MINUTES": (1, 1440),
    "VM_MISSING_LOOKS": (1, 100),
    "VM_STUCK_MINUTES": (1, 43_200),
    "VM_LOCK_STUCK_MINUTES": (1, 43_200),
    "VM_MAX_DOWN_MINIMUM": (1, 1_000_000),
    "VM_EVENTS_SECONDS": (1, 300),
    "GRAPHICS_MISSING_SCANS": (1, 1000),
    "GRAPHICS_MISSING_GAP_SECONDS": (0, 604_800),
    "TASK_POLL_INTERVAL": (1, 3600),
    "TASK_TIMEOUT": (1, 604_800),
    "TASK_LEASE_SECONDS": (5, 3600),
    "TASKS_PER_SERVICE": (0, 100_000),
    "TASKS_PER_TARGET": (0, 100_000),
    "PREFLIGHT_MAX_RETRIES": (0, 100),
    "TRANSIENT_FAILURE_MAX_RETRIES": (0, 100),
    "ANALYSIS_WORKERS": (1, 64),
    "ANALYSIS_WORKER_CONCURRENCY": (1, 5000),
    "ANALYSIS_WORKER_LINGER_SECONDS": (0, 3600),
    "ANALYSIS_WORKER_LIFETIME_SECONDS": (60, 86_400),
    "MAINTENANCE_INTERVAL_SECONDS": (60, 2_592_000),
    "MAINTENANCE_TIME_BUDGET_SECONDS": (1, 86_400),
    "MAINTENANCE_LOOK_SECONDS": (1, 3600),
    "MAINTENANCE_MAX_DELETIONS": (0, 1_000_000_000),
    "ALERT_AFTER_FAILURES": (1, 1000),
    "ALERT_MAX_PER_HOUR": (1, 10_000),
    "PRUNE_DAGSTER_STORAGE_BUDGET_SECONDS": (1, 86_400),
}
HOURS = ("MODEL_CALL_STATS_START", "MODEL_CALLS_PRUNED_BEFORE")


def value_of(variable: str) -> Any:
    value = getattr(load_settings(), variable.lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def refusal() -> str:
    """What the operator is told about the environment as it is."""
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


@pytest.mark.parametrize(("variable", "default"), DEFAULTS.items(), ids=DEFAULTS)
def test_each_variable_has_a_default_that_an_empty_text_means_too(
    monkeypatch: pytest.MonkeyPatch, variable: str, default: object
) -> None:
    """`VARIABLE=` in an .env file was read as the empty text, and the deployment did not start."""
    assert value_of(variable) == default
    monkeypatch.setenv(variable, "")
    assert value_of(variable) == default


def test_no_variable_is_missing_in_these_tests_and_each_is_described() -> None:
    assert {name.upper() for name in Settings.model_fields} == set(DEFAULTS)
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(("variable", "bounds"), BOUNDS.items(), ids=BOUNDS)
def test_a_number_is_taken_within_its_bounds_and_refused_beyond(
    monkeypatch: pytest.MonkeyPatch, variable: str, bounds: tuple[int, int]
) -> None:
    lowest, highest = bounds
    for value in bounds:
        monkeypatch.setenv(variable, str(value))
        assert value_of(variable) == value
    monkeypatch.setenv(variable, str(lowest - 1))
    assert refusal() == f"{variable}: Input should be greater than or equal to {lowest}"
    monkeypatch.setenv(variable, str(highest + 1))
    assert refusal() == f"{variable}: Input should be less than or equal to {highest}"
    monkeypatch.setenv(variable, "many")
    assert refusal().startswith(f"{variable}: Input should be a valid integer")


@pytest.mark.parametrize("seconds_first", ["0 1 * * * *", "0 */5 * * * *", "* * * *", "@hourly"])
def test_a_schedule_that_has_not_five_fields_is_refused_with_an_example(
    monkeypatch: pytest.MonkeyPatch, seconds_first: str
) -> None:
    """The original's schedules began with seconds: read as five fields, hourly work ran at one minute past one."""
    monkeypatch.setenv("MODEL_CALL_STATS_CRON_TIME", seconds_first)
    said = refusal()
    count = len(seconds_first.split())
    assert said.startswith(f"MODEL_CALL_STATS_CRON_TIME: {seconds_first!r} has {count} fields, but a schedule has five")
    assert "there is no field for seconds" in said
    assert "for example '0 * * * *'" in said


@pytest.mark.parametrize(
    "cron", ["60 * * * *", "0 24 * * *", "0 0 31 2 *", "0 0 0 * *", "every hour on the hour", "h * * * *", "R * * * *"]
)
def test_a_schedule_that_never_comes_or_changes_at_each_look_is_refused(
    monkeypatch: pytest.MonkeyPatch, cron: str
) -> None:
    """The 31st of February passed here, and Dagster's own error at load named no variable."""
    monkeypatch.setenv("MODEL_CALL_STATS_CRON_TIME", cron)
    assert refusal().startswith(f"MODEL_CALL_STATS_CRON_TIME: {cron!r} is no cron schedule, write for example")


@pytest.mark.parametrize(
    "cron", ["*/5 * * * *", " 5   * * * * ", "0 0 29 2 *", "0-30/10 6,18 * jan-mar mon-fri", "0 * L * *", "0 0 * * 7"]
)
def test_a_schedule_that_is_taken_is_one_for_dagster_too(monkeypatch: pytest.MonkeyPatch, cron: str) -> None:
    monkeypatch.setenv("MODEL_CALL_STATS_CRON_TIME", cron)
    taken = value_of("MODEL_CALL_STATS_CRON_TIME")
    assert taken == " ".join(cron.split())
    assert is_valid_cron_string(taken)


@pytest.mark.parametrize("variable", HOURS)
@pytest.mark.parametrize(
    "text",
    ["2026-02-01T05:00Z", "2026-02-01 05:00", "2026-02-01T07:00:00+02:00", "2026-02-01T10:30+05:30", " 2026-02-01T05 "],
)
def test_a_time_is_read_in_any_spelling_and_is_aware(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    assert value_of(variable) == datetime(2026, 2, 1, 5, tzinfo=UTC)
    assert value_of(variable).utcoffset() == timedelta(0)


@pytest.mark.parametrize("variable", HOURS)
@pytest.mark.parametrize("text", ["2026-02-01T05:30Z", "2026-02-01T05:00+05:30", "2026-02-01T05:00:01Z"])
def test_a_time_off_the_utc_hour_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    moment = parse_instant(text).isoformat()
    assert refusal() == f"{variable}: {moment} does not lie on a full UTC hour; write for example 2026-01-01T00:00Z"


@pytest.mark.parametrize("variable", HOURS)
@pytest.mark.parametrize("text", ["soon", "1767225600", "2026-13-01", "9999-12-31T23:00-02:00"])
def test_what_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    assert refusal() == f"{variable}: {text!r} is no time; write for example 2026-01-01T00:00Z"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALERT_WEBHOOK_URL", f"{SECRET}.example/hook", "it must begin with https:// or http:// and name a host"),
        ("ALERT_WEBHOOK_URL", f"ftp://{SECRET}/", "it must begin with https:// or http:// and name a host"),
        ("ALERT_SMTP_URL", f"{SECRET}.example:25", "it must begin with smtp:// or smtps:// and name a host"),
        ("ALERT_UI_URL", "ops.example", "it must begin with https:// or http:// and name a host"),
        (
            "ALERT_EMAIL_TO",
            "ops@example.org, night watch",
            "'night watch' is no address, write for example ops@example.org",
        ),
        ("ALERT_EMAIL_FROM", "ops", "'ops' is no address, write for example ops@example.org"),
    ],
)
def test_where_alerts_go_is_refused_when_it_is_no_address(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """Mail for `mail.example:25` went to port 25 of this machine, and was lost there."""
    monkeypatch.setenv(variable, value)
    assert refusal() == f"{variable}: {said}"


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://ops:{SECRET}@db/ops",
        f"{SECRET}",
        f"postgresql://ops:a@{SECRET}@db/ops",
        f"postgresql://ops:{SECRET}@db:port/ops",
        f"postgresql://ops:a@b:{SECRET}@db/ops",
        f"sqlite://{SECRET[0]}.db",
    ],
)
def test_an_unusable_url_is_refused_and_masked(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    said = refusal()
    assert said.startswith("DATABASE_URL: ")
    assert "Write postgresql+psycopg://user:password@host:5432/name or sqlite:////absolute/path.db" in said


def test_no_representation_of_the_settings_shows_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+psycopg://ops:{SECRET}@db/ops"
    monkeypatch.setenv("DATABASE_URL", url)
    settings = load_settings()
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown
    assert settings.operations_url() == url


def test_all_problems_are_told_at_once_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_CALL_STATS_CRON_TIME", "0 1 * * * *")
    monkeypatch.setenv("MODEL_CALL_STATS_START", "2026-01-01T00:30Z")
    monkeypatch.setenv("USAGE_REPORT_DAYS", "-1")
    monkeypatch.setenv("DATABASE_URL", f"mysql://ops:{SECRET}@db/ops")
    names = [line.partition(":")[0] for line in refusal().splitlines()]
    assert names == ["DATABASE_URL", "MODEL_CALL_STATS_CRON_TIME", "MODEL_CALL_STATS_START", "USAGE_REPORT_DAYS"]


def test_without_a_url_the_database_lies_in_dagsters_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert load_settings().operations_url() == f"sqlite:///{tmp_path}/home/ops_pipeline.db"


def test_reports_lie_in_dagsters_home_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings().reports_folder() == tmp_path / ".dagster_home" / "reports"
    monkeypatch.setenv("REPORTS_DIR", "/srv/reports")
    assert load_settings().reports_folder() == Path("/srv/reports")


def test_the_overlap_is_a_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATE_MODEL_CALLS_OVERLAP_SECONDS", "90")
    assert load_settings().late_overlap() == timedelta(seconds=90)


def test_an_env_file_is_read_and_the_environment_wins_over_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# comment\nUSAGE_REPORT_DAYS=3\nLATE_MODEL_CALLS_SWEEP_HOURS=24\nMODEL_CALL_STATS_CRON_TIME=\nOTHER=1\n"
    )
    monkeypatch.setenv("LATE_MODEL_CALLS_SWEEP_HOURS", "48")
    settings = load_settings()
    assert settings.usage_report_days == 3
    assert settings.late_model_calls_sweep_hours == 48
    assert settings.model_call_stats_cron_time == "0 * * * *"


def test_an_override_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_REPORT_DAYS", "3")
    assert load_settings(usage_report_days=5).usage_report_days == 5


DURATIONS = [name for name, value in DEFAULTS.items() if isinstance(value, timedelta)] + ["MODEL_CALL_RETENTION_DAYS"]


@pytest.mark.parametrize("variable", DURATIONS)
def test_a_retention_is_read_in_its_unit_or_in_one_that_it_names(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    unit = timedelta(days=1) if variable.endswith("_DAYS") else timedelta(minutes=1)
    meant = {"3": 3 * unit, " 2.5 ": 2.5 * unit, "30d": timedelta(days=30), "12H": timedelta(hours=12)}
    for text, value in (meant | {"90m": timedelta(minutes=90), "45s": timedelta(seconds=45)}).items():
        monkeypatch.setenv(variable, text)
        assert value_of(variable) == value


@pytest.mark.parametrize("variable", DURATIONS)
@pytest.mark.parametrize("text", ["0", "-1", "0d", "-30d", "36501d", "1e9"])
def test_a_retention_of_zero_or_less_is_refused_and_never_skipped(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """0 was taken for "not set", and nothing was cleaned up for a year."""
    monkeypatch.setenv(variable, text)
    assert refusal() == (
        f"{variable}: {text!r} does not lie above 0 and within 100 years; to do without, switch the pass off instead"
    )


@pytest.mark.parametrize("text", ["soon", "30 days", "d", "nan", "inf", "30x", "None"])
def test_a_retention_that_is_no_duration_is_refused_with_an_example(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TASK_RETENTION_DAYS", text)
    assert refusal() == (
        f"TASK_RETENTION_DAYS: {text!r} is no duration; write a number of days, or for example 90m, 12h, 30d"
    )


def test_archives_lie_in_dagsters_home_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings().archive_location() == str(tmp_path / ".dagster_home" / "archive")
    monkeypatch.setenv("MAINTENANCE_ARCHIVE", "s3://bucket/archive")
    assert load_settings().archive_location() == "s3://bucket/archive"


@pytest.mark.parametrize("text", ["static-analyzer", "a=http://b", "=ws://a", "a=ws://", "a=ws://b,c"])
def test_a_service_has_the_url_of_a_web_socket(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ANALYZER_URLS", text)
    assert "write for example static-analyzer=ws://localhost:2001" in refusal()


def test_services_have_urls_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYZER_URLS", "a=wss://host/path, b = ws://[::1]:1 ,")
    assert value_of("ANALYZER_URLS") == {"a": "wss://host/path", "b": "ws://[::1]:1"}
    monkeypatch.setenv("ANALYZER_GATEWAY_URL", "http://gateway")
    assert "ANALYZER_GATEWAY_URL: 'http://gateway' is no URL of a WebSocket" in refusal()
