"""Rows of texts as a relation mean the same on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select

from ops_pipeline.database.engine import reading
from ops_pipeline.database.values import text_rows

ROWS = [("a", "1"), ("b", ""), ("ü '\"\\", "{,}"), ("NULL", "null")]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS, [(str(number), "x") for number in range(5_000)]], ids=len)
def test_every_row_comes_as_it_is(engine: Engine, rows: list[tuple[str, str]]) -> None:
    with reading(engine) as connection:
        given = text_rows(connection, ("first", "second"), rows)
        found = connection.execute(select(given.c.first, given.c.second)).all()
    assert [tuple(row) for row in found] == rows
