"""From a task to the request that its service is sent, as pure rules.

Options of a task: `tools` or `tools_by_service`, `config` or `tool_config` (by tool), `template_slug`, `ports`,
`target_urls`; everything else goes into the configuration of services that are no analyzers, such as generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops_pipeline.analysis.protocol import Request, request_id
from ops_pipeline.analysis.states import Task
from ops_pipeline.analysis.targets import Target, parse_model, parse_target

MAKES_APPLICATIONS = "generation"
_KNOWN = {"tools", "tools_by_service", "config", "tool_config", "target_urls", "target_url"}


class TaskRefused(Exception):
    """A task can never be done as it stands; the message says why."""


def request_of(task: Task) -> tuple[Request, Target]:
    """The request for a task, and what it is about.

    Raises:
        TaskRefused: it asks for something that cannot be meant.
    """
    if task.unreadable:
        raise TaskRefused(task.unreadable)
    target = _target(task)
    options = {**_object(task.options, "custom_options"), **task.options}
    request = Request(
        id=request_id(task.service, task.target, task.id, task.attempt),
        service=task.service,
        model_slug=target.model_slug,
        app_number=target.app_number,
        tools=_tools(task.service, options),
        config=_config(task.service, options),
        target_urls=_urls(options),
    )
    return request, target


def _target(task: Task) -> Target:
    try:
        if task.service == MAKES_APPLICATIONS and "/app" not in task.target:
            return parse_model(task.target)
        return parse_target(task.target)
    except ValueError as error:
        raise TaskRefused(f"its target cannot be used: {error}") from None


def _tools(service: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The tools that are asked for; empty for all that the service has.

    A list that is there but empty is refused: it is what is left when no tool that was meant is valid.
    """
    by_service = _object(options, "tools_by_service")
    named = by_service[service] if service in by_service else options.get("tools")
    if named is None:
        return ()
    if not isinstance(named, list | tuple) or not all(isinstance(tool, str) and tool.strip() for tool in named):
        raise TaskRefused("options.tools is no list of names")
    if not named:
        raise TaskRefused("no valid tool: options.tools is empty; name tools, or leave it out for all of them")
    return tuple(tool.strip() for tool in named)


def _config(service: str, options: Mapping[str, Any]) -> dict[str, Any]:
    config = {**_object(options, "tool_config"), **_object(options, "config")}
    named = {name: options[name] for name in ("template_slug", "ports") if options.get(name) is not None}
    if service != MAKES_APPLICATIONS:
        return {**config, **named}
    return {**{name: value for name, value in options.items() if name not in _KNOWN}, **config, **named}


def _urls(options: Mapping[str, Any]) -> tuple[str, ...]:
    urls = options.get("target_urls")
    if urls is None and options.get("target_url"):
        urls = [options["target_url"]]
    if urls is None:
        return ()
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise TaskRefused("options.target_urls is no list of URLs")
    return tuple(urls)


def _object(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = options.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TaskRefused(f"options.{name} is no object")
    return value
