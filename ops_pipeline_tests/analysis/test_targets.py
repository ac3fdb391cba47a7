"""Names of applications, and the folders that are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.analysis.targets import Target, parse_model, parse_target, task_folder


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("openai_gpt-4o/app1", Target("openai_gpt-4o", 1)),
        ("openai/gpt-4o/app0", Target("openai/gpt-4o", 0)),
        ("meta/llama-3.1:free/app12", Target("meta/llama-3.1:free", 12)),
        ("a/app1/app2", Target("a/app1", 2)),
    ],
)
def test_an_application_is_named_by_model_and_number(text: str, target: Target) -> None:
    assert parse_target(text) == target


def test_a_slash_of_a_slug_becomes_an_underscore() -> None:
    assert Target("openai/gpt-4o", 0).folders == ("openai_gpt-4o", "app0")
    assert parse_model("openai/gpt-4o").folders == ("openai_gpt-4o", "new")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/app",
        "a/app-1",
        "a/app01",
        "a/app1.0",
        "/app1",
        "a/b1",
        "a/app1\n",
        "a/app1/",
        f"a/app{10**9}",
        "a/app\u0661",
    ],
)
def test_what_names_no_application_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write for example openai_gpt-4o/app1"):
        parse_target(text)


@pytest.mark.parametrize(
    "slug", ["..", ".", "../a", "a/..", "a/../b", "/a", "a//b", "a\\b", "a b", "a\0", ".hidden", "~", "a" * 201]
)
def test_no_slug_leads_out_of_its_folder(slug: str) -> None:
    """A target with two dots wrote its results over another's, and could have written anywhere."""
    for refused in (lambda: parse_target(f"{slug}/app1"), lambda: parse_model(slug)):
        with pytest.raises(ValueError, match="is no model slug"):
            refused()


@given(st.text(min_size=1, max_size=30))
def test_the_folder_of_a_task_is_one_folder_whatever_its_id(task_id: str) -> None:
    """Other programs choose ids as they like."""
    try:
        task_id.encode()
    except UnicodeEncodeError:
        return
    folder = Path("/results") / task_folder(task_id)
    assert folder.parent == Path("/results")
    assert folder.name.startswith("task_")
    assert folder.resolve() == folder


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_two_tasks_have_two_folders(ids: list[str]) -> None:
    first, second = ids
    assert task_folder(first) != task_folder(second) or {first, second} == {f"task_{second}", second}


def test_an_id_that_begins_like_the_folder_is_the_folder() -> None:
    assert task_folder("task_0123") == "task_0123"
    assert task_folder("0123") == "task_0123"
    assert task_folder("../x") == "task_..%2Fx"
