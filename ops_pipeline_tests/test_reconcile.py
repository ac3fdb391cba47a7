"""The vocabulary of every job: when a plan is too large, what an outcome means, and tables that hold what they hold."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ops_pipeline.reconcile import (
    MAX_TABLE_ROWS,
    Change,
    Outcome,
    Plan,
    PlanRefused,
    SafetyLimit,
    changes_table,
    count_reasons,
    counted,
    markdown_table,
)

counts = st.integers(0, 200)
shares = st.floats(0, 1)


def plan_of(changes: int, scanned: int) -> Plan:
    return Plan(tuple(Change(f"call-{n}", "fail", "processing for 31 minutes") for n in range(changes)), scanned)


def allows(limit: SafetyLimit, changes: int, scanned: int) -> bool:
    return limit.objection(plan_of(changes, scanned)) is None


def test_a_plan_counts_what_it_leaves_alone() -> None:
    assert plan_of(3, 10).unchanged == 7
    assert Plan((), 0).unchanged == 0


def test_without_limits_any_plan_passes() -> None:
    SafetyLimit().check(plan_of(200, 200))


@pytest.mark.parametrize(("changes", "passes"), [(0, True), (5, True), (6, False)])
def test_a_count_is_reached_and_not_passed(changes: int, *, passes: bool) -> None:
    assert allows(SafetyLimit(count=5), changes, 1_000) is passes


@pytest.mark.parametrize(("changes", "passes"), [(0, True), (20, True), (21, False), (100, False)])
def test_a_share_is_reached_and_not_passed(changes: int, *, passes: bool) -> None:
    assert allows(SafetyLimit(share=0.2), changes, 100) is passes


def test_a_share_is_not_applied_below_the_minimum_population() -> None:
    """One machine of two is a half: a small host could never be reconciled."""
    limit = SafetyLimit(share=0.2, minimum_population=10)
    assert allows(limit, 9, 9)
    assert not allows(limit, 10, 10)
    assert allows(limit, 2, 10)


def test_a_count_is_applied_to_small_populations_too() -> None:
    assert not allows(SafetyLimit(count=1, share=0.9), 2, 2)


def test_a_limit_of_nothing_refuses_the_first_change_and_passes_an_empty_plan() -> None:
    for limit in (SafetyLimit(count=0), SafetyLimit(share=0.0)):
        assert allows(limit, 0, 100)
        assert not allows(limit, 1, 100)


def test_a_refusal_says_how_much_of_what_and_what_to_do() -> None:
    """Every VM was marked stopped because one hypervisor answered with an empty list."""
    with pytest.raises(PlanRefused) as caught:
        SafetyLimit(share=0.25).check(plan_of(150, 200))
    said = str(caught.value)
    assert said.startswith("150 of 200 objects are more than the limit of 25%. Nothing was changed.")
    assert "launch again with the limit raised in the run config" in said
    assert SafetyLimit(count=10).objection(plan_of(11, 200)) == "11 changes are more than the limit of 10"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"count": -1}, "a limit of -1 changes is below zero"),
        ({"share": -0.01}, "a share lies between 0 and 1, not at -0.01"),
        ({"share": 20}, "a share lies between 0 and 1, not at 20"),
        ({"share": float("nan")}, "a share lies between 0 and 1, not at nan"),
    ],
)
def test_limits_that_were_never_meant_are_refused(limits: dict[str, float], message: str) -> None:
    """A share of 20, meant as percent, allowed everything."""
    with pytest.raises(ValueError, match=message):
        SafetyLimit(**limits)  # type: ignore[arg-type]


@given(changes=counts, more=counts, scanned=counts, count=counts, share=shares)
def test_what_passes_still_passes_with_fewer_changes_or_a_higher_limit(
    changes: int, more: int, scanned: int, count: int, share: float
) -> None:
    limit = SafetyLimit(count, share, minimum_population=10)
    if allows(limit, changes + more, scanned):
        assert allows(limit, changes, scanned)
        assert allows(SafetyLimit(count + more, share, 10), changes + more, scanned)
        assert allows(SafetyLimit(count, 1.0, 10), changes + more, max(scanned, changes + more))


def test_an_outcome_with_failures_is_never_a_success() -> None:
    assert Outcome().status == "success"
    assert Outcome(scanned=100, changed=99, skipped=1).status == "success"
    assert Outcome(scanned=100, changed=99, failed=1).status == "failed"


def test_what_is_planned_and_reported_cannot_be_changed_afterwards() -> None:
    for value, field in ((Change("a", "fail", "old"), "action"), (plan_of(1, 1), "changes"), (Outcome(), "failed")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


def test_reasons_are_counted_the_most_frequent_first() -> None:
    changes = [Change(str(n), "fail", reason) for n, reason in enumerate(["old", "gone", "gone"])]
    assert list(count_reasons(changes).items()) == [("gone", 2), ("old", 1)]
    assert count_reasons([]) == {}


def test_a_table_of_changes_tells_what_each_object_was_and_why_it_changes() -> None:
    table = changes_table([Change("vm-7", "stop", "libvirt says shut off", planned_from="running")])
    assert table.splitlines() == [
        "| object | action | was | reason |",
        "| --- | --- | --- | --- |",
        "| vm-7 | stop | running | libvirt says shut off |",
    ]


def test_cells_are_written_for_people() -> None:
    at = datetime(2026, 3, 10, 8, 5, 1, 123456, tzinfo=UTC)
    assert markdown_table(("what", "since"), [("a", at), ("b", None)]).splitlines()[2:] == [
        "| a | 2026-03-10 08:05:01 |",
        "| b |  |",
    ]


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 hosts are"), (1, "1 host is"), (2, "2 hosts are")], ids=["none", "one", "two"]
)
def test_a_number_agrees_with_what_it_counts(number: int, words: str) -> None:
    assert counted(number, "host is", "hosts are") == words
    assert counted(number, "host") == words.rpartition(" ")[0]


def test_a_long_table_is_cut_at_fifty_rows_and_says_so() -> None:
    """Twenty thousand rows of metadata made the run's page unusable."""
    rows = [[n] for n in range(MAX_TABLE_ROWS)]
    assert len(markdown_table(["n"], rows).splitlines()) == 2 + 50
    cut = markdown_table(["n"], [*rows, [50], [51]])
    assert cut.splitlines()[:52] == markdown_table(["n"], rows).splitlines()
    assert cut.endswith("\n\n… and 2 more of 52 in all.")


