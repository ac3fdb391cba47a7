"""What `ops-pipeline check` says of alerts.

What belongs here: reading the file of channels and routes as the deployment does, which does not start without it.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import SecretStr

from ops_pipeline.checking import Check
from ops_pipeline.operations.alerts.policy import read_policy
from ops_pipeline.settings import Settings
from ops_pipeline.strict_yaml import FileRefused


def check_alerts(settings: Settings, secret: Callable[[str], SecretStr | None]) -> list[Check]:
    """Read the file that ALERTS_FILE names, if it does.

    Args:
        settings: the environment.
        secret: the value of an environment variable; None when it is not set.
    """
    name = "ALERTS_FILE"
    if settings.alerts_file is None:
        return []
    try:
        policy = read_policy(settings, secret)
    except FileRefused as error:
        return [Check(name, ok=False, detail=line) for line in str(error).splitlines()]
    told = f"{len(policy.channels)} channels in all, and {len(policy.routes)} routes"
    return [Check(name, ok=True, detail=f"{settings.alerts_file}: {told}")]
