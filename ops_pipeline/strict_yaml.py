"""Files that operators write in YAML: read strictly, and refused by line.

What belongs here: reading, and where what is wrong stands. What does not: what a file may hold, which the domains say
with pydantic models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

Place = tuple[int | str, ...]
"""The way to a field, as in `("models", 2, "type")`."""
Problem = tuple[Place, str]
"""What is wrong with a field that no single field shows."""


class FileRefused(Exception):
    """A file cannot be used; the message has a line for each reason, with file and line."""


class Strict(BaseModel):
    """A model that takes no unknown field, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Content = TypeVar("Content", bound=Strict)


def read_strictly(
    path: Path, content: type[Content], *, hint: str, further: Callable[[Content], list[Problem]]
) -> Content:
    """Read and validate a file.

    Args:
        path: a YAML file.
        content: what it may hold.
        hint: told when it cannot be opened: which variable names it.
        further: finds what no single field shows, in valid content.

    Raises:
        FileRefused: it cannot be used; every reason is told.
    """
    try:
        return _read(path, content, further)
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror}. {hint}") from None
    except RecursionError:
        raise FileRefused(f"{path}:1: lists and mappings are nested too deeply") from None


def _read(path: Path, content: type[Content], further: Callable[[Content], list[Problem]]) -> Content:
    root = _composed(path)
    problems = _repeated(root, set())
    try:
        valid = content.model_validate(_Loader("").construct_document(root))
    except (ValidationError, yaml.YAMLError) as error:
        problems += _of_yaml(error) if isinstance(error, yaml.YAMLError) else _of_validation(root, error)
        raise _refused(path, problems) from None
    problems += [(_line(root, place), f"{'.'.join(map(str, place))}: {text}") for place, text in further(valid)]
    if problems:
        raise _refused(path, problems)
    return valid


def _composed(path: Path) -> MappingNode:
    raw = path.read_bytes()
    try:
        text = raw.decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FileRefused(f"{path}:{line}: not UTF-8: {error.reason}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileRefused(f"{path}:{line}: no YAML: {error.reason}") from None
    except yaml.YAMLError as error:
        raise _refused(path, _of_yaml(error)) from None
    if not isinstance(root, MappingNode):
        raise FileRefused(f"{path}:1: no mapping of names to values; see the docs for an example")
    return root


class _Loader(yaml.SafeLoader):
    """Names the line of values that cannot be what they look like, such as 2026-13-45, where PyYAML just fails."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Construct a value."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"this is no {kind}; write text in quotes", node.start_mark) from None


def _refused(path: Path, problems: list[tuple[int, str]]) -> FileRefused:
    return FileRefused("\n".join(f"{path}:{line}: {text}" for line, text in sorted(set(problems))))


def _of_yaml(error: yaml.YAMLError) -> list[tuple[int, str]]:
    mark = getattr(error, "problem_mark", None)
    return [(mark.line + 1 if mark else 1, f"no YAML: {getattr(error, 'problem', None) or error}")]


def _of_validation(root: Node, error: ValidationError) -> list[tuple[int, str]]:
    found = []
    problems = error.errors(include_input=False, include_url=False)
    for problem in problems:
        if problem["type"] == "too_short" and any(len(other["loc"]) > len(problem["loc"]) for other in problems):
            # Of a list with one wrong item, pydantic also says that it is empty.
            continue
        place = ".".join(str(part) for part in problem["loc"])
        text = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        found.append((_line(root, problem["loc"]), f"{place}: {text}"))
    return found


def _line(root: Node, place: Place) -> int:
    """The line on which a field stands, or what should hold it."""
    node, line = root, root.start_mark.line
    for part in place:
        following = _child(node, part)
        if following is None:
            # The name of a kind, which pydantic puts between a field and what is wrong in it, stands in no file.
            continue
        line, node = following
    return line + 1


def _child(node: Node, part: int | str) -> tuple[int, Node] | None:
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line, node.value[part]
    if isinstance(node, MappingNode):
        # The last one counts: those that `<<` brought along stand before the node's own.
        for key, value in reversed(node.value):
            if isinstance(key, ScalarNode) and key.value == str(part):
                return key.start_mark.line, value
    return None


def _repeated(node: Any, seen: set[int]) -> list[tuple[int, str]]:
    """Fields that stand twice in one mapping, of which YAML silently keeps the last."""
    found: list[tuple[int, str]] = []
    if id(node) in seen:
        # Through an alias, perhaps of what it stands in.
        return found
    seen.add(id(node))
    if isinstance(node, MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, ScalarNode))
        for key, value in node.value:
            if isinstance(key, ScalarNode) and names[key.value] > 1:
                found.append((key.start_mark.line + 1, f"{key.value} stands here {names[key.value]} times"))
            found += _repeated(value, seen)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            found += _repeated(value, seen)
    return found
