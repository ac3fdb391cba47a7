"""Every command that a page names is one: its words and options are taken, and what it names is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from dagster._cli import create_dagster_cli

from ops_pipeline.cli import main
from ops_pipeline.definitions import defs

PROJECT = Path(__file__).parents[2]
PAGES = sorted([PROJECT / "README.md", *PROJECT.glob("docs/*.md"), *PROJECT.glob("deploy/**/*.md")])
PROGRAMS: dict[str, click.Command] = {"ops-pipeline": main, "dagster": create_dagster_cli()}
BEFORE_OTHERS = {"with-home", "with-demo-redis"}
NAMED_ONLY = (click.MissingParameter, click.BadOptionUsage)
"""A page may name a command or an option without what it needs."""


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of a page, the program first; of several alternatives the first."""
    text = page.read_text()
    for line in [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^(?: {4}|\t)(.+)", text, re.MULTILINE)]:
        plain = re.sub(r"[\[\]…]", " ", line.rpartition(" && ")[2].partition(" | ")[0])
        try:
            words = shlex.split(plain, comments=True)
        except ValueError:
            # An apostrophe: a sentence, not a command.
            continue
        if words[1:] and words[0] == "ops-pipeline" and words[1] in BEFORE_OTHERS:
            words = words[2:]
        if words[1:] and words[0] in PROGRAMS:
            yield words


def parsed(words: list[str]) -> click.Context:
    """What click makes of a command, without running it."""
    command, rest = PROGRAMS[words[0]], words[1:]
    # Each command remembers the names of its option for help from the first context that it sees.
    context = click.Context(command, info_name=words[0], **command.context_settings)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"{context.command_path} knows no {rest[0]}")
        command, rest = found, rest[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    return context if isinstance(command, click.Group) else command.make_context(command.name, list(rest), context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_the_commands_of_a_page_are_taken(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    wrong = []
    for words in commands(page):
        try:
            parsed(words)
        except NAMED_ONLY:
            continue
        except click.UsageError as error:
            # Folders and files of an example.
            if "does not exist" not in error.message:
                wrong.append(f"{shlex.join(words)}: {error.message}")
        except click.exceptions.Exit:
            continue
    assert wrong == []


def test_jobs_schedules_and_sensors_that_commands_name_are_there() -> None:
    repository = defs.get_repository_def()
    names = {
        "job": set(repository.job_names),
        "schedule": {one.name for one in repository.schedule_defs},
        "sensor": {one.name for one in repository.sensor_defs},
    }
    told = [
        (page.name, words)
        for page in PAGES
        for words in commands(page)
        if words[0] == "dagster" and words[1] in names and words[2:] and words[2] not in {"list", "preview"}
    ]
    assert len(told) >= 5
    for page, words in told:
        after = (
            words[words.index("-j") + 1 :] if "-j" in words else words[-1:] if words[1] != "job" and words[3:] else []
        )
        named = after[0] if after else None
        assert named is None or named in names[words[1]], (page, words)


def test_a_command_that_is_none_is_found() -> None:
    for wrong in ("ops-pipeline fly", "ops-pipeline health --loud", "dagster sensor begin"):
        with pytest.raises(click.UsageError):
            parsed(wrong.split())
