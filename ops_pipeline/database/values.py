"""Rows of texts as a relation of a statement: thousands of them as a few parameters.

What belongs here: the one construct. What does not: the statements, which the domains write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, Connection, Subquery, Text, bindparam, column, func, select


def text_rows(connection: Connection, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Subquery:
    """A relation with a text column for each name; one parameter for each column, on SQLite one for all.

    A statement with a placeholder for each value is compiled anew for each number of rows, which takes longer than
    its execution.
    """
    if connection.dialect.name == "sqlite":
        each = func.json_each(bindparam(None, json.dumps(rows), Text, unique=True)).table_valued("value")
        places = (func.json_extract(each.c.value, f"$[{place}]", type_=Text) for place in range(len(names)))
        return select(*(part.label(name) for name, part in zip(names, places, strict=True))).subquery("given")
    columns: Any = list(zip(*rows, strict=True)) or [()] * len(names)
    arrays = (bindparam(None, list(values), ARRAY(Text), unique=True) for values in columns)
    each = func.unnest(*arrays).table_valued(*(column(name, Text) for name in names)).render_derived(name="each_row")
    return select(*(each.c[name] for name in names)).subquery("given")
