"""Causes become alerts, each told once, reminded of, and told to be over; on both databases."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, func, insert, select, update

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.operations.alerts.causes import Cause, FailedCheck, Thresholds, causes_of
from ops_pipeline.operations.alerts.channels import Message, Undelivered
from ops_pipeline.operations.alerts.plan import SETTLE, OpenAlert, batch_of, next_attempt, plan_alerts
from ops_pipeline.operations.alerts.policy import AlertPolicy, Channel, read_policy
from ops_pipeline.operations.alerts.store import MOST_ATTEMPTS
from ops_pipeline.operations.alerts.work import Alerted, alert, send_test
from ops_pipeline.operations.health import Automation, EndedRun, JobFacts
from ops_pipeline.operations.tables import alert_messages, alerts
from ops_pipeline.settings import load_settings
from ops_pipeline.strict_yaml import FileRefused
from ops_pipeline_tests.usage.calls import at

NOW = at("2026-11-27 12:00")
DAY = timedelta(hours=24)
A = Cause("job:a", "error", "a failed", "reason of a")
B = Cause("check:b:c", "warning", "b: c failed", "reason of b")


def channel(name: str) -> Channel:
    return Channel(name, "webhook", SecretStr("http://127.0.0.1:1/"))


POLICY = AlertPolicy((channel("ops"),), ("ops",), most_per_hour=30)


def causes(*given: Cause) -> dict[str, Cause]:
    return {cause.key: cause for cause in given}


class Receiver:
    """Takes messages, or refuses them for some channels."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []
        self.broken: set[str] = set()

    def __call__(self, target: Channel, message: Message) -> None:
        """Take a message, or refuse it."""
        if target.name in self.broken:
            raise Undelivered(f"{target.name}: away")
        self.got.append((target.name, message.what, message.key))


def one_pass(engine: Engine, receiver: Receiver, given: Iterable[Cause] = (), policy: AlertPolicy = POLICY) -> Alerted:
    return alert(engine, causes(*given), policy, enough=lambda: False, send=receiver)


def pass_time(engine: Engine, by: timedelta) -> None:
    """Let everything that is stored have happened so much earlier."""
    columns = {
        alerts: ("opened_at", "told_at", "last_seen_at"),
        alert_messages: ("created_at", "due_at", "sent_at"),
    }
    with writing(engine) as connection:
        for table, names in columns.items():
            for row in connection.execute(select(table)).mappings().all():
                values = {name: row[name] - by for name in names if row[name]}
                connection.execute(update(table).where(table.c.id == row["id"]).values(**values))


def test_a_cause_is_told_once_however_often_it_is_seen(engine: Engine) -> None:
    """A job that failed every minute sent 1,440 mails a day, and nobody read the one that mattered."""
    receiver = Receiver()
    for _ in range(3):
        one_pass(engine, receiver, [A])
    assert receiver.got == [("ops", "opened", "job:a")]


def test_that_it_is_over_is_told_once_it_has_been_for_two_minutes(engine: Engine) -> None:
    receiver = Receiver()
    one_pass(engine, receiver, [A])
    assert one_pass(engine, receiver).resolved == 0
    pass_time(engine, SETTLE)
    assert one_pass(engine, receiver).resolved == 1
    assert one_pass(engine, receiver).resolved == 0
    assert receiver.got == [("ops", "opened", "job:a"), ("ops", "resolved", "job:a")]


def test_what_comes_and_goes_within_two_minutes_is_one_alert(engine: Engine) -> None:
    receiver = Receiver()
    for wrong in ([A], [], [A], [], [A]):
        one_pass(engine, receiver, wrong)
        pass_time(engine, timedelta(seconds=90))
    assert receiver.got == [("ops", "opened", "job:a")]


def test_what_lasts_is_told_again_every_day(engine: Engine) -> None:
    receiver = Receiver()
    one_pass(engine, receiver, [A])
    for _ in range(2):
        pass_time(engine, DAY)
        one_pass(engine, receiver, [A])
        one_pass(engine, receiver, [A])
    assert [what for _, what, _ in receiver.got] == ["opened", "reminder", "reminder"]


def test_what_fails_again_after_it_was_over_is_a_new_alert(engine: Engine) -> None:
    receiver = Receiver()
    one_pass(engine, receiver, [A])
    pass_time(engine, SETTLE)
    one_pass(engine, receiver)
    one_pass(engine, receiver, [A])
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(alerts)).scalar_one() == 2
    assert [what for _, what, _ in receiver.got] == ["opened", "resolved", "opened"]


