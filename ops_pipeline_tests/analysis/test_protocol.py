"""What every frame means, as pure rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.analysis.protocol import (
    DIALECTS,
    Ending,
    Noise,
    Outcome,
    Progress,
    Request,
    classify,
    dialect_of,
    health_of,
    request_id,
    shortened,
)
from ops_pipeline_tests.usage.calls import at

REQUEST = Request("slug_app1_static-analyzer_t1_1", "static-analyzer", "openai_gpt-4", 1)


def told(frame: Any) -> Any:
    return classify(frame if isinstance(frame, str | bytes) else json.dumps(frame), REQUEST)


def replied(**fields: Any) -> dict[str, Any]:
    return {"type": "static_analysis_result", "status": "success", "analysis": {}} | fields


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("static-analyzer", "static_analyze"),
        ("dynamic-analyzer", "dynamic_analyze"),
        ("performance-tester", "performance_test"),
        ("ai-analyzer", "ai_analyze"),
        ("generation", "generate"),
        ("licence-checker", "licence_checker"),
    ],
)
def test_each_service_is_asked_in_its_own_words(service: str, kind: str) -> None:
    asked = json.loads(Request("i", service, "slug", 0).frame(at("2026-03-01 00:00")))
    assert asked == {
        "type": kind,
        "id": "i",
        "model_slug": "slug",
        "app_number": 0,
        "tools": [],
        "timestamp": "2026-03-01T00:00:00+00:00",
    }


def test_a_request_carries_config_and_target_urls_where_there_are_any() -> None:
    request = Request("i", "ai-analyzer", "slug", 3, ("a",), {"template_slug": "crud"}, ("http://127.0.0.1:5000",))
    asked = json.loads(request.frame(at("2026-03-01 00:00")))
    assert asked["tools"] == ["a"]
    assert asked["config"] == {"template_slug": "crud"}
    assert asked["target_urls"] == ["http://127.0.0.1:5000"]


def test_no_two_attempts_share_an_id() -> None:
    """The services' own ids name model, application and service only: an answer to an earlier attempt fits a later."""
    ids = {request_id("s", "m/app1", task, attempt) for task in ("t1", "t2") for attempt in (1, 2)}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("fields", "ending", "message"),
    [
        ({}, Ending.COMPLETED, ""),
        ({"status": "completed"}, Ending.COMPLETED, ""),
        ({"analysis": {"status": "success"}}, Ending.COMPLETED, ""),
        ({"analysis": {"status": "error", "error": "no sources"}}, Ending.FAILED, "no sources"),
        ({"analysis": {"error": "no sources"}}, Ending.FAILED, "no sources"),
        ({"analysis": {"status": "failed"}}, Ending.FAILED, "the service gave no reason"),
        ({"analysis": {"status": "success", "error": "a remark"}}, Ending.COMPLETED, ""),
        ({"status": "error", "error": "out of disk"}, Ending.FAILED, "out of disk"),
        ({"status": "error", "message": "out of disk", "analysis": None}, Ending.FAILED, "out of disk"),
        ({"status": "partial_success", "error": "zap failed"}, Ending.PARTIAL, "zap failed"),
        ({"analysis": {"status": "partial"}}, Ending.PARTIAL, "the service finished in part"),
        ({"status": "partial_success", "analysis": {"status": "error", "error": "x"}}, Ending.FAILED, "x"),
        ({"analysis": None}, Ending.BAD_REPLY, "the reply holds no analysis"),
        ({"analysis": "done"}, Ending.BAD_REPLY, "the reply holds no analysis"),
        ({"status": "splendid"}, Ending.BAD_REPLY, "the status 'splendid' of the reply is unknown"),
        ({"analysis": {"status": "odd"}}, Ending.BAD_REPLY, "the status 'odd' of the analysis is unknown"),
    ],
)
def test_the_worse_of_outer_and_inner_status_counts(fields: dict[str, Any], ending: Ending, message: str) -> None:
    """Services write "success" around whatever their analysis says: failed analyses were stored as completed."""
    outcome = told(replied(**fields))
    assert (outcome.ending, outcome.message) == (ending, message)


@pytest.mark.parametrize("key", ["message", "error"])
def test_an_error_frame_ends_it_whatever_its_key_is_called(key: str) -> None:
    """The performance tester writes `error` where the others write `message`; its reasons were lost."""
    outcome = told({"type": "error", key: "Unknown message type"})
    assert (outcome.ending, outcome.message) == (Ending.REFUSED, "Unknown message type")


def test_an_error_frame_without_a_reason_still_ends_it() -> None:
    assert told({"type": "error"}).message == "the service gave no reason"


