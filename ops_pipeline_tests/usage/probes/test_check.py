"""Whole checks of models on both databases, against real HTTP servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.reconcile import Unavailable
from ops_pipeline.usage.probes.answers import Answer
from ops_pipeline.usage.probes.check import Report, check_models, longest_check_seconds, outcome_of, plan_of
from ops_pipeline.usage.probes.states import Intent, plan_probes
from ops_pipeline.usage.probes.store import read_statuses, read_traffic, spent_on
from ops_pipeline.usage.probes.targets import Probes, ProbesFile, Target
from ops_pipeline.usage.tables import model_probe_results, model_statuses
from ops_pipeline_tests.servers import free_port
from ops_pipeline_tests.usage.calls import call, rows, write
from ops_pipeline_tests.usage.probes.provider import Provider, error, hanging_up, provider, status, well

KEY = "sk-test-5e2f0b7c91d84a36"


@pytest.fixture
def server() -> Iterator[Provider]:
    """A provider that is well as long as nothing else is said."""
    with provider() as running:
        yield running


@dataclass
class Checker:
    """Checks of the same models, one after the other; the waits between verifications are recorded."""

    engine: Engine
    models: Sequence[dict[str, Any]]
    limits: dict[str, Any] = field(default_factory=dict)
    slept: list[float] = field(default_factory=list)

    @property
    def probes(self) -> Probes:
        """The file and the key."""
        values = {"provider": "openai", "api_key_env": "KEY", "timeout_seconds": 5, "verify_after_seconds": 0.01}
        file = ProbesFile.model_validate({"models": [values | model for model in self.models]} | self.limits)
        return Probes(file, {"KEY": SecretStr(KEY)})

    def plan(self, *only: str) -> list[Intent]:
        """What a check would do now."""
        probes = self.probes
        with reading(self.engine) as connection:
            traffic = read_traffic(connection, probes.file, database_now(connection))
            return plan_probes(probes.file, read_statuses(connection), traffic, only)

    def check(self, *only: str, run: str = "run-1", **ask: Any) -> Report:
        """Look, plan and check."""
        intents = self.plan(*only)
        return check_models(self.engine, self.probes, intents, run_id=run, sleep=self.slept.append, **ask)

    def states(self) -> dict[str, str]:
        """The state of each model."""
        return {row["model"]: row["state"] for row in rows(self.engine, model_statuses)}


def results(engine: Engine, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of all results, in the order in which they were reserved."""
    return [tuple(row[name] for name in columns) for row in rows(engine, model_probe_results)]


def flips(report: Report) -> set[tuple[str, str, str]]:
    return {(one.key[1], one.before.state, one.after.state) for one in report.flips}


def test_the_first_check_finds_out_about_every_model(engine: Engine, server: Provider) -> None:
    server.on("bad", error(500, "broken"))
    server.on("limited", error(429, "slow down"))
    home = Checker(engine, [{"base_url": server.url(), "model": name} for name in ("good", "bad", "limited")])
    report = home.check()
    assert home.states() == {"good": "available", "bad": "unavailable", "limited": "limited"}
    assert flips(report) == {
        ("good", "not_tested", "available"),
        ("bad", "not_tested", "unavailable"),
        ("limited", "not_tested", "limited"),
    }
    assert (report.probes, report.by_traffic, report.left, report.over_budget) == (7, 0, 0, ())
    assert sorted(server.models_asked()) == ["bad"] * 3 + ["good"] + ["limited"] * 3
    found = {row["model"]: row for row in rows(engine, model_statuses)}
    assert {name: row["available"] for name, row in found.items()} == {"good": True, "bad": False, "limited": True}
    assert (found["bad"]["error_code"], found["bad"]["error_message"]) == ("Model Unavailable", "some_error: broken")
    assert found["good"]["error_code"] == "" and found["good"]["response_time_ms"] > 0
    for row in found.values():
        assert (row["candidate"], row["agreeing"]) == ("", 0)
        assert abs((datetime.now(UTC) - row["checked_at"]).total_seconds()) < 30
        assert row["changed_at"] == row["checked_at"]
    first = [row for row in rows(engine, model_probe_results) if row["model"] == "good"]
    assert [(row["purpose"], row["result"], row["state"], row["run_id"]) for row in first] == [
        ("probe", "available", "available", "run-1")
    ]
    assert (first[0]["http_status"], first[0]["input_tokens"], first[0]["output_tokens"]) == (200, 8, 1)


