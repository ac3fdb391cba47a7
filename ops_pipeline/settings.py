"""Every environment variable: typed, documented, validated once.

What belongs here: putting together what each domain declares in `variables/`, and reading the environment, which
nobody else does. A `.env` file in the working directory is read too; variables of the environment win over it.
A secret may stand in a file instead, which `<NAME>_FILE` names, as containers and systemd hand secrets over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ops_pipeline.database.engine import connect, sqlite_url
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.variables.analysis import AnalysisVariables
from ops_pipeline.variables.analysis_worker import AnalysisWorkerVariables
from ops_pipeline.variables.checkpoints import CheckpointVariables
from ops_pipeline.variables.deployment import DeploymentVariables
from ops_pipeline.variables.hypervisor import HypervisorVariables
from ops_pipeline.variables.logs import LogVariables
from ops_pipeline.variables.maintenance import MaintenanceVariables
from ops_pipeline.variables.operations import OperationsVariables
from ops_pipeline.variables.services import ServiceVariables
from ops_pipeline.variables.usage import CALL_TYPES, DEFAULT_START, UsageVariables

__all__ = [
    "CALL_TYPES",
    "DEFAULT_START",
    "Settings",
    "SettingsError",
    "Whereabouts",
    "environment_of_leader",
    "give_dagster_its_variables",
    "given_variables",
    "load_settings",
    "operations_url",
    "secret_file_variables",
    "secret_variable",
    "variables_for_dagster",
]


Read = TypeVar("Read", bound="Whereabouts")


class SettingsError(Exception):
    """Variables that cannot be used; the message has a line for each, with what to do."""


class Whereabouts(DeploymentVariables, BaseSettings):
    """Where a deployment keeps its data: all that a tick needs, which is read 34 times a minute."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", case_sensitive=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        return _given_or_default(cls, value, info)

    @field_validator("database_url")
    @classmethod
    def _usable_url(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            try:
                connect(value.get_secret_value()).dispose()
            except DatabaseProblem as error:
                raise ValueError(str(error)) from None
        return value

    def operations_url(self) -> str:
        """The URL of the operations database, password included: only for connecting."""
        return self.database_url.get_secret_value() or sqlite_url(self.dagster_home)


def _given_or_default(kind: type[BaseSettings], value: Any, info: ValidationInfo) -> Any:
    # `VARIABLE=` in an .env file means the default, not the empty text.
    if value == "" and info.field_name:
        return kind.model_fields[info.field_name].get_default(call_default_factory=True)
    return value


class Settings(
    LogVariables,
    OperationsVariables,
    MaintenanceVariables,
    AnalysisWorkerVariables,
    AnalysisVariables,
    HypervisorVariables,
    ServiceVariables,
    CheckpointVariables,
    UsageVariables,
    Whereabouts,
):
    """The configuration of one deployment."""

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset_before_domains_look(cls, value: Any, info: ValidationInfo) -> Any:
        # Once more: what a base class declares comes after the validators of the domains.
        return _given_or_default(cls, value, info)

    def results_folder(self) -> Path:
        """Where results of analysis tasks are written."""
        return self.analysis_results_dir or self.dagster_home.absolute() / "results"

    def archive_location(self) -> str:
        """Where archives are written: a folder or a URL."""
        return self.maintenance_archive or str(self.dagster_home.absolute() / "archive")

    def reports_folder(self) -> Path:
        """Where reports are written."""
        return self.reports_dir or self.dagster_home.absolute() / "reports"


def environment_of_leader() -> dict[str, str]:
    """The environment of the daemon that a leader starts."""
    return {**os.environ, **variables_for_dagster()}


def variables_for_dagster() -> dict[str, str]:
    """What Dagster itself reads from the environment, and may stand in a file: by name, to be handed on, not shown."""
    found = {name: secret_variable(name) for name in ("DAGSTER_POSTGRES_URL", "CELERY_BROKER_URL")}
    return {name: secret.get_secret_value() for name, secret in found.items() if secret}


def give_dagster_its_variables() -> None:
    """Put them into this process's own environment, where Dagster is used in this process."""
    os.environ.update(variables_for_dagster())


def given_variables() -> set[str]:
    """The names of all variables that are set, in the environment or in `.env`."""
    return set(os.environ) | set(dotenv_values(".env"))


def secret_variable(name: str) -> SecretStr | None:
    """The value of a variable that a file names, for example an API key; None when it is not set or empty.

    Raises:
        SettingsError: `<name>_FILE` names a file that cannot be used.
    """
    try:
        value = _secret(name, {**dotenv_values(".env"), **{key: one for key, one in os.environ.items() if one}})
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return SecretStr(value) if value else None


def secret_file_variables() -> set[str]:
    """The names of the variables that name a file with the secret of another one."""
    return {f"{name.upper()}_FILE" for name in _secret_fields()}


def _secret_fields(kind: type[Whereabouts] = Settings) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.annotation is SecretStr]


def _secrets_in_files(kind: type[Whereabouts]) -> tuple[dict[str, Any], list[str]]:
    """The secrets that stand in files, by field, and a line for each file that cannot be used."""
    # Names of settings are the same in small letters.
    given = {key.upper(): one for key, one in {**dotenv_values(".env"), **os.environ}.items() if one}
    found: dict[str, Any] = {}
    problems: list[str] = []
    for field in _secret_fields(kind):
        if given.get(f"{field.upper()}_FILE"):
            try:
                found[field] = SecretStr(_secret(field.upper(), given) or "")
            except ValueError as error:
                problems.append(str(error))
    return found, problems


def _secret(name: str, given: Mapping[str, str | None]) -> str | None:
    """A secret from its variable or from the file that `<name>_FILE` names."""
    here, file = given.get(name), given.get(f"{name}_FILE")
    if not file:
        return here
    try:
        # An editor ends the last line; whoever hands over a secret means what stands before that.
        value = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        reason = f"{file} cannot be read: {error.strerror}. Correct the path, or let this user read the file."
    except UnicodeDecodeError:
        reason = f"{file} holds no text in UTF-8: write the secret there, and nothing else."
    else:
        if value and (not here or here == value):
            return value
        reason = f"{file} is empty: write the secret there, or unset this variable."
        if value:
            reason = f"{name} is set as well, to something else: unset one of the two."
    raise ValueError(f"{name}_FILE: {reason}")


def load_settings(**overrides: Any) -> Settings:
    """Read and validate the environment.

    Raises:
        SettingsError: one or more variables cannot be used; no value of a secret is in the message.
    """
    return _load(Settings, **overrides)


def operations_url() -> str:
    """The URL of the operations database, password included: only for connecting.

    Raises:
        SettingsError: a variable that says where data is kept cannot be used.
    """
    # All variables take 8 ms.
    return _load(Whereabouts).operations_url()


def _load(kind: type[Read], **overrides: Any) -> Read:
    in_files, lines = _secrets_in_files(kind)
    try:
        settings = kind(**{**in_files, **overrides})
    except ValidationError as error:
        lines += [_line(problem) for problem in error.errors(include_input=False, include_url=False)]
    if lines:
        raise SettingsError("\n".join(lines))
    return settings


def _line(problem: Any) -> str:
    name = "_".join(str(part) for part in problem["loc"]).upper()
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"