def cells_of(line: str) -> list[str]:
    """The cells of a row as a Markdown reader sees them: only a bar without a backslash before it parts them."""
    cells, cell, escaped = [], "", False
    for character in line.strip().removeprefix("|"):
        if escaped:
            cell, escaped = cell + character, False
        elif character == "\\":
            escaped = True
        elif character == "|":
            cells.append(cell.strip())
            cell = ""
        else:
            cell += character
    return cells


@given(rows=st.lists(st.tuples(st.text(), st.text(alphabet="|\\\n\r`-: \u2028\x0b\x85"), st.integers()), max_size=60))
@example(rows=[("a|b", "a\\|b", 1), ("a\\", "\r| x |", 2), ("| --- |", "\u2028", 3)])
def test_no_cell_breaks_out_of_its_table(rows: list[tuple[str, str, int]]) -> None:
    """A model named "a|b" moved the figures of its row by one column; one with a line feed ended the table."""
    lines = markdown_table(["user", "text", "n"], rows).split("\n")
    shown = rows[:MAX_TABLE_ROWS]
    assert len(lines) == 2 + len(shown) + (2 if len(rows) > MAX_TABLE_ROWS else 0)
    for line, row in zip(lines[2:], shown, strict=False):
        assert len(line.splitlines()) == 1
        assert cells_of(line) == [" ".join(str(cell).splitlines()).strip() for cell in row]