def test_the_outcome_of_a_check_counts_states_and_reasons(engine: Engine, server: Provider) -> None:
    server.on("bad", error(500, "broken"))
    names = ("good", "bad", "unpaid")
    home = Checker(
        engine,
        [{"base_url": server.url(), "model": name, "expected_credits": int(name == "unpaid")} for name in names],
        {"credits_per_day": "0.5"},
    )
    outcome = outcome_of(home.check(), 3)
    assert (outcome.scanned, outcome.changed, outcome.unchanged, outcome.skipped, outcome.failed) == (3, 2, 0, 1, 0)
    assert outcome.reasons == {
        "probes sent": 4,
        "proved by traffic": 0,
        "available": 1,
        "Model Unavailable": 3,
        "over the day's budget": 1,
    }


def test_a_state_changes_only_after_probes_a_few_moments_apart(engine: Engine, server: Provider) -> None:
    """One dropped connection turned a model red, and woke somebody up."""
    models = [
        {"base_url": server.url("a"), "provider": "a", "model": "quick", "verify": 2, "verify_after_seconds": 0.5},
        {"base_url": server.url("b"), "provider": "b", "model": "slow", "verify": 3, "verify_after_seconds": 4},
    ]
    home = Checker(engine, models)
    home.check()
    assert home.slept == []
    for name in ("quick", "slow"):
        server.on(name, error(500, "broken"))
    report = home.check()
    assert home.slept == [4, 4, 4]
    assert server.models_asked()[2:].count("quick") == 3
    assert server.models_asked()[2:].count("slow") == 4
    assert flips(report) == {("quick", "available", "unavailable"), ("slow", "available", "unavailable")}
    quick = [row for row in rows(engine, model_probe_results) if row["model"] == "quick"]
    assert [row["purpose"] for row in quick] == ["probe", "probe", "verification", "verification"]
    assert [row["state"] for row in quick] == ["available"] * 3 + ["unavailable"]


def test_a_model_recovers_after_as_many_probes(engine: Engine, server: Provider) -> None:
    server.on("gpt", error(500, "broken"))
    home = Checker(engine, [{"base_url": server.url(), "model": "gpt"}])
    home.check()
    server.on("gpt", well())
    report = home.check()
    assert flips(report) == {("gpt", "unavailable", "available")}
    assert len(server.requests) == 6
    assert rows(engine, model_statuses)[0]["error_code"] == ""


@pytest.mark.parametrize("failing_probes", [1, 2])
def test_a_model_that_flaps_keeps_its_state(engine: Engine, server: Provider, failing_probes: int) -> None:
    home = Checker(engine, [{"base_url": server.url(), "model": "gpt"}])
    home.check()
    server.on("gpt", *[hanging_up()] * failing_probes, well())
    report = home.check()
    assert flips(report) == set()
    assert home.states() == {"gpt": "available"}
    assert len(server.requests) == 1 + failing_probes + 1
    assert [row["candidate"] for row in rows(engine, model_statuses)] == [""]


def test_without_verification_one_probe_is_enough(engine: Engine, server: Provider) -> None:
    server.on("gpt", error(500, "broken"))
    home = Checker(engine, [{"base_url": server.url(), "model": "gpt", "verify": 0}])
    assert flips(home.check()) == {("gpt", "not_tested", "unavailable")}
    assert (len(server.requests), home.slept) == (1, [])


