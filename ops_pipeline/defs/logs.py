"""Lines of runs on the terminal: ours, `context.log` and what Dagster tells, in our format and each once.

Dagster hands what our loggers say within a run to its event log, and so to the UI (`managed_python_loggers` in
dagster.yaml), and writes it to the terminal through a logger of its own; that one is replaced here.

What belongs here: this joint. How lines look is in `operations/logs.py`.
"""

import logging
from collections.abc import Mapping
from typing import Any

from dagster import Failure, InitLoggerContext, LoggerDefinition, _loggers, logger
from dagster._core.log_manager import DagsterLogHandler
from dagster_shared.error import SerializableErrorInfo

from ops_pipeline.operations.logs import OURS, Lines, Terminal, tell_on_terminal
from ops_pipeline.settings import Settings


def tell_runs(settings: Settings) -> None:
    """Tell runs of this process on its terminal as the settings ask for."""
    tell_on_terminal(settings, told_elsewhere=_in_a_run)
    # Dagster takes another console logger only from the run config of each single run.
    setattr(_loggers, "colored_console_logger", _console(settings))  # noqa: B010 - assigned, a type checker refuses it


def _in_a_run() -> bool:
    """Whether Dagster hears our loggers at the moment, and so writes their lines."""
    return any(isinstance(handler, DagsterLogHandler) for handler in logging.getLogger(OURS).handlers)


def _console(settings: Settings) -> LoggerDefinition:
    schema = {"name": str, "log_level": str}

    @logger(config_schema=schema, description="Lines of runs on the terminal, in the format of LOG_FORMAT.")
    def console(context: InitLoggerContext) -> logging.Logger:
        made = logging.Logger(context.logger_config["name"], logging.DEBUG)
        terminal = Terminal()
        terminal.setFormatter(Lines(settings, of_run))
        least = logging.getLevelNamesMapping()[context.logger_config["log_level"].upper()]
        # What Dagster tells has a level; of ours, whatever comes here was asked for.
        terminal.addFilter(lambda record: record.levelno >= least or _event(record) is None)
        made.addHandler(terminal)
        return made

    return console


def _meta(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "dagster_meta", {})


def _event(record: logging.LogRecord) -> Any:
    return _meta(record).get("dagster_event")


def of_run(record: logging.LogRecord) -> dict[str, Any]:
    """Job, run and step of a record that Dagster passes on, its own words, and what happened in Dagster's terms."""
    meta, event = _meta(record), _event(record)
    if not meta:
        return {}
    told = {
        "message": meta["orig_message"],
        "job": meta["job_name"],
        "run": meta["run_id"],
        "step": meta["step_key"],
    }
    if event is not None:
        error = getattr(event.event_specific_data, "error", None)
        told |= {"event": event.event_type_value.lower(), "error": _words(error) if error else None}
    return told


def _words(error: SerializableErrorInfo) -> str:
    """A `Failure` says in words what is wrong and what to do; only what nobody foresaw needs its trace."""
    if error.cls_name == Failure.__name__:
        return error.message.partition(": ")[2].strip()
    return error.to_string()
