"""Probes against a real OpenAI-compatible server: LiteLLM's proxy, which answers for models that do not exist."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import Engine

from ops_pipeline.usage.probes.answers import Answer
from ops_pipeline.usage.probes.check import check_models
from ops_pipeline.usage.probes.client import probe_all
from ops_pipeline.usage.probes.states import plan_probes
from ops_pipeline.usage.probes.targets import Probes, ProbesFile, Target
from ops_pipeline.usage.tables import model_statuses
from ops_pipeline_tests.integration.processes import PROJECT
from ops_pipeline_tests.servers import free_port, wait_until
from ops_pipeline_tests.usage.calls import rows

# One LiteLLM is enough: each worker that gets a test of this file would start its own.
pytestmark = pytest.mark.xdist_group("litellm")

EXECUTABLE = PROJECT / ".venv-provider" / "bin" / "litellm"
KEY = "sk-real-0c1d2e3f4a5b6c7d"
WRONG_KEY = "sk-wrong-9f8e7d6c5b4a3210"
MODELS = {
    "chat": "Hello",
    "words": [0.25, -0.5],
    "limited": "litellm.RateLimitError",
    "broken": "litellm.InternalServerError",
}
# Without a database, LiteLLM can tell wrong keys only by a function of one's own; these are the words of its own one.
KEYS = f"""
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

async def check(request, api_key):
    if api_key != "{KEY}":
        text = f"Authentication Error, Invalid proxy server token passed. Received API Key = {{api_key}}"
        raise ProxyException(message=text, type="token_not_found_in_db", param="key", code=401)
    return UserAPIKeyAuth(api_key=api_key)
"""


def configuration() -> dict[str, Any]:
    """One mocked model for each kind of answer."""
    upstream = {"model": "openai/any", "api_key": "none"}
    listed = [
        {"model_name": name, "litellm_params": upstream | {"mock_response": mocked}} for name, mocked in MODELS.items()
    ]
    general = {"custom_auth": "keys.check", "master_key": f"{KEY}-of-the-operator"}
    return {"model_list": listed, "general_settings": general, "router_settings": {"num_retries": 0}}


@pytest.fixture(scope="session")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a private LiteLLM proxy."""
    assert EXECUTABLE.exists(), "LiteLLM is not installed: run scripts/install-provider.sh"
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration()))
    (folder / "keys.py").write_text(KEYS)
    port, log = free_port(), folder / "log"
    arguments = ("--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port))
    # Nothing may be fetched: LiteLLM looks for a newer list of prices otherwise.
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder), "PATH": os.environ["PATH"]}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(EXECUTABLE), *arguments],
            cwd=folder,
            env=offline,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or answers(port), 90, "LiteLLM to answer")
        assert process.poll() is None, log.read_text()[-4000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def probes(base_url: str, *models: dict[str, Any], key: str = KEY) -> Probes:
    common = {"provider": "litellm", "base_url": base_url, "api_key_env": "KEY", "verify": 0}
    targets = tuple(Target.model_validate(common | model) for model in models)
    return Probes(ProbesFile(models=targets), {"KEY": SecretStr(key)})


def ask(base_url: str, key: str = KEY, **model: Any) -> Answer:
    asked = probes(base_url, model, key=key)
    (answer,) = probe_all(asked, asked.file.models)
    return answer


@pytest.mark.parametrize("token_parameter", ["max_tokens", "max_completion_tokens"])
def test_a_chat_model_answers(litellm: str, token_parameter: str) -> None:
    answer = ask(litellm, model="chat", token_parameter=token_parameter)
    assert (answer.result, answer.error_code, answer.http_status) == ("available", "", 200)
    assert answer.input_tokens > 0 and answer.output_tokens > 0
    assert answer.response_time_ms is not None


def test_an_embedding_model_answers(litellm: str) -> None:
    answer = ask(litellm, model="words", type="embedding")
    assert (answer.result, answer.error_code, answer.http_status) == ("available", "", 200)
    assert answer.input_tokens > 0


def test_an_image_model_answers(litellm: str) -> None:
    assert ask(litellm, model="chat", type="imageGeneration", image_size="256x256").result == "available"


def test_a_wrong_key_is_an_invalid_key_and_not_repeated(litellm: str) -> None:
    answer = ask(litellm, key=WRONG_KEY, model="chat")
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "Invalid API Key", 401)
    assert "Invalid proxy server token passed. Received API Key = ***" in answer.error_message
    assert WRONG_KEY not in str(answer)


def test_no_key_at_all_is_an_invalid_key(litellm: str) -> None:
    answer = ask(litellm, model="chat", api_key_env=None)
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "Invalid API Key", 401)


def test_a_model_that_the_server_does_not_know_is_not_found(litellm: str) -> None:
    """LiteLLM answers 400 to it, as to a wrong parameter."""
    answer = ask(litellm, model="nope")
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "Model Not Found", 400)
    assert "Invalid model name passed in model=nope" in answer.error_message


def test_a_rate_limit_is_limited(litellm: str) -> None:
    answer = ask(litellm, model="limited")
    assert (answer.result, answer.error_code, answer.http_status) == ("limited", "Rate Limit Exceeded", 429)
    assert "litellm.RateLimitError" in answer.error_message


def test_a_failure_of_the_model_behind_it_is_unavailable(litellm: str) -> None:
    answer = ask(litellm, model="broken")
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "Model Unavailable", 500)


def test_a_path_that_the_server_does_not_have_is_not_found(litellm: str) -> None:
    """A base URL without its /v1, or with another one's path, is the commonest mistake of all."""
    answer = ask(f"{litellm}/v2", model="chat")
    assert (answer.result, answer.error_code, answer.http_status) == ("unavailable", "Model Not Found", 404)


def test_a_whole_check_tells_the_models_of_one_server_apart(litellm: str, sqlite_engine: Engine) -> None:
    asked = probes(litellm, {"model": "chat"}, {"model": "words", "type": "embedding"}, {"model": "limited"})
    intents = plan_probes(asked.file, {}, {})
    check_models(sqlite_engine, asked, intents, run_id="run-1", sleep=float)
    found = {row["model"]: row["state"] for row in rows(sqlite_engine, model_statuses)}
    assert found == {"chat": "available", "words": "available", "limited": "limited"}
