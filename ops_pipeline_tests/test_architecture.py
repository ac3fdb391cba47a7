"""The rules of the house that no type checker knows: who may import whom, and who may read the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ops_pipeline

HOUSE = Path(ops_pipeline.__file__).parent
MODULES = sorted(path.relative_to(HOUSE.parent) for path in HOUSE.rglob("*.py"))
NOT_DOMAINS = {"archives", "database", "defs", "variables"}
DOMAINS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py") if path.parent.name not in NOT_DOMAINS)
LONGEST = 350
READS_ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "pydantic_settings", "dagster.EnvVar"}

each_module = pytest.mark.parametrize("module", MODULES, ids=str)


def tree_of(module: Path) -> ast.Module:
    return ast.parse((HOUSE.parent / module).read_text(encoding="utf-8"))


def imports_of(tree: ast.Module, module: Path) -> set[str]:
    """Everything that is imported anywhere in a module, functions included, by its full dotted name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.parts[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def used_names(tree: ast.Module) -> set[str]:
    """Attributes of plain names, such as `os.environ`."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def is_dagsters(name: str) -> bool:
    top = name.partition(".")[0]
    return top == "dagster" or top.startswith("dagster_")


def foreign_domains(tree: ast.Module, module: Path) -> set[str]:
    """The domains, other than its own, that a module imports from."""
    own = module.parts[1]
    found = {name.split(".")[1] for name in imports_of(tree, module) if name.startswith("ops_pipeline.")}
    return (found & set(DOMAINS)) - {own}


def reads_environment(tree: ast.Module, module: Path) -> set[str]:
    names = imports_of(tree, module) | used_names(tree)
    return {name for name in names for way in READS_ENVIRONMENT if name == way or name.startswith(f"{way}.")}


def may_import_dagster(module: Path) -> bool:
    return module.parts[1] in {"defs", "definitions.py"}


def may_import_domains(module: Path) -> bool:
    """The Dagster layer and the command line put the domains together."""
    return module.parts[1] in {"defs", "definitions.py", "cli.py"}


def test_there_is_something_to_check() -> None:
    assert {"usage", "operations"} <= set(DOMAINS)
    assert Path("ops_pipeline/settings.py") in MODULES


@each_module
def test_dagster_is_imported_by_the_dagster_layer_only(module: Path) -> None:
    """Rules that need Dagster to run need an instance to be tested, and move with each of its versions."""
    if not may_import_dagster(module):
        assert [name for name in imports_of(tree_of(module), module) if is_dagsters(name)] == []


@each_module
def test_domains_do_not_import_each_other_and_what_they_stand_on_imports_none(module: Path) -> None:
    """A change to machines broke the metering of calls."""
    if not may_import_domains(module):
        assert foreign_domains(tree_of(module), module) == set()


@each_module
def test_only_the_settings_read_the_environment(module: Path) -> None:
    """A variable read elsewhere is neither validated nor listed, and is found when it is missing."""
    if module != Path("ops_pipeline/settings.py") and module.parts[1] != "variables":
        assert reads_environment(tree_of(module), module) == set()


@each_module
def test_a_module_says_what_it_is_and_can_be_read_in_one_sitting(module: Path) -> None:
    assert ast.get_docstring(tree_of(module))
    assert len((HOUSE.parent / module).read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_nothing_but_the_dagster_layer_loads_dagster() -> None:
    """Also not through something that it imports: `ops-pipeline` would take three seconds longer to start."""
    names = [
        ".".join(module.with_suffix("").parts).removesuffix(".__init__")
        for module in MODULES
        if not may_import_dagster(module) and "migrations" not in module.parts
    ]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += "print([name for name in sys.modules if name.partition('.')[0].startswith('dagster')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "import dagster",
        "import dagster as dg",
        "from dagster import asset",
        "def late():\n    from dagster._core.instance import DagsterInstance",
        "from dagster_shared.utils import warnings",
        "import dagster_postgres.storage",
    ],
)
def test_the_check_for_dagster_finds_every_way_of_importing_it(code: str) -> None:
    assert any(is_dagsters(name) for name in imports_of(ast.parse(code), Path("ops_pipeline/usage/hours.py")))


@pytest.mark.parametrize(
    "code",
    [
        "import ops_pipeline.operations.tables",
        "from ops_pipeline import operations",
        "from ops_pipeline.operations import tables",
        "from ops_pipeline.operations.tables import job_outcomes",
        "from ..operations.tables import job_outcomes",
        "from .. import operations",
        "if True:\n    def late():\n        import ops_pipeline.operations",
    ],
)
def test_the_check_between_domains_finds_every_way_of_importing_one(code: str) -> None:
    assert foreign_domains(ast.parse(code), Path("ops_pipeline/usage/hours.py")) == {"operations"}
    assert foreign_domains(ast.parse(code), Path("ops_pipeline/operations/checks.py")) == set()


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("import os\nos.environ['A']", True),
        ("import os\nos.environ.get('A')", True),
        ("import os\nos.getenv('A')", True),
        ("from os import environ", True),
        ("from os import getenv as get", True),
        ("from pydantic_settings import BaseSettings", True),
        ("from dagster import EnvVar", True),
        ("import dagster\ndagster.EnvVar('A')", True),
        ("import os\nos.access('a', os.W_OK)", False),
        ("environ = {}\nenviron['A']", False),
    ],
)
def test_the_check_for_the_environment_finds_every_way_of_reading_it(code: str, *, reads: bool) -> None:
    assert bool(reads_environment(ast.parse(code), Path("ops_pipeline/usage/hours.py"))) is reads
