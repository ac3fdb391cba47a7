"""Definitions of pipelines: what they may hold, that every mistake is told by its line, and which jobs a step has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.analysis.pipelines.definition import (
    MOST_JOBS,
    DefinitionRefused,
    jobs_of,
    parse_definition,
    read_definition,
)
from ops_pipeline.strict_yaml import FileRefused

EXAMPLE = Path(__file__).parents[3] / "docs" / "pipelines.example.yaml"
FILE = """\
name: nightly
steps:
  - name: generation
    services: generation
    models: [gpt, claude]
    templates: [chat, todo, shop]
  - name: analysis
    services: [static-analyzer, ai-analyzer]
    applications_of: generation
    tools: {static-analyzer: [ruff]}
"""


def refused(folder: Path, old: str, new: str) -> list[str]:
    """What is wrong with the file once a part of it is replaced, without the path."""
    assert old in FILE
    path = folder / "pipeline.yaml"
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(FileRefused) as refusal:
        read_definition(path)
    return [line.removeprefix(f"{path}:") for line in str(refusal.value).splitlines()]


def step(**fields: Any) -> dict[str, Any]:
    return {"name": "one", "services": "static-analyzer"} | fields


def definition(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "nightly", "steps": list(steps)} | fields


def numbered(pairs: list[tuple[str, str]]) -> list[str]:
    """New applications, numbered in order."""
    return [f"{model}/app{index}" for index, (model, _) in enumerate(pairs)]


def test_the_example_of_the_documentation_is_a_pipeline() -> None:
    example = read_definition(EXAMPLE)
    made, analysed, older = jobs_of(example, numbered)
    assert (len(made), analysed) == (4, made)
    assert older == [("openai_gpt-4o/app1", ""), ("anthropic_claude-sonnet/app0", "")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: nightly", "nam: nightly", ["1: nam: unknown field", "1: name: Field required"]),
        ("    services: generation\n", "", ["3: steps.0.services: Field required"]),
        ("    templates: [chat, todo, shop]\n", "", ["3: steps.0: models and templates go together"]),
        ("models: [gpt, claude]", "models: []", ["3: steps.0: models and templates go together"]),
        ("models: [gpt, claude]", "models: [gpt, 'a b']", ["5: steps.0.models.1: String should match pattern"]),
        ("    applications_of: generation\n", "", ["7: steps.1: give either models and templates, or"]),
        (
            "applications_of: generation",
            "applications_of: genration",
            ["9: steps.1.applications_of: genration is no earlier step"],
        ),
        ("- name: analysis", "- name: generation", ["7: steps.1.name: generation stands here more than once"]),
        ("[ruff]", "[]", ["7: steps.1: no tools of static-analyzer: that would mean all of them"]),
        ("{static-analyzer: [ruff]}", "{zap: [zap]}", ["7: steps.1: tools of zap, which is none of the step's"]),
        ("[static-analyzer, ai-analyzer]", "[]", ["8: steps.1.services: Tuple should have at least 1 item"]),
        ("[static-analyzer, ai-analyzer]", "[a, a]", ["7: steps.1: a stands twice among services"]),
        ("services: generation", "services: unified", ["3: steps.0: unified is no service"]),
        ("    tools:", "    options: {share: .nan}\n    tools:", ["7: steps.1: options hold a number that is none"]),
        ("    tools:", '    options: {text: "a\\0b"}\n    tools:', ["7: steps.1: options hold a NUL"]),
        ("name: nightly", "name: nightly\ndeadline_minutes: 0", ["2: deadline_minutes: Input should be greater"]),
        ("    tools:", "    concurrency: 0\n    tools:", ["10: steps.1.concurrency: Input should be greater"]),
        ("    tools:", "    priority: soon\n    tools:", ["10: steps.1.priority: Input should be 'urgent', 'high'"]),
        (
            "applications_of: generation",
            "applications: [gpt:1, gpt]",
            ["9: steps.1.applications.1: 'gpt' is no application: write model:number"],
        ),
    ],
)
def test_every_mistake_is_told_by_its_line(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    found = refused(tmp_path, old, new)
    assert len(found) == len(told)
    for line, start in zip(found, told, strict=True):
        assert line.startswith(start)


def test_a_step_cannot_take_the_applications_of_a_later_one_or_of_itself() -> None:
    for name in ("one", "two"):
        steps = [step(applications_of=name), step(name="two", applications=["gpt:1"])]
        with pytest.raises(DefinitionRefused, match=r"steps\.0\.applications_of: \w+ is no earlier step"):
            parse_definition(definition(*steps))


@pytest.mark.parametrize("application", ["gpt:-1", "gpt:", ":1", "gpt:1.0", "gpt", 3, None, {"model": "gpt"}, "a b:1"])
def test_what_is_no_application_is_refused(application: Any) -> None:
    with pytest.raises(DefinitionRefused, match=r"steps\.0\.applications\.0: .* is no (application|model)"):
        parse_definition(definition(step(applications=[application])))


@pytest.mark.parametrize("application", ["gpt:0", "gpt:00", {"model": "gpt", "app": 0}])
def test_an_application_may_have_the_number_0(application: Any) -> None:
    """Its number was asked for with `if app_number`."""
    assert jobs_of(parse_definition(definition(step(applications=[application]))), numbered) == [[("gpt/app0", "")]]


def test_a_step_of_more_jobs_than_can_be_written_at_once_is_refused() -> None:
    largest = step(models=["gpt"] * (MOST_JOBS // 100), templates=["chat"] * 100)
    assert len(jobs_of(parse_definition(definition(largest)), numbered)[0]) == MOST_JOBS
    with pytest.raises(DefinitionRefused, match="more than 10000 jobs"):
        parse_definition(definition(largest | {"templates": ["chat"] * 101}))


@pytest.mark.parametrize("values", [None, [], "text", {}, {"name": "a", "steps": []}])
def test_a_definition_that_another_program_wrote_wrongly_is_refused_in_words(values: Any) -> None:
    with pytest.raises(DefinitionRefused, match=r"^\w+"):
        parse_definition(values)


def test_a_definition_comes_back_from_the_database_as_it_was() -> None:
    example = read_definition(EXAMPLE)
    assert parse_definition(json.loads(json.dumps(example.model_dump(mode="json")))) == example


@given(models=st.integers(1, 12), templates=st.integers(1, 12))
def test_job_i_is_model_i_by_t_and_template_i_mod_t_and_a_step_fed_by_it_has_the_same(
    models: int, templates: int
) -> None:
    names, kinds = [f"m{i}" for i in range(models)], [f"t{i}" for i in range(templates)]
    made = parse_definition(
        definition(step(models=names, templates=kinds), step(name="two", applications_of="one", services=["a", "b"]))
    )
    first, second = jobs_of(made, numbered)
    assert first == [(f"{names[i // templates]}/app{i}", kinds[i % templates]) for i in range(models * templates)]
    assert second == first
