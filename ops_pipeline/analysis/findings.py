"""What the tools of a service found: findings, tools and severities out of a reply, as pure rules.

Tools that speak SARIF 2.1.0 are read by its specification; of the others, lists of issues with the usual words. What
belongs here: reading. What does not: storing (`storing`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops_pipeline.analysis.protocol import storable

SEVERITIES = ("low", "medium", "high", "critical")
LEVELS = {"error": "high", "warning": "medium", "note": "low", "none": "low"}
"""Severities of SARIF levels; a level that is missing means a warning."""
WORDS = {
    "critical": ("critical", "blocker", "fatal"),
    "high": ("high", "error", "major", "severe"),
    "medium": ("medium", "moderate", "warning", "warn"),
}
SECURITY_SEVERITIES = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.0, "low"))
"""From which score on, in the property `security-severity` of a rule, as CVSS counts."""
DEEPEST = 8
LONGEST_DESCRIPTION = 10_000
LONGEST_TITLE = 300
LARGEST_INTEGER = 2**31 - 1

_LISTS = ("issues", "findings", "alerts", "vulnerabilities", "results")
_TEXTS = ("message", "description", "title", "name", "alert", "issue_text", "text")
_RULES = ("rule_id", "rule", "test_id", "check_id", "code", "id")
_PATHS = ("file_path", "file", "filename", "path", "uri", "url", "location")
_LINES = ("line_number", "line", "start_line")
_SEVERITIES = ("severity", "risk", "issue_severity", "impact", "level")


@dataclass(frozen=True)
class Tool:
    """One tool that a service ran, or should have run.

    Attributes:
        name: in small letters.
        status: `success`, `error` or what else the service says.
        findings: how many.
        version: where it is told.
        error: why it failed; empty when it did not.
    """

    name: str
    status: str
    findings: int = 0
    version: str = ""
    error: str = ""


@dataclass(frozen=True)
class Finding:
    """One finding of one tool; lines and columns count from 1."""

    tool: str
    rule_id: str
    severity: str
    title: str
    description: str
    file_path: str = ""
    line_number: int | None = None
    column_number: int | None = None
    confidence: str = ""
    category: str = ""
    tool_version: str = ""
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Findings:
    """What an analysis found, and with which tools; `runs` are those of SARIF, as they came."""

    findings: tuple[Finding, ...] = ()
    tools: tuple[Tool, ...] = ()
    runs: tuple[Mapping[str, Any], ...] = ()

    @property
    def severities(self) -> dict[str, int]:
        """How many findings there are of each severity, the gravest first."""
        counts = Counter(finding.severity for finding in self.findings)
        return {name: counts[name] for name in reversed(SEVERITIES) if counts[name]}


def findings_of(analysis: Any) -> Findings:
    """Read an analysis; what is not understood is left out, never an error."""
    if not isinstance(analysis, Mapping):
        return Findings()
    runs = tuple(_runs(analysis))
    by_sarif = [finding for run in runs for finding in _of_run(run)]
    speak_sarif = {_driver(run)[0] for run in runs}
    results = analysis.get("results")
    parts = list(_tool_results(results if isinstance(results, Mapping) else analysis, "", 0))
    others = [finding for name, part in parts if name not in speak_sarif for finding in _of_lists(name, part)]
    found = (*by_sarif, *others)
    return Findings(found, tuple(_tools(analysis, parts, runs, found)), runs)


def finding_id(task_id: str, finding: Finding, ordinal: int) -> str:
    """The id of a finding of a task: the same whenever the same result is stored.

    Args:
        task_id: of the task.
        finding: of it.
        ordinal: which one it is among findings that are otherwise alike, from 0.
    """
    parts = (task_id, *identity(finding), ordinal)
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:32]


def identity(finding: Finding) -> tuple[object, ...]:
    """What tells a finding from others."""
    place = (finding.file_path, finding.line_number, finding.column_number)
    return (finding.tool, finding.rule_id, *place, finding.description)


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON columns of every database take it."""
    if depth > DEEPEST:
        return None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {storable(str(key)): plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, depth + 1) for one in value]
    return value


