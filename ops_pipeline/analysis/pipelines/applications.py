"""The applications that pipelines are about: numbers of new ones, and which of the existing can be worked on.

What belongs here: every statement of pipelines over `generated_applications`. A step of models x templates makes new
applications: each gets the next free number of its model when the pipeline is submitted, so that whoever makes it again
makes the same one, and its row says how far it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Insert, and_, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.analysis.pipelines.definition import target_of
from ops_pipeline.analysis.tables import CANCELLED, COMPLETED, FAILED, PENDING, RUNNING, generated_applications
from ops_pipeline.database.expressions import is_any_of

MAKING = (PENDING, RUNNING)
NOT_MADE = (FAILED, CANCELLED)
_table = generated_applications.c


@dataclass(frozen=True)
class Application:
    """What is known of an application, from all of its versions.

    Attributes:
        there: at least one of them is neither missing nor was its generation given up.
        missing_since: since when the newest version is missing; None when it is not.
        not_made: how its generation ended, when it was not made.
        template: that it was made from.
    """

    there: bool
    missing_since: datetime | None = None
    not_made: str = ""
    template: str = ""


def reserve(connection: Connection, pairs: Sequence[tuple[str, str]], now: datetime) -> list[str]:
    """Give each pair of model and template a new application, and say what tasks call it, in the same order."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for place, (model, _) in enumerate(pairs):
        wanted[model].append(place)
    targets = [""] * len(pairs)
    # In the order of models, so that two transactions never wait for each other's numbers in a circle.
    for model, places in sorted(wanted.items()):
        left = places
        while left:
            first = (connection.scalar(select(func.max(_table.app_number)).where(_table.model_slug == model)) or 0) + 1
            rows = [_new(model, first + i, pairs[place][1], now) for i, place in enumerate(left)]
            inserted = set(connection.execute(_insert_unless_there(connection), rows).scalars())
            # Somebody else may have taken a number at the same time: those go on after it.
            for place, row in zip(left, rows, strict=True):
                targets[place] = target_of(model, row["app_number"]) if row["app_number"] in inserted else ""
            left = [place for place in left if not targets[place]]
    return targets


def _new(model: str, number: int, template: str, now: datetime) -> dict[str, Any]:
    return {
        "id": f"app_{uuid4().hex[:12]}",
        "model_slug": model,
        "app_number": number,
        "template_slug": template,
        "generation_status": PENDING,
        "created_at": now,
        "updated_at": now,
    }


def _insert_unless_there(connection: Connection) -> Insert:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(generated_applications).on_conflict_do_nothing().returning(_table.app_number)


def set_generation(
    connection: Connection, targets: Collection[str], status: str, now: datetime, *, before: Sequence[str] = MAKING
) -> None:
    """Write how far new applications are, unless whoever makes them has said so already."""
    if targets:
        mine = and_(is_any_of(_table.target, sorted(targets)), _table.generation_status.in_(before))
        values: dict[str, Any] = {"generation_status": status, "updated_at": now}
        if status == COMPLETED:
            # Whoever looked for it before it was made found it missing.
            values |= {"missing_since": None, "missing_looks": 0, "missing_seen_at": None}
        connection.execute(update(generated_applications).where(mine).values(values))


def read_applications(connection: Connection, targets: Collection[str]) -> dict[str, Application]:
    """What is known of applications, by what tasks call them; those of which nothing is known are left out."""
    columns = (_table.target, _table.missing_since, _table.generation_status, _table.template_slug)
    mine = select(*columns).where(is_any_of(_table.target, sorted(targets))).order_by(_table.version)
    found: dict[str, Application] = {}
    for row in connection.execute(mine):
        not_made = row.generation_status if row.generation_status in NOT_MADE else ""
        there = row.missing_since is None and not not_made
        before = found.get(row.target)
        if there or before is None or not before.there:
            found[row.target] = Application(there, row.missing_since, not_made, row.template_slug)
    return found
