"""The order in which filters are defined."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops_pipeline.hypervisor.filters.order import dependency_order
from ops_pipeline.hypervisor.filters.plan import check_structure
from ops_pipeline.reconcile import PlanRefused
from ops_pipeline_tests.hypervisor.filters.samples import desired, filter_row, live, reference_row

EDGES = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40)


@settings(deadline=None, max_examples=50)
@given(EDGES, st.randoms(use_true_random=False))
def test_what_is_included_comes_first_and_each_filter_once(edges: list[tuple[int, int]], shuffler: object) -> None:
    """Diamonds included: a filter that two others include is visited once."""
    downwards = {(max(pair), min(pair)) for pair in edges if pair[0] != pair[1]}
    names = list(range(12))
    shuffler.shuffle(names)  # type: ignore[attr-defined]
    filters = {
        f"ibay-{name}": live(str(name), *(str(low) for high, low in sorted(downwards) if high == name))
        for name in names
    }
    order = dependency_order(filters, ())
    assert sorted(order) == sorted(filters)
    for high, low in downwards:
        assert order.index(f"ibay-{low}") < order.index(f"ibay-{high}")
    assert order == dependency_order(dict(sorted(filters.items())), ())


def test_a_thousand_filters_in_a_row_are_no_recursion() -> None:
    filters = {f"ibay-{n}": live(str(n), *([str(n + 1)] if n < 2999 else [])) for n in range(3000)}
    assert dependency_order(filters, ())[0] == "ibay-2999"


@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_a_circle_is_refused_and_named(circle: list[str]) -> None:
    rows = [filter_row(name) for name in [*circle, "other"]]
    references = [reference_row(one, two) for one, two in zip(circle, [*circle[1:], circle[0]], strict=True)]
    with pytest.raises(PlanRefused, match="include each other in a circle") as caught:
        check_structure(desired(rows, references=references))
    assert all(f"{name.title()} (ibay-{name})" in str(caught.value) for name in circle)
    assert "Other" not in str(caught.value)
    assert "No filter was touched" in str(caught.value)


def test_references_to_nothing_are_refused_and_named_all_at_once() -> None:
    found = desired(
        [filter_row("web"), filter_row("mail")],
        references=[reference_row("web", "gone"), reference_row("mail", "lost")],
    )
    with pytest.raises(PlanRefused) as caught:
        check_structure(found)
    assert str(caught.value) == (
        "Mail (ibay-mail) includes (no filter with id lost), which does not exist;"
        " Web (ibay-web) includes (no filter with id gone), which does not exist. No filter was touched."
    )


def test_a_filter_that_cannot_be_rendered_is_no_dangling_reference() -> None:
    found = desired(
        [filter_row("web"), filter_row("base", chain="nonsense")], references=[reference_row("web", "base")]
    )
    check_structure(found)