def test_a_broken_channel_is_tried_later_and_holds_up_no_other(engine: Engine) -> None:
    receiver, policy = Receiver(), AlertPolicy((channel("chat"), channel("mail")), ("chat", "mail"))
    receiver.broken = {"chat"}
    done = one_pass(engine, receiver, [A, B], policy)
    assert done.failed == ("chat: away",)
    assert receiver.got == [("mail", "opened", "check:b:c"), ("mail", "opened", "job:a")]
    receiver.broken = set()
    assert one_pass(engine, receiver, [A, B], policy).sent == 0
    pass_time(engine, timedelta(seconds=31))
    assert one_pass(engine, receiver, [A, B], policy).sent == 2
    assert {name for name, _, _ in receiver.got[2:]} == {"chat"}


def test_a_message_that_never_gets_through_is_given_up_at_last(engine: Engine) -> None:
    receiver = Receiver()
    receiver.broken = {"ops"}
    for _ in range(MOST_ATTEMPTS):
        one_pass(engine, receiver, [A])
        pass_time(engine, timedelta(hours=1))
    receiver.broken = set()
    assert one_pass(engine, receiver, [A]).sent == 0
    with reading(engine) as connection:
        row = connection.execute(select(alert_messages)).one()
    assert row.attempts == MOST_ATTEMPTS and row.gave_up_at and row.error == "ops: away"


def test_messages_of_a_channel_that_is_gone_are_given_up(engine: Engine) -> None:
    receiver = Receiver()
    receiver.broken = {"ops"}
    one_pass(engine, receiver, [A])
    one_pass(engine, receiver, [A], AlertPolicy())
    with reading(engine) as connection:
        assert (
            connection.execute(select(alert_messages.c.error)).scalar_one() == "its channel is not configured any more"
        )


def test_a_storm_goes_as_one_digest(engine: Engine) -> None:
    """A switch failed, 400 machines alarmed, and the chat server banned the sender."""
    receiver, policy = Receiver(), AlertPolicy((channel("ops"),), ("ops",), most_per_hour=4)
    storm = [Cause(f"job:{number}", "error", "failed", "…") for number in range(50)]
    one_pass(engine, receiver, storm, policy)
    assert receiver.got == [("ops", "digest", "digest")]
    with reading(engine) as connection:
        waiting = select(func.count()).where(alert_messages.c.sent_at.is_(None))
        assert connection.execute(waiting).scalar_one() == 0


def test_what_is_left_when_time_is_over_goes_next_time(engine: Engine) -> None:
    receiver = Receiver()
    alert(engine, causes(A, B), POLICY, enough=lambda: bool(receiver.got), send=receiver)
    assert len(receiver.got) == 1
    one_pass(engine, receiver, [A, B])
    assert len(receiver.got) == 2


def test_routes_choose_channels_and_can_be_silent(engine: Engine) -> None:
    routes = (("check:b:*", ("night",)), ("job:a", ()))
    policy = AlertPolicy((channel("ops"), channel("night")), ("ops",), routes)
    receiver = Receiver()
    one_pass(engine, receiver, [A, B, Cause("job:z", "error", "z", "")], policy)
    assert sorted(receiver.got) == [("night", "opened", "check:b:c"), ("ops", "opened", "job:z")]


def test_two_writers_cannot_open_the_same_alert_twice(engine: Engine) -> None:
    row = {"cause": "job:a", "severity": "error", "title": "a", "opened_at": NOW, "told_at": NOW, "last_seen_at": NOW}
    with writing(engine) as connection:
        connection.execute(insert(alerts), [row])
    with pytest.raises(Exception, match=r"(?i)unique"), writing(engine) as connection:
        connection.execute(insert(alerts), [row])


def test_a_test_message_goes_to_every_channel_and_tells_which_failed() -> None:
    receiver = Receiver()
    receiver.broken = {"chat"}
    policy = AlertPolicy((channel("chat"), channel("mail")), ("chat",))
    assert [(one.name, problem) for one, problem in send_test(policy, receiver)] == [
        ("chat", "chat: away"),
        ("mail", ""),
    ]


def run(succeeded: bool, hours_ago: int = 0) -> EndedRun:
    return EndedRun(f"run-{hours_ago}", NOW - timedelta(hours=hours_ago), succeeded)


def test_a_job_is_told_of_after_its_threshold_of_failures_in_a_row() -> None:
    twice = JobFacts("update_vm_status", 0, (run(False), run(False, 1), run(True, 2)), ())
    assert list(causes_of([twice], [], Thresholds(), NOW)) == ["job:update_vm_status"]
    assert list(causes_of([twice], [], Thresholds(1, {"update_*": 3}), NOW)) == []
    assert causes_of([twice], [], Thresholds(2), NOW)["job:update_vm_status"].run_id == "run-0"


