"""Storing what came of attempts: status, summary and all findings in one fenced transaction, the files with it.

The files of a result are written before (`results.stage`), and moved into place while the task's row is locked, so
that neither a worker that lost the task nor one that dies in between leaves files that belong to no result.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select

from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.findings import Finding, Findings, finding_id, identity
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.protocol import Outcome
from ops_pipeline.analysis.results import Staged, discard, publish
from ops_pipeline.analysis.states import Result, Task
from ops_pipeline.analysis.tables import analysis_results
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.expressions import is_any_of

AT_A_TIME = 1_000
found_ = analysis_results.c


@dataclass(frozen=True)
class Done:
    """An attempt that is over: how it went, and what there is to store besides."""

    result: Result
    staged: Staged | None = None
    found: Findings = field(default_factory=Findings)


def summary_of(task: Task, outcome: Outcome, found: Findings) -> dict[str, Any]:
    """The result of a task for `result_summary`: numbers and reasons, no findings."""
    tools = {
        tool.name: {"status": tool.status, "findings": tool.findings, "version": tool.version, "error": tool.error}
        for tool in found.tools
    }
    return {
        "summary": {
            "status": outcome.ending.value if outcome.ending.stored else "failed",
            "ending": outcome.ending.value,
            "total_findings": len(found.findings),
            "severities": found.severities,
            "services_executed": [task.service],
            "tools_executed": list(tools),
            "duration_seconds": round(outcome.seconds, 3),
        },
        "services": {task.service: {"status": outcome.ending.value, "error": outcome.message}},
        "tools": tools,
    }


def store(engine: Engine, owner: str, done: Sequence[Done], policy: Policy) -> dict[str, str]:
    """Write what came of attempts.

    May be called again with the same attempts when it failed: also when its commit went through unseen.

    Returns:
        The status that each task has now; tasks that were not the owner's any more are missing.

    Raises:
        DatabaseProblem: nothing was written.
        OSError: files could not be moved; nothing was written.
    """
    with writing(engine) as connection:
        now = database_now(connection)
        results = [one.result for one in done]
        statuses = finish(connection, owner, results, policy=policy, now=now, jitter=random.random)
        stored = [(one, one.staged) for one in done if one.staged is not None]
        wanted = {one.result.task.id for one, _ in stored if statuses.get(one.result.task.id) == one.result.status}
        kept = [(one, staged) for one, staged in stored if one.result.task.id in wanted]
        save_findings(connection, [(one.result.task, one.found) for one, _ in kept])
        for _, staged in kept:
            publish(staged)
    for one, staged in stored:
        if one.result.task.id not in wanted:
            discard(staged)
    return statuses


def save_findings(connection: Connection, results: Sequence[tuple[Task, Findings]]) -> None:
    """Make the findings of tasks those of their last result; what a person said of one that is still there stays."""
    if not results:
        return
    ids = [task.id for task, _ in results]
    before = set(connection.scalars(select(found_.id).where(is_any_of(found_.task_id, ids))))
    rows = {row["id"]: row for task, found in results for row in _rows(task, found.findings)}
    gone = sorted(before - set(rows))
    for start in range(0, len(gone), AT_A_TIME):
        connection.execute(delete(analysis_results).where(is_any_of(found_.id, gone[start : start + AT_A_TIME])))
    new = [row for identifier, row in rows.items() if identifier not in before]
    for start in range(0, len(new), AT_A_TIME):
        connection.execute(insert(analysis_results), new[start : start + AT_A_TIME])


def _rows(task: Task, findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    seen: Counter[tuple[object, ...]] = Counter()
    for finding in findings:
        alike = identity(finding)
        yield {
            "id": finding_id(task.id, finding, seen[alike]),
            "task_id": task.id,
            "attempt": task.attempt,
            **asdict(finding),
        }
        seen[alike] += 1
