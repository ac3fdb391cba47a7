"""A private server that speaks S3, for archives and roots that are no folders.

What belongs here: starting it in a process of its own, and buckets.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import fsspec
import httpx
import pytest

from ops_pipeline_tests.servers import free_port, wait_until

_RUNNING: list[subprocess.Popen[bytes]] = []


@cache
def server() -> str:
    """The address of a server that runs until the test process ends."""
    import atexit

    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _RUNNING.append(process)
    atexit.register(process.kill)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{address}/moto-api/").status_code < 500
        except httpx.HTTPError:
            return False

    wait_until(answers, 30, "the object store to answer")
    return address


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a new bucket; the variables by which its library finds server and credentials are set."""
    for name, value in {
        "AWS_ENDPOINT_URL": server(),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    files.mkdir(name)
    yield f"s3://{name}"
