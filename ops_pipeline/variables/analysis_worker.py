"""The variables of analysis workers, and of the services that they talk to."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_settings import NoDecode

from ops_pipeline.variables.types import listed

LOCAL_URLS = {
    "static-analyzer": "ws://localhost:2001",
    "dynamic-analyzer": "ws://localhost:2002",
    "performance-tester": "ws://localhost:2003",
    "ai-analyzer": "ws://localhost:2004",
}


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in {"ws", "wss"} and bool(parts.hostname)


def _urls_by_service(value: Any) -> Any:
    """Read `static-analyzer=ws://localhost:2001,ai-analyzer=wss://host/path`."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in listed(value)]
    if not all(name.strip() and _is_url(url.strip()) for name, _, url in pairs):
        raise ValueError(
            f"{value!r} does not give services with URLs; write for example static-analyzer=ws://localhost:2001"
        )
    return {name.strip(): url.strip() for name, _, url in pairs}


def _gateway(value: str) -> str:
    if value and not _is_url(value):
        raise ValueError(f"{value!r} is no URL of a WebSocket; write for example ws://localhost:8765")
    return value


class AnalysisWorkerVariables(BaseModel):
    """What workers are told."""

    analysis_workers: int = Field(default=1, ge=1, le=64, description="Worker runs at a time, at most.")
    analysis_worker_concurrency: int = Field(
        default=100, ge=1, le=5000, description="Tasks that one worker does at once."
    )
    analysis_worker_linger_seconds: int = Field(
        default=30, ge=0, le=3600, description="For so long a worker waits for new tasks before it ends."
    )
    analysis_worker_lifetime_seconds: int = Field(
        default=1800, ge=60, le=86_400, description="After so long a worker takes no more tasks and makes way."
    )
    analyzer_urls: Annotated[dict[str, str], NoDecode, BeforeValidator(_urls_by_service)] = Field(
        default=LOCAL_URLS, description="Where services are, unless analyzer_services tells their URL."
    )
    analyzer_gateway_url: Annotated[str, AfterValidator(_gateway)] = Field(
        default="", description="A gateway that tells of progress, for example ws://localhost:8765; empty for none."
    )
