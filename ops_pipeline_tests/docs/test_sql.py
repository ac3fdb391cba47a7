"""Every statement of SQL that a page shows is one that both databases take, on the tables as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.database.engine import writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline_tests.docs.test_commands import PAGES, PROJECT

WORDS = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
BLOCKS = re.compile(r"^```sql\n(.*?)^```|((?:^ {4}[^\n]*\n)+)|(?<!`)`([^`\n]+)`", re.MULTILINE | re.DOTALL)


def statements() -> Iterator[tuple[str, str]]:
    """Each statement with its page; `…` stands for a value."""
    for page in PAGES:
        for groups in BLOCKS.findall(page.read_text()):
            for part in re.sub(r"--.*", "", "".join(groups)).split(";"):
                statement = " ".join(part.split())
                if statement.startswith(tuple(f"{word} " for word in WORDS)) and "INSERT …" not in statement:
                    yield str(page.relative_to(PROJECT)), statement.replace("…", "''")


def test_both_databases_take_the_sql_of_the_pages(engine: Engine) -> None:
    """A page for readers used a function that only one of the two knows."""
    found = list(statements())
    domains = ("usage", "hypervisor", "services", "checkpoints", "analysis", "pipelines", "maintenance", "operations")
    assert {f"docs/{name}.md" for name in domains} <= {page for page, _ in found}, "readers of a domain find no SQL"
    refused = []
    for page, statement in found:
        try:
            with writing(engine) as connection:
                connection.execute(text(statement.replace(":", r"\:")))
        except (SQLAlchemyError, DatabaseProblem) as error:
            refused.append(f"{page}: {statement}: {error}")
    assert refused == []