def test_an_inconclusive_answer_changes_nothing_and_is_not_verified(engine: Engine, server: Provider) -> None:
    """A model that wants another parameter answered 400, and was taken for down."""
    home = Checker(engine, [{"base_url": server.url(), "model": "gpt"}])
    home.check()
    server.on("gpt", error(400, "max_tokens must be at least 16"))
    assert flips(home.check()) == set()
    assert len(server.requests) == 2
    (row,) = rows(engine, model_statuses)
    assert (row["state"], row["error_code"], row["available"]) == ("available", "Invalid Argument", True)
    assert "at least 16" in row["error_message"]


def test_a_second_check_right_after_changes_nothing(engine: Engine, server: Provider) -> None:
    server.on("bad", error(500, "broken"))
    home = Checker(engine, [{"base_url": server.url(), "model": name} for name in ("good", "bad")])
    home.check()
    before = rows(engine, model_statuses)
    report = home.check(run="run-2")
    assert (flips(report), report.probes) == (set(), 2)
    assert len(server.requests) == 4 + 2
    kept = ("model", "state", "changed_at", "error_code", "candidate", "agreeing")
    assert [[row[name] for name in kept] for row in rows(engine, model_statuses)] == [
        [row[name] for name in kept] for row in before
    ]


# The budget


def test_what_the_budget_does_not_reach_is_told_and_not_sent(engine: Engine, server: Provider) -> None:
    home = Checker(
        engine, [{"base_url": server.url(), "model": f"gpt-{index}"} for index in range(5)], {"probes_per_day": 3}
    )
    report = home.check()
    assert (report.probes, len(report.over_budget), len(server.requests)) == (3, 2, 3)
    assert {key[1] for key in report.over_budget}.isdisjoint(server.models_asked())
    again = home.check()
    assert (again.probes, len(again.over_budget), len(server.requests)) == (0, 5, 3)
    assert len(rows(engine, model_probe_results)) == 3


def test_credits_are_a_budget_too(engine: Engine, server: Provider) -> None:
    models = [
        {"base_url": server.url(), "model": "dear", "expected_credits": "0.7"},
        {"base_url": server.url(), "model": "dearer", "expected_credits": "0.4"},
        {"base_url": server.url(), "model": "cheap", "expected_credits": "0.3"},
    ]
    home = Checker(engine, models, {"credits_per_day": "1"})
    report = home.check()
    assert [key[1] for key in report.over_budget] == ["dearer"]
    assert sorted(server.models_asked()) == ["cheap", "dear"]
    with reading(engine) as connection:
        assert spent_on(connection, database_now(connection)) == (2, Decimal(1))


def test_a_budget_used_up_in_the_middle_of_verification_leaves_the_state(engine: Engine, server: Provider) -> None:
    """The alternative is a model that is red after one probe on every busy day."""
    models = [{"base_url": server.url(), "model": "gpt"}]
    Checker(engine, models).check()
    server.on("gpt", error(500, "broken"))
    home = Checker(engine, models, {"probes_per_day": 3})
    report = home.check()
    assert (report.probes, report.over_budget) == (2, (("openai", "gpt", "chatCompletion"),))
    assert len(server.requests) == 3
    assert flips(report) == set()
    (row,) = rows(engine, model_statuses)
    assert (row["state"], row["candidate"], row["agreeing"]) == ("available", "unavailable", 2)
    # The next day the count goes on.
    assert flips(Checker(engine, models).check()) == {("gpt", "available", "unavailable")}
    assert len(server.requests) == 4