@pytest.mark.parametrize("frame", [replied(id="another"), {"type": "error", "message": "x", "id": "another"}])
def test_a_frame_for_another_request_is_not_ours(frame: dict[str, Any]) -> None:
    found = told(frame)
    assert isinstance(found, Noise)
    assert "for another request, another" in found.reason


@pytest.mark.parametrize("name", ["id", "request_id", "correlation_id"])
def test_a_reply_that_names_our_request_is_ours(name: str) -> None:
    assert told(replied(**{name: REQUEST.id})).ending is Ending.COMPLETED


@pytest.mark.parametrize(
    "frame", ["", "not json", "[1]", '"text"', "null", "[" * 100_000, b'{"type": "error"}', b"\xff"]
)
def test_what_is_no_json_object_is_junk(frame: str | bytes) -> None:
    found = told(frame)
    assert isinstance(found, Noise)
    assert found.junk


@pytest.mark.parametrize("kind", ["dynamic_analysis_result", "pong", "health_response", "nonsense", ""])
def test_what_is_no_answer_to_this_request_says_nothing(kind: str) -> None:
    found = told({"type": kind, "status": "success", "analysis": {}})
    assert isinstance(found, Noise)
    assert not found.junk


@pytest.mark.parametrize(
    ("frame", "progress"),
    [
        ({"stage": "scanning", "message": "Python", "progress": 40}, Progress("scanning", "Python", 40)),
        ({"data": {"stage": "scanning", "message": "m", "progress": 0.5}}, Progress("scanning", "m", 50)),
        ({"stage": "a", "data": "text"}, Progress("a", "", None)),
        ({"stage": "a", "progress": 1}, Progress("a", "", 1)),
        ({"stage": "a", "progress": 1.0}, Progress("a", "", 100)),
        ({"stage": "a", "percent": "many"}, Progress("a", "", None)),
        ({"stage": "a", "progress": 400}, Progress("a", "", None)),
        ({"stage": "a", "progress": True}, Progress("a", "", None)),
        ({}, Progress("", "", None)),
    ],
)
def test_progress_is_read_from_the_frame_or_its_data(frame: dict[str, Any], progress: Progress) -> None:
    assert told({"type": "progress_update", "correlation_id": REQUEST.id} | frame) == progress


def test_progress_of_another_request_is_not_ours() -> None:
    assert isinstance(told({"type": "progress_update", "correlation_id": "another", "stage": "a"}), Noise)
    assert isinstance(told({"type": "progress_update", "data": {"analysis_id": "another"}}), Noise)


@pytest.mark.parametrize(
    ("frame", "healthy"),
    [
        ({"type": "health_response", "status": "healthy"}, (True, "")),
        ({"type": "health_response", "status": "degraded"}, (False, "it says that it is 'degraded'")),
        ({"type": "health_response"}, (False, "it says that it is 'not healthy'")),
        ({"type": "error", "message": "starting"}, (False, "starting")),
        ({"type": "progress_update"}, None),
    ],
)
def test_only_a_service_that_says_so_is_healthy(frame: dict[str, Any], healthy: tuple[bool, str] | None) -> None:
    assert health_of(json.dumps(frame)) == healthy
    assert health_of("junk") == health_of(b"{}") == (False, "it answers with something that is no JSON object")


def test_only_a_service_that_is_not_there_costs_no_attempt() -> None:
    assert {one for one in Ending if one.unavailable} == {Ending.UNREACHABLE, Ending.UNHEALTHY}
    assert {one for one in Ending if one.transient} == {Ending.UNREACHABLE, Ending.UNHEALTHY, Ending.CLOSED_EARLY}
    assert {one for one in Ending if one.stored} == {Ending.COMPLETED, Ending.PARTIAL}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.dictionaries(st.text(), s), max_leaves=8
    )
)
def test_no_frame_is_beyond_classification(found: Any) -> None:
    """Also keys that mean something, with values of every other type."""
    kinds = ["error", "static_analysis_result", "progress_update", "health_response", 5, None]
    for frame in [
        found,
        *({"type": kind, "status": found, "analysis": found, "message": found, "data": found} for kind in kinds),
    ]:
        text = json.dumps(frame)
        assert isinstance(classify(text, REQUEST), Progress | Noise | Outcome)
        assert health_of(text) is None or health_of(text)


def test_texts_are_one_line_without_nul() -> None:
    assert shortened("a\0b\n c", 10) == "ab c"
    assert shortened("a\ud800", 10) == "a?"
    assert shortened("x" * 20, 5) == "xxxx…"
    assert dialect_of("x-y").replies == ("x_y_result",)
    assert len({one.request for one in DIALECTS.values()}) == len(DIALECTS)