def _runs(analysis: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The runs of SARIF in an analysis: those of its export, else those of each tool."""
    export = _document_runs(analysis.get("sarif_export")) or _document_runs(analysis.get("sarif"))
    yield from export or _scattered(analysis, 0)


def _scattered(holder: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    for name, value in holder.items():
        if name == "sarif":
            yield from _document_runs(value)
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _scattered(value, depth + 1)


def _document_runs(value: Any) -> list[Mapping[str, Any]]:
    """The runs in a document of SARIF, or the one run that stands alone."""
    if not isinstance(value, Mapping):
        return []
    runs = value["runs"] if isinstance(value.get("runs"), list) else [value]
    return [run for run in runs if isinstance(run, Mapping) and isinstance(run.get("results"), list)]


def _driver(run: Mapping[str, Any]) -> tuple[str, str, Sequence[Any]]:
    """Name, version and rules of the tool of a run."""
    driver = _mapping(_mapping(run.get("tool")).get("driver"))
    rules = driver.get("rules")
    version = driver.get("semanticVersion") or driver.get("version")
    return _text(driver.get("name")).lower() or "unknown", _text(version), rules if isinstance(rules, list) else []


def _of_run(run: Mapping[str, Any]) -> Iterator[Finding]:
    tool, version, rules = _driver(run)
    by_id = {_text(rule.get("id")): rule for rule in rules if isinstance(rule, Mapping)}
    for result in run["results"]:
        # What passed, or does not apply, is no finding.
        if isinstance(result, Mapping) and result.get("kind", "fail") in {"fail", "review", "open"}:
            yield _of_result(tool, version, result, by_id, rules)


def _of_result(
    tool: str, version: str, result: Mapping[str, Any], by_id: Mapping[str, Any], rules: Sequence[Any]
) -> Finding:
    rule_id, rule = _rule(result, by_id, rules)
    properties = {**_mapping(rule.get("properties")), **_mapping(result.get("properties"))}
    message = _message(result.get("message"))
    path, line, column = _place(result.get("locations"))
    return Finding(
        tool=tool,
        tool_version=version,
        rule_id=rule_id,
        severity=_severity_of_result(result, rule, properties),
        title=_message(rule.get("shortDescription"))[:LONGEST_TITLE]
        or _text(rule.get("name"))
        or message[:LONGEST_TITLE],
        description=message[:LONGEST_DESCRIPTION],
        file_path=path,
        line_number=line,
        column_number=column,
        confidence=_text(properties.get("issue_confidence") or properties.get("confidence")).lower(),
        category=_text(next(iter(_list(properties.get("tags"))), "")),
        data={"level": _level(result, rule), "properties": plain(properties)},
    )


def _rule(result: Mapping[str, Any], by_id: Mapping[str, Any], rules: Sequence[Any]) -> tuple[str, Mapping[str, Any]]:
    reference = _mapping(result.get("rule"))
    rule_id = _text(result.get("ruleId") or reference.get("id"))
    index = result.get("ruleIndex", reference.get("index"))
    if rule_id in by_id:
        return rule_id, by_id[rule_id]
    if isinstance(index, int) and 0 <= index < len(rules) and isinstance(rules[index], Mapping):
        return rule_id or _text(rules[index].get("id")), rules[index]
    return rule_id, {}


def _level(result: Mapping[str, Any], rule: Mapping[str, Any]) -> str:
    level = result.get("level") or _mapping(rule.get("defaultConfiguration")).get("level")
    return level if level in LEVELS else "warning"


def _severity_of_result(result: Mapping[str, Any], rule: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    score = properties.get("security-severity")
    try:
        value = float(score) if score is not None else None
    except (TypeError, ValueError):
        value = None
    if value is not None and 0 <= value <= 10:
        return next(name for least, name in SECURITY_SEVERITIES if value >= least)
    told = properties.get("issue_severity") or properties.get("severity")
    return severity_of(told) if told else LEVELS[_level(result, rule)]


def severity_of(word: Any) -> str:
    """The severity that a tool's own word means; `low` for what is not known."""
    text = str(word).strip().lower()
    return next((severity for severity, words in WORDS.items() if text.startswith(words)), "low")


def _message(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    message = _mapping(value)
    return _text(message.get("text") or message.get("markdown"))


def _place(locations: Any) -> tuple[str, int | None, int | None]:
    physical = _mapping(_mapping(next(iter(_list(locations)), {})).get("physicalLocation"))
    region = _mapping(physical.get("region"))
    path = _text(_mapping(physical.get("artifactLocation")).get("uri")).removeprefix("file://")
    return path, _number(region.get("startLine")), _number(region.get("startColumn"))


def _tool_results(holder: Mapping[str, Any], name: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of an analysis that tell of one tool each, with its name."""
    if isinstance(holder.get("tool"), str) or "executed" in holder:
        yield _text(holder.get("tool") or name).lower(), holder
        return
    for key, value in holder.items():
        if isinstance(value, Mapping) and not key.startswith("_") and depth < DEEPEST and key not in _NOT_TOOLS:
            yield from _tool_results(value, key, depth + 1)


_NOT_TOOLS = {"sarif", "sarif_export", "summary", "metadata"}


def _of_lists(tool: str, part: Mapping[str, Any]) -> Iterator[Finding]:
    """The findings of a tool that does not speak SARIF."""
    listed = next((part[name] for name in _LISTS if isinstance(part.get(name), list)), [])
    for issue in listed:
        if isinstance(issue, Mapping):
            text = _first(issue, _TEXTS)
            yield Finding(
                tool=tool,
                rule_id=_first(issue, _RULES),
                severity=severity_of(_first(issue, _SEVERITIES)),
                title=text[:LONGEST_TITLE],
                description=(_text(issue.get("description")) or text)[:LONGEST_DESCRIPTION],
                file_path=_first(issue, _PATHS),
                line_number=next((number for number in (_number(issue.get(name)) for name in _LINES) if number), None),
                confidence=_text(issue.get("confidence") or issue.get("issue_confidence")).lower(),
                category=_text(issue.get("category") or issue.get("type")),
                data=plain(issue),
            )


def _tools(
    analysis: Mapping[str, Any],
    parts: Sequence[tuple[str, Mapping[str, Any]]],
    runs: Sequence[Mapping[str, Any]],
    found: Sequence[Finding],
) -> Iterator[Tool]:
    counts = Counter(finding.tool for finding in found)
    versions = {name: version for name, version, _ in map(_driver, runs)}
    told = dict(parts)
    used = [_text(name).lower() for name in _list(analysis.get("tools_used"))]
    for name in dict.fromkeys((*told, *versions, *used)):
        part = told.get(name, {})
        error = _text(part.get("error"))
        status = _text(part.get("status")) or ("error" if error else "success")
        yield Tool(name, status, counts[name], versions.get(name, ""), error[:LONGEST_TITLE])


def _first(holder: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((_text(holder[name]) for name in names if holder.get(name) not in (None, "", [], {})), "")


def _text(value: Any) -> str:
    """A text in one value; lists and objects have none of their own."""
    return storable(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_INTEGER else None