def test_a_check_that_dies_leaves_rows_that_count_for_the_budget(engine: Engine, server: Provider) -> None:
    """A process killed between request and answer had spent money that nobody counted, again and again."""
    home = Checker(
        engine, [{"base_url": server.url(), "model": name} for name in ("one", "two")], {"probes_per_day": 3}
    )

    def dying(_: Probes, targets: Sequence[Target]) -> list[Answer]:
        raise KeyboardInterrupt(f"killed with {len(targets)} probes on their way")

    with pytest.raises(KeyboardInterrupt, match="2 probes"):
        home.check(ask=dying)
    assert results(engine, "result", "state") == [("sent", "not_tested")] * 2
    assert rows(engine, model_statuses) == []
    report = home.check()
    assert (report.probes, len(report.over_budget), len(server.requests)) == (1, 1, 1)


# Whom to probe


def test_images_are_generated_only_when_that_is_switched_on(engine: Engine, server: Provider) -> None:
    models = [{"base_url": server.url(), "model": "dall-e", "type": "imageGeneration"}]
    off = Checker(engine, models)
    report = off.check()
    assert (report.left, report.probes, server.requests) == (1, 0, [])
    assert off.check("openai/dall-e").probes == 0
    assert rows(engine, model_statuses) == []
    on = Checker(engine, models, {"image_probes": True})
    assert flips(on.check()) == {("dall-e", "not_tested", "available")}
    assert [request.path for request in server.requests] == ["/v1/images/generations"]


def test_models_that_real_calls_prove_get_no_request(engine: Engine, server: Provider) -> None:
    home = Checker(engine, [{"base_url": server.url(), "model": name} for name in ("busy", "idle")])
    write(engine, call(datetime.now(UTC), model="busy"))
    plan = plan_of(home.plan())
    assert [change.key for change in plan.changes] == ["openai/idle (chatCompletion)"]
    assert dict(plan.kept) == {"1 of 1 calls succeeded lately, no probe is needed": 1}
    report = home.check()
    assert (report.probes, report.by_traffic, server.models_asked()) == (1, 1, ["idle"])
    assert home.states() == {"busy": "available", "idle": "available"}
    assert sorted(results(engine, "model", "purpose")) == [("busy", "traffic"), ("idle", "probe")]
    with reading(engine) as connection:
        assert spent_on(connection, database_now(connection))[0] == 1


def test_a_model_whose_calls_fail_is_probed_although_some_succeed(engine: Engine, server: Provider) -> None:
    home = Checker(engine, [{"base_url": server.url(), "model": "gpt"}])
    now = datetime.now(UTC)
    write(engine, call(now), *(call(now, status="failed") for _ in range(9)))
    (intent,) = home.plan()
    assert (intent.action, intent.reason) == ("probe", "9 of 10 calls failed lately")
    assert home.check().probes == 1


def test_a_model_that_left_the_file_is_not_tested_any_more(engine: Engine, server: Provider) -> None:
    models = [{"base_url": server.url(), "model": name} for name in ("old", "new")]
    Checker(engine, models).check()
    report = Checker(engine, models[1:]).check()
    assert flips(report) == {("old", "available", "not_tested")}
    assert Checker(engine, models).states() == {"old": "not_tested", "new": "available"}


# The network


def unreachable(host: str) -> str:
    return f"http://{host}:{free_port()}/v1"


def test_when_no_host_can_be_reached_no_state_changes(engine: Engine, server: Provider) -> None:
    """A dead network cable turned every model red, and the reports with them."""
    with provider("127.0.0.2") as other:
        models = [
            {"base_url": server.url(), "model": "one", "verify": 0},
            {"base_url": other.url(), "provider": "mistral", "model": "two", "verify": 0},
        ]
        home = Checker(engine, models)
        home.check()
    server.stop()
    before = rows(engine, model_statuses)
    with pytest.raises(Unavailable, match=r"None of 2 models .*Connection Error.* No state was changed") as caught:
        home.check(run="run-2")
    assert KEY not in str(caught.value)
    now = rows(engine, model_statuses)
    assert [(row["state"], row["candidate"], row["changed_at"]) for row in now] == [
        (row["state"], "", row["changed_at"]) for row in before
    ]
    late = [row for row in rows(engine, model_probe_results) if row["run_id"] == "run-2"]
    assert [(row["purpose"], row["result"], row["error_code"], row["state"]) for row in late] == [
        ("probe", "inconclusive", "Connection Error", "available")
    ] * 2


