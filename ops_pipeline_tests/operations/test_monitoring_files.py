"""The rules and the dashboard that are shipped ask only for what is served."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.definitions import build_defs
from ops_pipeline.defs.watching import measurers
from ops_pipeline.settings import load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "ops_pipeline.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "ops_pipeline.json"
NAME = re.compile(r"\bops_pipeline_[a-z_]+")


def test_promtool_takes_the_rules() -> None:
    result = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def asked() -> set[str]:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [rule["expr"] for rule in rules] + [one["expr"] for panel in panels for one in panel["targets"]]
    return {name for query in queries for name in NAME.findall(query)}


def test_every_figure_that_they_ask_for_is_served(asked: set[str], sqlite_engine: Engine) -> None:
    """A dashboard of figures that were renamed is empty, and nobody notices."""
    repository = build_defs().get_repository_def()
    served = {"ops_pipeline_up"}
    for measurer in measurers(load_settings(), repository).values():
        with reading(sqlite_engine) as connection:
            for measure in measurer(connection, database_now(connection)):
                served.add(f"{measure.name}_total" if measure.kind == "counter" else measure.name)
    assert len(asked) > 10
    assert asked <= served
