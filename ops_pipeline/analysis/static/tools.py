"""The tools of the static analyzer: how each is started, and what its output means.

Sources come from generated applications, which nobody vouches for: tools read no configuration among them. What
belongs here: ruff and bandit, as pure rules. What does not: processes (`processes`).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ops_pipeline.analysis.findings import findings_of

RUFF_RULES = ("E9", "F", "B", "S", "ASYNC", "PLE")
_RULE = re.compile(r"[A-Z]{1,10}[0-9]{0,5}")
_RUFF_LEVELS = (("E9", "error"), ("PLE", "error"), ("invalid-syntax", "error"), ("S", "warning"), ("F", "warning"))
"""ruff calls everything an error; its rules begin with letters that say what they are about."""


class NotAsked(Exception):
    """The request's configuration cannot be used; the message says why."""


@dataclass(frozen=True)
class Tool:
    """One tool that is installed here.

    Attributes:
        name: of it.
        version: of it.
        command: makes its command line from the configuration of a request.
        read: its output in SARIF, changed where it misleads.
    """

    name: str
    version: str
    command: Callable[[Mapping[str, Any]], list[str]]
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]


def installed_tools() -> dict[str, Tool]:
    """The tools that can be run here; what the extra `analyzer` brings."""
    found: dict[str, Tool] = {}
    ruff = _beside_python("ruff")
    if ruff and (version := _version("ruff")):
        found["ruff"] = Tool("ruff", version, lambda config: [ruff, *_ruff_arguments(config)], _read_ruff)
    if version := _version("bandit"):
        # As a module: its script would have to be found too.
        found["bandit"] = Tool(
            "bandit", version, lambda config: [sys.executable, "-m", "bandit", *_bandit_arguments(config)], dict
        )
    return found


def _beside_python(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _ruff_arguments(config: Mapping[str, Any]) -> list[str]:
    selected = _rules(config, "ruff", {"select", "ignore"})
    return [
        *("check", ".", "--isolated", "--no-cache", "--exit-zero", "--quiet", "--output-format", "sarif"),
        *("--select", ",".join(selected.get("select") or RUFF_RULES)),
        *(("--ignore", ",".join(selected["ignore"])) if selected.get("ignore") else ()),
    ]


def _bandit_arguments(config: Mapping[str, Any]) -> list[str]:
    skipped = _rules(config, "bandit", {"skips"}).get("skips")
    # Without a file of settings of ours, one among the sources would say what is skipped.
    return [
        *("-r", ".", "-q", "-f", "sarif", "--exit-zero", "--ini", "/dev/null"),
        *(("-s", ",".join(skipped)) if skipped else ()),
    ]


def _rules(config: Mapping[str, Any], tool: str, known: set[str]) -> dict[str, list[str]]:
    """The lists of rules in the configuration of a tool.

    Raises:
        NotAsked: it holds something else.
    """
    unknown = sorted(set(config) - known)
    if unknown:
        raise NotAsked(f"config.{tool}.{unknown[0]} is unknown; there are {', '.join(sorted(known))}")
    for name, rules in config.items():
        if not isinstance(rules, list) or not all(isinstance(rule, str) and _RULE.fullmatch(rule) for rule in rules):
            raise NotAsked(f"config.{tool}.{name} is no list of rules such as S105")
    return {name: list(rules) for name, rules in config.items()}


def _read_ruff(run: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**run, "results": [{**result, "level": _ruff_level(result.get("ruleId"))} for result in run["results"]]}


def _ruff_level(rule: Any) -> str:
    return next((level for start, level in _RUFF_LEVELS if str(rule).startswith(start)), "note")


def read_sarif(tool: Tool, output: bytes, folder: Path) -> Mapping[str, Any]:
    """The run in a tool's output, with paths as seen from the application's folder.

    Raises:
        ValueError: the output holds none.
    """
    try:
        run = json.loads(output)["runs"][0]
        run = {**run, "results": [_relative(result, folder) for result in run["results"]]}
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("its output is no SARIF") from None
    return tool.read(run)


def _relative(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A finding without fixes, which may be longer than all else, and with relative paths."""
    kept = {key: value for key, value in result.items() if key != "fixes"}
    for location in kept.get("locations", []):
        artifact = location["physicalLocation"]["artifactLocation"]
        path = unquote(urlsplit(artifact["uri"]).path) if artifact["uri"].startswith("file:") else artifact["uri"]
        artifact["uri"] = path.removeprefix(f"{folder}/").removeprefix("./")
    return kept


def unread_files(run: Mapping[str, Any]) -> list[str]:
    """The files that a tool could not read, as bandit tells them."""
    notes = [
        note
        for invocation in run.get("invocations") or []
        for note in invocation.get("toolConfigurationNotifications") or []
        if note.get("level") == "error"
    ]
    places = [location for note in notes for location in note.get("locations") or []]
    return [place["physicalLocation"]["artifactLocation"]["uri"].removeprefix("./") for place in places]


def tool_result(tool: Tool, run: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What a reply tells of a tool that did its work."""
    found = findings_of({"sarif": run})
    unread = unread_files(run)
    return {
        "tool": tool.name,
        "executed": True,
        "status": "partial_success" if unread else "success",
        "version": tool.version,
        "total_issues": len(found.findings),
        "severity_breakdown": found.severities,
        "duration_seconds": round(seconds, 3),
        **({"error": f"{len(unread)} files could not be read: {', '.join(unread[:10])}"} if unread else {}),
    }


def analysis_of(results: Mapping[str, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The analysis of a reply, from what each tool gave.

    All tools well is success, none is error, and all else partial success.
    """
    states = Counter(result["status"] for result in results.values())
    well = states["success"]
    severities: Counter[str] = Counter()
    for result in results.values():
        severities.update(result.get("severity_breakdown") or {})
    status = "success" if well == len(results) else "error" if states["error"] == len(results) else "partial_success"
    errors = "; ".join(f"{name}: {result['error']}" for name, result in results.items() if result.get("error"))
    return {
        "status": status,
        **({"error": errors} if errors else {}),
        "tools_used": [name for name, result in results.items() if result["executed"]],
        "results": {"python": dict(results)},
        "sarif_export": {"version": "2.1.0", "runs": list(runs)},
        "summary": {
            "total_issues_found": sum(result.get("total_issues", 0) for result in results.values()),
            "tools_run_successfully": well,
            "severity_breakdown": dict(severities),
        },
    }