def test_one_of_two_hosts_that_answers_is_enough_to_believe_the_other_is_down(engine: Engine, server: Provider) -> None:
    models = [
        {"base_url": server.url(), "model": "up"},
        {"base_url": unreachable("127.0.0.2"), "provider": "mistral", "model": "down"},
    ]
    home = Checker(engine, models)
    assert flips(home.check()) == {("up", "not_tested", "available"), ("down", "not_tested", "unavailable")}


def test_two_dead_hosts_are_believed_when_a_third_one_answered(engine: Engine, server: Provider) -> None:
    """Verification asks only those that are down: it took two dead providers for a dead network, and failed."""
    models = [
        {"base_url": server.url(), "model": "up"},
        {"base_url": unreachable("127.0.0.2"), "provider": "mistral", "model": "down"},
        {"base_url": unreachable("127.0.0.3"), "provider": "cohere", "model": "down too"},
    ]
    home = Checker(engine, models)
    report = home.check()
    assert home.states() == {"up": "available", "down": "unavailable", "down too": "unavailable"}
    assert report.probes == 1 + 3 + 3


def test_a_single_host_that_cannot_be_reached_is_down(engine: Engine) -> None:
    home = Checker(engine, [{"base_url": unreachable("127.0.0.2"), "model": "gpt"}])
    assert flips(home.check()) == {("gpt", "not_tested", "unavailable")}


# What is stored


def test_stored_messages_are_cut_and_hold_no_key(engine: Engine, server: Provider) -> None:
    server.on("long", error(500, f"{'x' * 200} {KEY} {'y' * 2000}"))
    server.on("page", status(502, f"<html>\r\n<b>Bearer {KEY}</b>\x00{'z' * 2000}</html>", "text/html"))
    server.on("binary", status(500, "\x00\x01\x7f\ufffe" * 50, "application/octet-stream"))
    home = Checker(engine, [{"base_url": server.url(), "model": name} for name in ("long", "page", "binary")])
    home.check()
    stored = rows(engine, model_statuses) + rows(engine, model_probe_results)
    assert len(stored) == 3 + 9
    for row in stored:
        assert len(row["error_message"]) <= 300
        assert KEY not in str(row)
        assert row["error_message"].isprintable()
    assert any("x *** y" in row["error_message"] for row in stored)


def test_a_million_bytes_of_digits_are_a_wrong_answer_and_no_crash(engine: Engine, server: Provider) -> None:
    usage = {"prompt_tokens": 2**70, "completion_tokens": -5}
    server.on("gpt", status(200, {"choices": [{}], "usage": usage}))
    server.on("digits", status(200, "9" * 900_000))
    home = Checker(engine, [{"base_url": server.url(), "model": name} for name in ("gpt", "digits")])
    home.check()
    assert home.states() == {"gpt": "available", "digits": "unavailable"}
    assert results(engine, "input_tokens", "output_tokens")[0] == (0, 0)


def test_a_check_may_take_as_long_as_all_its_deadlines() -> None:
    """A hanging provider of 40 models took longer than the run was allowed to: killed, it never turned unavailable."""
    slow = [Target(provider="slow", base_url="http://a", model=f"m{n}", timeout_seconds=30) for n in range(40)]
    fast = [Target(provider="fast", base_url="http://b", model="m", timeout_seconds=1, verify=0)]
    file = ProbesFile(models=(*slow, *fast), concurrency=20)
    assert longest_check_seconds(file) == 40 * 3 * 30 + 2 * 3
    parallel = file.model_copy(update={"provider_concurrency": {"slow": 40}})
    assert longest_check_seconds(parallel) == (40 * 3 * 30 + 1) / 20 + 2 * 3
