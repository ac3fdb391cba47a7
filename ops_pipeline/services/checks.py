"""What `ops-pipeline check` looks at for host services: the file of them.

What belongs here: reading it, with advice; no service is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from ops_pipeline.checking import Check
from ops_pipeline.reconcile import counted
from ops_pipeline.services.registry import read_registry
from ops_pipeline.strict_yaml import FileRefused


def check_registry(path: Path | None, variable: Callable[[str], SecretStr | None]) -> list[Check]:
    """Read the file of known services, and look for the variables that it names.

    Args:
        path: SERVICES_FILE.
        variable: the value of an environment variable; None when it is not set.
    """
    name = "SERVICES_FILE"
    if path is None:
        return []
    try:
        registry = read_registry(path)
    except FileRefused as error:
        return [Check(name, ok=False, detail=line) for line in str(error).splitlines()]
    needed = {(one.name, url_env) for one in registry.services if (url_env := getattr(one.check, "url_env", None))}
    missing = [
        Check(name, ok=False, detail=f"{service}: the environment variable {url_env} is not set")
        for service, url_env in sorted(needed)
        if variable(url_env) is None
    ]
    return missing or [Check(name, ok=True, detail=f"{path} lists {counted(len(registry.services), 'service')}")]
