"""Rows that a statement is given as one parameter, to be joined with like a table.

What belongs here: sending rows to PostgreSQL and SQLite. What does not: rows of the database (`replace`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, FromClause, Text, bindparam, cast, column, func, select
from sqlalchemy.types import TypeEngine

from ops_pipeline.database.types import instant_text

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def sent_rows(dialect: str, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """Rows as something to select from; one parameter however many there are, so that the statement can be kept.

    Args:
        dialect: `postgresql` or `sqlite`.
        name: of the rows in the statement, and of the parameter, which is `json_text` of a list of mappings.
        columns: what the rows hold.
    """
    payload = bindparam(name, type_=Text())
    if dialect == "postgresql":
        typed = (column(key, type_) for key, type_ in columns.items())
        return func.json_to_recordset(cast(payload, JSON)).table_valued(*typed).render_derived(name, with_types=True)
    each = func.json_each(payload).table_valued("value", name=f"{name}_each")
    values = (func.json_extract(each.c.value, f"$.{key}", type_=type_).label(key) for key, type_ in columns.items())
    return select(*values).select_from(each).subquery(name)


def json_text(value: Any) -> str:
    """JSON that both databases take, whatever a foreign program put into a value.

    Numbers that are none become null, texts lose NUL and half characters, instants are written as the columns do.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=_plain)
    if "\\u0000" in text:
        text = _NUL.sub(r"\1\\ufffd", text)
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> str:
    return instant_text(value) if isinstance(value, datetime) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
