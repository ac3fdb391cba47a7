"""What a pipeline is told to do: ordered steps, each with its services and jobs.

What belongs here: what may stand in a definition, what is wrong with it, and which jobs a step has. What does not:
what has become of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints, ValidationError, model_validator

from ops_pipeline.analysis.tables import UNIFIED
from ops_pipeline.strict_yaml import Problem, Strict, read_strictly

LONGEST_DEADLINE_MINUTES = 60 * 24 * 31
MOST_JOBS = 10_000
"""Of one step: all of its jobs are written when it is submitted."""
LARGEST_APPLICATION = 2**31 - 1

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
SLUG = r"^[A-Za-z0-9][A-Za-z0-9_./@+-]{0,199}$"
Slug = Annotated[str, StringConstraints(pattern=SLUG)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Priority = Literal["urgent", "high", "normal", "low"]


class DefinitionRefused(ValueError):
    """A definition cannot be used; the message has a line for each reason."""


def _application(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"model", "app"}:
        value = f"{value['model']}:{value['app']}"
    slug, colon, number = str(value).rpartition(":")
    if not colon or re.fullmatch(r"[0-9]{1,10}", number) is None or int(number) > LARGEST_APPLICATION:
        raise ValueError(f"{value!r} is no application: write model:number, or {{model: …, app: …}}")
    if re.fullmatch(SLUG, slug) is None:
        raise ValueError(f"{slug!r} is no model: letters, digits and _ . / @ + - only")
    return f"{slug}:{int(number)}"


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Application = Annotated[str, BeforeValidator(_application)]
"""An existing application, `model:number`; numbers begin at 0."""
JobPlan = tuple[str, str]
"""Target and template of a job."""
Services = Annotated[tuple[Name, ...], Field(min_length=1, max_length=20), BeforeValidator(_one_or_more)]


class Step(Strict):
    """One step: a task of these services for each of its jobs.

    Its jobs are models x templates, of which each makes an application, existing applications, or those of an earlier
    step.
    """

    name: Name
    services: Services
    models: tuple[Slug, ...] = ()
    templates: tuple[Name, ...] = ()
    applications: tuple[Application, ...] = ()
    applications_of: Name | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    tools: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    critical: bool = False
    concurrency: int = Field(default=3, ge=1, le=1000)
    priority: Priority = "normal"

    @model_validator(mode="after")
    def _has_jobs_of_one_kind(self) -> Step:
        if bool(self.models) != bool(self.templates):
            raise ValueError("models and templates go together: a job is made of one of each")
        kinds = [bool(self.models), bool(self.applications), self.applications_of is not None]
        if sum(kinds) != 1:
            raise ValueError("give either models and templates, or applications, or applications_of an earlier step")
        if len(self.models) * len(self.templates) + len(self.applications) > MOST_JOBS:
            raise ValueError(f"more than {MOST_JOBS} jobs: make several pipelines of it")
        return self

    @model_validator(mode="after")
    def _can_be_told(self) -> Step:
        if UNIFIED in self.services:
            raise ValueError(f"{UNIFIED} is no service: name those that do it")
        try:
            told = json.dumps(self.options, allow_nan=False)
        except ValueError:
            raise ValueError("options hold a number that is none, which JSON cannot tell") from None
        if "\\u0000" in told:
            raise ValueError("options hold a NUL character, which no database keeps")
        return self

    @model_validator(mode="after")
    def _tools_are_of_its_services(self) -> Step:
        twice = [name for name, times in Counter(self.services).items() if times > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands twice among services")
        for service, tools in self.tools.items():
            if service not in self.services:
                raise ValueError(f"tools of {service}, which is none of the step's services")
            if not tools:
                raise ValueError(f"no tools of {service}: that would mean all of them; leave the service out instead")
        return self


class Definition(Strict):
    """A pipeline: its steps in order.

    Attributes:
        name: in the operator's words.
        deadline_minutes: after so long it is stopped and has failed; None for no end. A pause does not stop the clock.
        steps: one after the other; each begins when the one before has ended.
    """

    name: Words
    deadline_minutes: float | None = Field(default=None, gt=0, le=LONGEST_DEADLINE_MINUTES)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=50)


def read_definition(path: Path) -> Definition:
    """Read and validate a definition.

    Raises:
        FileRefused: it cannot be used; every reason is told, by line.
    """
    return read_strictly(path, Definition, hint="Name a file of a pipeline; see docs/pipelines.md.", further=_of_steps)


def parse_definition(values: Any) -> Definition:
    """Validate a definition that comes from a program or stands in the database.

    Raises:
        DefinitionRefused: it cannot be used; every reason is told, by place.
    """
    try:
        definition = Definition.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        found = [(problem["loc"], problem["msg"].removeprefix("Value error, ")) for problem in problems]
    else:
        found = _of_steps(definition)
    if found:
        lines = [f"{'.'.join(map(str, place)) or 'definition'}: {text}" for place, text in found]
        raise DefinitionRefused("\n".join(lines))
    return definition


def _of_steps(definition: Definition) -> list[Problem]:
    """What no single field shows."""
    found: list[Problem] = []
    earlier: set[str] = set()
    for index, step in enumerate(definition.steps):
        if step.name in earlier:
            found.append((("steps", index, "name"), f"{step.name} stands here more than once"))
        if step.applications_of is not None and step.applications_of not in earlier:
            found.append((("steps", index, "applications_of"), f"{step.applications_of} is no earlier step"))
        earlier.add(step.name)
    return found


def target_of(model: str, number: int | str) -> str:
    """How tasks name an application."""
    return f"{model}/app{number}"


def source_of(definition: Definition, position: int) -> int | None:
    """The position of the step whose applications a step takes; None when its jobs stand in the definition."""
    name = definition.steps[position].applications_of
    return None if name is None else next(i for i, step in enumerate(definition.steps) if step.name == name)


def pairs_of(step: Step) -> list[tuple[str, str]]:
    """Model and template of each job that makes an application: job i is model i // T and template i % T, of T."""
    count = len(step.templates)
    return [(step.models[index // count], step.templates[index % count]) for index in range(len(step.models) * count)]


def jobs_of(definition: Definition, reserve: Callable[[list[tuple[str, str]]], list[str]]) -> list[list[JobPlan]]:
    """Target and template of each job of each step, in the order of their index.

    A step that takes the applications of another has one job for each of that step's, with the same index.

    Args:
        definition: of the pipeline.
        reserve: gives each pair of model and template a new application, and says what tasks call it.
    """
    laid: list[list[JobPlan]] = []
    for position, step in enumerate(definition.steps):
        source = source_of(definition, position)
        if source is not None:
            laid.append(laid[source])
        elif step.applications:
            laid.append([(target_of(*application.rsplit(":", 1)), "") for application in step.applications])
        else:
            pairs = pairs_of(step)
            laid.append([(target, template) for target, (_, template) in zip(reserve(pairs), pairs, strict=True)])
    return laid