def test_failed_and_overdue_ticks_are_causes_once_even_if_they_start_several_jobs() -> None:
    """A failing sensor is no run, and raises no run-failure event."""
    failing = Automation("s", interval_seconds=30, last_tick_at=NOW, error="KeyError")
    late = Automation("t", "0 * * * *", last_tick_at=NOW - timedelta(hours=5))
    jobs = [JobFacts(name, 0, (), (failing, late)) for name in ("a", "b")]
    assert set(causes_of(jobs, [], Thresholds(), NOW)) == {"tick:s", "overdue:t"}


def test_failed_checks_are_causes_by_their_severity() -> None:
    checks = [FailedCheck("gpus", "no_conflicts", severe, "two machines", "r") for severe in (True, False)]
    found = [causes_of([], [check], Thresholds(), NOW)["check:gpus:no_conflicts"].severity for check in checks]
    assert found == ["error", "warning"]


@given(st.sets(st.sampled_from("abcdef")), st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5000)))
def test_whatever_is_wrong_and_known_every_cause_ends_with_one_open_alert(
    wrong: set[str], known: dict[str, int]
) -> None:
    given_causes = {key: Cause(key, "error", key, "") for key in wrong}
    opened = [
        OpenAlert(number, key, NOW - timedelta(minutes=age), NOW - timedelta(minutes=age))
        for number, (key, age) in enumerate(sorted(known.items()))
    ]
    plan = plan_alerts(given_causes, opened, DAY, NOW)
    after = (set(known) - {one.key for one in plan.resolved}) | {one.key for one in plan.opened}
    assert wrong <= after
    assert {one.key for one in plan.resolved}.isdisjoint(wrong)
    assert {one.key for one in plan.opened}.isdisjoint(known)


def test_attempts_rest_longer_each_time_up_to_an_hour() -> None:
    rests = [(next_attempt(number, NOW) - NOW).total_seconds() for number in (1, 2, 3, 8, 50)]
    assert rests == [30, 60, 120, 3600, 3600]


@pytest.mark.parametrize(
    ("due", "sent", "most", "expected"),
    [
        (1, 0, 30, (1, False)),
        (15, 0, 30, (15, False)),
        (16, 0, 30, (16, True)),
        (3, 30, 30, (0, False)),
        (3, 29, 30, (3, True)),
    ],
)
def test_messages_beyond_the_limit_of_an_hour_wait_or_go_as_one(
    due: int, sent: int, most: int, expected: tuple[int, bool]
) -> None:
    assert batch_of(due, sent, most) == expected


EXAMPLE = Path(__file__).parents[3] / "docs" / "alerts.example.yaml"


def secret(name: str) -> SecretStr | None:
    return SecretStr("https://hooks.example.org/x") if name == "NIGHT_SHIFT_WEBHOOK_URL" else None


def test_the_example_of_the_docs_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERTS_FILE", str(EXAMPLE))
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example.org/main")
    policy = read_policy(load_settings(), secret)
    assert [one.name for one in policy.channels] == ["webhook", "night-shift", "gateway-team"]
    assert policy.channels_of("job:update_vm_status") == ("night-shift",)
    assert policy.channels_of("job:hourly_model_usage_job") == ("gateway-team",)
    assert policy.channels_of("check:gpus:x") == ()
    assert policy.channels_of("tick:x") == ("webhook",)
    assert policy.thresholds.of("update_vm_status") == 3


def test_what_is_wrong_with_the_file_is_told_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(
        "channels:\n- {name: a, kind: slack, url_env: NOT_SET}\n- {name: a, kind: email}\n"
        "routes:\n- {match: x, channels: [b]}\n- {match: y, channels: [a], silent: true}\n"
    )
    monkeypatch.setenv("ALERTS_FILE", str(file))
    with pytest.raises(FileRefused) as caught:
        read_policy(load_settings(), secret)
    lines = str(caught.value).replace(str(file), "").splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "2", "3", "3", "5", "6"]
    assert "slack needs `url_env`, a variable that is set" in str(caught.value)
    assert "there is no channel b" in str(caught.value)


def test_mail_comes_from_its_first_receiver_unless_a_sender_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_EMAIL_TO", "a@example.org, b@example.org")
    (mail,) = read_policy(load_settings(), secret).channels
    assert (mail.to, mail.sender) == (("a@example.org", "b@example.org"), "a@example.org")
