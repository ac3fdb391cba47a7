"""Fixtures: a lab on each kind of database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from ops_pipeline_tests.analysis.maintenance.scene import Scene


def _scene(engine: Engine, tmp_path: Path) -> Scene:
    scene = Scene(engine, tmp_path / "lab")
    scene.root.mkdir(parents=True)
    return scene


@pytest.fixture
def scene(engine: Engine, tmp_path: Path) -> Scene:
    """A lab on each kind of database in turn."""
    return _scene(engine, tmp_path)


@pytest.fixture
def small(sqlite_engine: Engine, tmp_path: Path) -> Scene:
    """A lab on SQLite only, for what has nothing to do with the database."""
    return _scene(sqlite_engine, tmp_path)
