"""What a task analyses: a generated application, named `<model slug>/app<number>`.

What belongs here: reading such names, and the names of folders made of them. Both refuse what would lead out of the
folder that they lie in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

_TARGET = re.compile(r"(?P<slug>.+)/app(?P<number>0|[1-9][0-9]{0,8})")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+~-]*(/[A-Za-z0-9][A-Za-z0-9._:@+~-]*)*")
LONGEST_SLUG = 200


@dataclass(frozen=True)
class Target:
    """A generated application; 0 is a number like any other, and None stands for one that is yet to be made."""

    model_slug: str
    app_number: int | None

    @property
    def folders(self) -> tuple[str, str]:
        """The folder of the model, whose slug is put on one level, and that of the application in it."""
        number = "new" if self.app_number is None else f"app{self.app_number}"
        return self.model_slug.replace("/", "_"), number


def parse_target(text: str) -> Target:
    """Read the name of an application.

    Raises:
        ValueError: it is none, or its slug could lead out of a folder.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} names no application; write for example openai_gpt-4o/app1")
    return Target(_slug(match["slug"]), int(match["number"]))


def parse_model(text: str) -> Target:
    """Read the name of a model whose next application is yet to be made.

    Raises:
        ValueError: its slug could lead out of a folder.
    """
    return Target(_slug(text), None)


def _slug(slug: str) -> str:
    if len(slug) > LONGEST_SLUG or not _SLUG.fullmatch(slug):
        raise ValueError(
            f"{slug[:80]!r} is no model slug: letters, digits and . _ : @ + ~ - in parts between slashes, each of"
            " which begins with a letter or digit"
        )
    return slug


def task_folder(task_id: str) -> str:
    """The folder of a task: `task_<id>`, whatever characters other programs put into ids."""
    name = quote(task_id, safe="")
    return name if name.startswith("task_") else f"task_{name}"
