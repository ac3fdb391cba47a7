"""From the row of a task to the request that its service gets."""

from __future__ import annotations

from typing import Any

import pytest

from ops_pipeline.analysis.states import Task
from ops_pipeline.analysis.targets import Target
from ops_pipeline.analysis.worker.requests import TaskRefused, request_of


def task(service: str = "static-analyzer", target: str = "openai/gpt-4o/app0", **options: Any) -> Task:
    return Task("task_1", 2, service, target, options)


def test_a_plain_task_asks_for_all_tools() -> None:
    request, target = request_of(task())
    assert target == Target("openai/gpt-4o", 0)
    assert (request.model_slug, request.app_number, request.tools, request.config) == ("openai/gpt-4o", 0, (), {})
    assert request.id == "openai_gpt-4o_app0_static-analyzer_task_1_2"


def test_each_service_gets_the_tools_that_are_meant_for_it() -> None:
    """One list of tools for all services left most services without any valid one."""
    options = {"tools": ["ruff"], "tools_by_service": {"dynamic-analyzer": ["zap"]}}
    assert request_of(task("dynamic-analyzer", **options))[0].tools == ("zap",)
    assert request_of(task("static-analyzer", **options))[0].tools == ("ruff",)


def test_options_may_stand_within_custom_options() -> None:
    assert request_of(task(custom_options={"tools": ["ruff"]}))[0].tools == ("ruff",)
    assert request_of(task(custom_options={"tools": ["ruff"]}, tools=["bandit"]))[0].tools == ("bandit",)


def test_configuration_goes_to_the_tools() -> None:
    options = {
        "tool_config": {"a": 1, "b": 1},
        "config": {"b": 2},
        "template_slug": "crud",
        "ports": [5000],
        "odd": True,
    }
    request, _ = request_of(task("ai-analyzer", **options, target_url="http://a"))
    assert request.config == {"a": 1, "b": 2, "template_slug": "crud", "ports": [5000]}
    assert request.target_urls == ("http://a",)


def test_a_generation_names_a_model_and_takes_all_options() -> None:
    request, target = request_of(task("generation", "openai/gpt-4o", template_slug="crud", temperature=0.2))
    assert target == Target("openai/gpt-4o", None)
    assert request.app_number is None
    assert request.config == {"template_slug": "crud", "temperature": 0.2}
    assert request_of(task("generation", "openai/gpt-4o/app3"))[1] == Target("openai/gpt-4o", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": []}, "no valid tool: options.tools is empty"),
        ({"tools_by_service": {"static-analyzer": []}, "tools": ["ruff"]}, "no valid tool: options.tools is empty"),
        ({"tools": "ruff"}, "options.tools is no list of names"),
        ({"tools": [1]}, "options.tools is no list of names"),
        ({"tools": [" "]}, "options.tools is no list of names"),
        ({"config": [1]}, "options.config is no object"),
        ({"tools_by_service": "x"}, "options.tools_by_service is no object"),
        ({"custom_options": 5}, "options.custom_options is no object"),
        ({"target_urls": "http://a"}, "options.target_urls is no list of URLs"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    """Above all an empty list of tools: it became a full default run."""
    with pytest.raises(TaskRefused, match=message):
        request_of(task(**options))


@pytest.mark.parametrize("target", ["", "nothing", "../../etc/app1", "a/app-1"])
def test_a_target_that_cannot_be_used_is_refused(target: str) -> None:
    with pytest.raises(TaskRefused, match="its target cannot be used"):
        request_of(task(target=target))


def test_an_unreadable_row_is_refused_with_its_reason() -> None:
    with pytest.raises(TaskRefused, match="options are no JSON"):
        request_of(Task("t", 1, "s", "a/app1", {}, "options are no JSON: '{'"))
