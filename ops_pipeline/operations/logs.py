"""How lines of the log look, and which of them are written: `LOG_FORMAT` and `DEBUG_CATEGORIES`.

Modules log with `logging` under their own name, with what `log_fields.fields` makes. A process that starts by our
commands, or loads our definitions, calls `tell_on_terminal` once.

What belongs here: formatters, the handler, the levels of our loggers. What does not: how Dagster's runs are told, which
`defs/logs.py` adds.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from ops_pipeline.settings import Settings
from ops_pipeline.variables.logs import LOGGERS_OF_CATEGORIES

OURS = "ops_pipeline"
SHOWN_OF_RUN = 8
SHORTEST_SECRET = 4
"""A shorter one is not masked: every `1` of a line would be."""

Context = Callable[[logging.LogRecord], Mapping[str, Any]]
"""What is known of a record besides itself: job, run, step, event, message."""


class Terminal(logging.Handler):
    """Writes each line at once and whole to what standard error is then: tests and captures exchange it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a stream that is gone ends no job."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - as all handlers of `logging` do
            self.handleError(record)


class Lines(logging.Formatter):
    """One line per record: JSON for machines, or text for people."""

    def __init__(self, settings: Settings, context: Context = lambda _: {}) -> None:
        """Keep how lines look, and what must not be in them."""
        super().__init__()
        self.is_json = settings.log_format == "json"
        self.hidden = hidden_texts(settings)
        self.context = context

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        context = {"message": record.getMessage(), **self.context(record), **getattr(record, "fields", {})}
        if record.exc_info:
            context["exception"] = self.formatException(record.exc_info)
        moment = datetime.fromtimestamp(record.created, UTC)
        return self._masked(_as_json(record, moment, context) if self.is_json else _as_text(record, moment, context))

    def _masked(self, line: str) -> str:
        for text in self.hidden:
            line = line.replace(text, "***")
        return line


def _as_json(record: logging.LogRecord, moment: datetime, context: Mapping[str, Any]) -> str:
    known = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": getattr(record, "source", record.name),
    }
    return json.dumps(known | {name: value for name, value in context.items() if value not in (None, "")}, default=str)


def _as_text(record: logging.LogRecord, moment: datetime, context: Mapping[str, Any]) -> str:
    parts = [f"{moment:%Y-%m-%d %H:%M:%S}Z", f"{record.levelname:<7}", str(context.get("job") or "")]
    parts += [str(context.get("run") or "")[:SHOWN_OF_RUN], str(context["message"])]
    more = [str(context[name]) for name in ("error", "exception") if context.get(name)]
    return "\n".join([" ".join(part for part in parts if part), *more])


def hidden_texts(settings: Settings) -> tuple[str, ...]:
    """What is in no line, as it would stand there: every secret of the environment, of URLs their password."""
    values = [getattr(settings, name) for name in Settings.model_fields]
    secrets = {text for value in values if isinstance(value, SecretStr) for text in _secrets_of(value)}
    written = {form for text in secrets for form in (text, json.dumps(text)[1:-1])}
    # Longest first: a secret may hold another one.
    return tuple(sorted((text for text in written if len(text) >= SHORTEST_SECRET), key=len, reverse=True))


def _secrets_of(secret: SecretStr) -> Iterable[str]:
    text = secret.get_secret_value()
    if "://" not in text:
        return (text,)
    try:
        password = urlsplit(text).password
    except ValueError:
        return (text,)
    # Where there is no password, the address itself is the secret: webhooks.
    return (text, password, unquote(password)) if password else (text,)


def tell_on_terminal(settings: Settings, told_elsewhere: Callable[[], bool] = lambda: False) -> None:
    """Write our lines to standard error, in the format and with the details that the settings ask for.

    May be called again, and leaves every other logger as it is.

    Args:
        settings: the environment.
        told_elsewhere: whether whoever else hears our loggers at the moment writes their lines too.
    """

    def mark(record: logging.LogRecord) -> bool:
        # Whoever passes a record on under another name keeps its attributes.
        record.source = record.name
        return not told_elsewhere()

    ours = logging.getLogger(OURS)
    for handler in [one for one in ours.handlers if isinstance(one, Terminal)]:
        ours.removeHandler(handler)
    terminal = Terminal()
    terminal.setFormatter(Lines(settings))
    terminal.addFilter(mark)
    # First, so that it sees records as they were made.
    ours.handlers.insert(0, terminal)
    ours.setLevel(logging.INFO)
    for category, names in LOGGERS_OF_CATEGORIES.items():
        for name in names:
            # Set in both cases: details of analysis are not those of its maintenance, whose name lies below.
            logging.getLogger(name).setLevel(logging.DEBUG if category in settings.debug_categories else logging.INFO)
