"""Findings of a reply, whether its tools speak SARIF or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.analysis.findings import Finding, Findings, Tool, finding_id, findings_of, plain, severity_of
from ops_pipeline_tests.analysis.analyzers import FINDING, sarif_run


def exported(*runs: Any, **more: Any) -> dict[str, Any]:
    return {"sarif_export": {"version": "2.1.0", "runs": list(runs)}, **more}


def only(analysis: dict[str, Any]) -> Finding:
    (finding,) = findings_of(analysis).findings
    return finding


def test_a_result_of_sarif_is_a_finding() -> None:
    assert only(exported(sarif_run("Ruff", [FINDING]))) == Finding(
        tool="ruff",
        tool_version="1.0",
        rule_id="S105",
        severity="medium",
        title="Possible hardcoded password",
        description="Possible hardcoded password",
        file_path="backend/app.py",
        line_number=3,
        column_number=5,
        data={"level": "warning", "properties": {}},
    )


@pytest.mark.parametrize(
    ("result", "severity"),
    [
        ({"level": "error"}, "high"),
        ({"level": "warning"}, "medium"),
        ({"level": "note"}, "low"),
        ({"level": "none"}, "low"),
        ({"level": "shout"}, "medium"),
        ({}, "medium"),
        ({"ruleId": "grave"}, "high"),
        ({"ruleIndex": 0}, "high"),
        ({"ruleIndex": 99}, "medium"),
        ({"rule": {"id": "grave"}}, "high"),
        ({"ruleId": "scored"}, "critical"),
        ({"properties": {"security-severity": "7.0"}}, "high"),
        ({"properties": {"security-severity": 4}}, "medium"),
        ({"properties": {"security-severity": "0.1"}}, "low"),
        ({"level": "error", "properties": {"security-severity": "high"}}, "high"),
        ({"level": "note", "properties": {"issue_severity": "HIGH"}}, "high"),
        ({"level": "error", "properties": {"issue_severity": "LOW"}}, "low"),
    ],
)
def test_severities_come_from_scores_words_and_levels_in_that_order(result: dict[str, Any], severity: str) -> None:
    rules = [
        {"id": "grave", "defaultConfiguration": {"level": "error"}},
        {"id": "scored", "properties": {"security-severity": "9.8"}},
    ]
    run = {"tool": {"driver": {"name": "t", "rules": rules}}, "results": [{"message": {"text": "m"}, **result}]}
    assert only(exported(run)).severity == severity


@pytest.mark.parametrize(("kind", "count"), [("fail", 1), ("review", 1), ("pass", 0), ("notApplicable", 0)])
def test_what_passed_is_no_finding(kind: str, count: int) -> None:
    assert len(findings_of(exported(sarif_run("t", [{**FINDING, "kind": kind}]))).findings) == count


def test_sarif_of_each_tool_is_read_where_there_is_no_export() -> None:
    results = {"python": {"ruff": {"tool": "ruff", "executed": True, "sarif": sarif_run("ruff", [FINDING])}}}
    found = findings_of({"results": results})
    assert [finding.rule_id for finding in found.findings] == ["S105"]
    assert len(found.runs) == 1


def test_an_export_and_its_parts_are_counted_once() -> None:
    run = sarif_run("ruff", [FINDING])
    results = {"python": {"ruff": {"tool": "ruff", "executed": True, "sarif": run, "issues": [{"message": "again"}]}}}
    assert len(findings_of(exported(run, results=results)).findings) == 1


def test_tools_without_sarif_list_their_issues() -> None:
    alert = {"alert": "XSS", "risk": "High", "url": "/search", "id": 40012, "confidence": "Medium", "type": "web"}
    slow = {"name": "slow", "severity": "moderate", "line": 7, "file": "a.js"}
    analysis = {
        "results": {"zap": {"executed": True, "alerts": [alert]}, "lighthouse": {"tool": "LH", "issues": [slow]}}
    }
    zap, lighthouse = findings_of(analysis).findings
    assert (zap.tool, zap.severity, zap.title, zap.file_path, zap.rule_id) == ("zap", "high", "XSS", "/search", "40012")
    assert (zap.confidence, zap.category, zap.data) == ("medium", "web", alert)
    assert (lighthouse.tool, lighthouse.severity, lighthouse.line_number) == ("lh", "medium", 7)


def test_all_findings_are_kept() -> None:
    """The first hundred were stored, and nobody was told of the others."""
    found = findings_of(exported(sarif_run("t", [FINDING] * 250)))
    assert len(found.findings) == 250
    assert len({finding_id("task_1", one, number) for number, one in enumerate(found.findings)}) == 250
    assert found.severities == {"medium": 250}


def test_the_same_finding_of_the_same_task_has_the_same_id() -> None:
    one = only(exported(sarif_run("t", [FINDING])))
    assert finding_id("task_1", one, 0) == finding_id("task_1", one, 0)
    assert len({finding_id("task_1", one, 0), finding_id("task_1", one, 1), finding_id("task_2", one, 0)}) == 3


def test_tools_are_told_with_what_became_of_them() -> None:
    results = {
        "ruff": {"tool": "ruff", "executed": True, "status": "success"},
        "bandit": {"tool": "bandit", "executed": False, "error": "no memory"},
    }
    found = findings_of(exported(sarif_run("ruff", [FINDING]), results=results, tools_used=["ruff", "mypy"]))
    assert found.tools == (
        Tool("ruff", "success", 1, "1.0"),
        Tool("bandit", "error", 0, "", "no memory"),
        Tool("mypy", "success"),
    )


@pytest.mark.parametrize("analysis", [None, [], "text", {}, {"sarif_export": None}, {"sarif_export": {"runs": [1]}}])
def test_an_analysis_without_findings_has_none(analysis: Any) -> None:
    assert findings_of(analysis) == Findings()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["results", "runs", "tool", "driver", "sarif", "issues", "locations", "x"]), inner
        )
    ),
    max_leaves=15,
)


@given(ANYTHING)
def test_no_analysis_is_beyond_reading(value: Any) -> None:
    """A worker must end a task whatever its service writes where findings are expected."""
    for analysis in (
        value,
        {"results": value},
        exported(value),
        exported({"tool": value, "results": [value, {"x": value}]}),
    ):
        for finding in findings_of(analysis).findings:
            json.dumps(finding.data, allow_nan=False)


def test_values_are_made_fit_for_both_databases() -> None:
    value = {"a\0": [float("nan"), float("inf"), "b\0", "\ud800", 1.5, None, True], 5: {"deep": 1}}
    assert plain(value) == {"a": [None, None, "b", "?", 1.5, None, True], "5": {"deep": 1}}
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"x": deep}
    json.dumps(plain(deep))


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**40, True, "3", 1.5])
def test_lines_that_are_none_are_left_out(number: Any) -> None:
    location = {"physicalLocation": {"region": {"startLine": number}}}
    assert only(exported(sarif_run("t", [{"message": {"text": "m"}, "locations": [location]}]))).line_number is None


def test_words_of_tools_are_understood() -> None:
    words = ["CRITICAL", "Blocker", "error", "Major", "High (Medium)", "moderate", "warning", "info", "", None, 5]
    assert [severity_of(word) for word in words] == [*["critical"] * 2, *["high"] * 3, *["medium"] * 2, *["low"] * 4]
