"""The variables of logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from ops_pipeline.variables.types import TextTuple

LOGGERS_OF_CATEGORIES = {
    "usage": ("ops_pipeline.usage",),
    "vm-status": ("ops_pipeline.hypervisor.machines",),
    "graphics": ("ops_pipeline.hypervisor.graphics",),
    "services": ("ops_pipeline.services",),
    "firewall": ("ops_pipeline.hypervisor.filters",),
    "checkpoints": ("ops_pipeline.checkpoints",),
    "analysis": ("ops_pipeline.analysis",),
    "maintenance": ("ops_pipeline.analysis.maintenance", "ops_pipeline.archives"),
}
"""The Python loggers of each category of detail."""


def _known(categories: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [one for one in categories if one not in LOGGERS_OF_CATEGORIES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no category; there are {', '.join(LOGGERS_OF_CATEGORIES)}")
    return categories


class LogVariables(BaseModel):
    """How lines of the log look, and of which domains they tell details."""

    log_format: Literal["text", "json"] = Field(
        default="text", description="Lines for people (text), or one JSON object each (json), on standard error."
    )
    debug_categories: Annotated[TextTuple, AfterValidator(_known)] = Field(
        default=(), description=f"Of which domains details are told: {', '.join(LOGGERS_OF_CATEGORIES)}."
    )
