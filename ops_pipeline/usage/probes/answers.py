"""What a provider's answer says about a model: the classes of errors, and what each means for the model's state.

What belongs here: pure reading of status, body and exceptions. What does not: sending. The codes follow the ones that
gateways show their users; what 403 and 400 mean is told by their text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

AVAILABLE, LIMITED, UNAVAILABLE, NOT_TESTED = "available", "limited", "unavailable", "not_tested"
INCONCLUSIVE = "inconclusive"
"""The provider answered, but not about the model: the probe itself was refused. The state stays."""
LONGEST_MESSAGE = 300

TIMEOUT, DNS, CONNECTION, INVALID_RESPONSE = "Timeout", "DNS Error", "Connection Error", "Invalid Response"
UNREACHABLE = frozenset({DNS, CONNECTION})
"""Errors that this machine's own network makes as well."""


@dataclass(frozen=True)
class Answer:
    """What one probe came to.

    Attributes:
        result: `available`, `limited`, `unavailable` or `inconclusive`.
        error_code: the class of error; empty when available.
        error_message: the provider's own words, cut and without secrets.
        http_status: None when there was no answer.
        response_time_ms: until the whole answer was there; None when there was none.
        input_tokens: as the provider counts.
        output_tokens: as the provider counts.
    """

    result: str
    error_code: str = ""
    error_message: str = ""
    http_status: int | None = None
    response_time_ms: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0


_BY_STATUS = {
    400: (INCONCLUSIVE, "Invalid Argument"),
    401: (UNAVAILABLE, "Invalid API Key"),
    402: (UNAVAILABLE, "No Credits Available"),
    403: (UNAVAILABLE, "Expired Credential"),
    404: (UNAVAILABLE, "Model Not Found"),
    429: (LIMITED, "Rate Limit Exceeded"),
    500: (UNAVAILABLE, "Model Unavailable"),
    502: (UNAVAILABLE, "Model Unavailable"),
    503: (UNAVAILABLE, "Model Unavailable"),
}
_UNKNOWN = (UNAVAILABLE, "Unknown Error")
_NO_CREDITS = (
    r"insufficient[ _]quota|quota (has been )?exceeded|exceeded your (current )?quota|billing|credit"
    r"|\bbalance (is )?too low"
)
_NO_KEY = (
    r"(api[ _-]?key|credential)s?\b[^.]{0,40}\b(not valid|invalid|incorrect|expired|missing)"
    r"|invalid[ _](api[ _-]?key|x-api-key)"
)
_NO_MODEL = (
    r"model[^.]{0,80}(not (found|exist|support|available)|does ?n.t exist|does not exist|decommissioned|deprecated)"
    r"|(unknown|invalid|no such) model"
)

_BY_TEXT: dict[int | None, tuple[tuple[str, str, str], ...]] = {
    # Gemini answers 400 to a key that it does not know, and Anthropic to an account without money.
    400: (
        (_NO_KEY, UNAVAILABLE, "Invalid API Key"),
        (r"credit balance|insufficient[ _](quota|credits?|balance)", UNAVAILABLE, "No Credits Available"),
        (_NO_MODEL, UNAVAILABLE, "Model Not Found"),
    ),
    403: (
        (
            r"content[ _-](policy|filter|management)|\b(policy|safety|moderation|harmful)\b",
            INCONCLUSIVE,
            "Content Policy Violation",
        ),
        (r"region|country|territory|location|geograph", UNAVAILABLE, "Region Restriction"),
        (r"temporar|block|suspicious|abuse|too many", LIMITED, "Temporary Block"),
    ),
    # OpenAI answers 429 to accounts without money too; waiting does not help those.
    429: (
        # "Rate limit reached for gpt. (…) Visit https://platform.openai.com/account/billing to (…)"
        (r"\brate limit reached", LIMITED, "Rate Limit Exceeded"),
        (_NO_CREDITS, UNAVAILABLE, "No Credits Available"),
    ),
    None: (
        (r"time(d)?[ -]?out", UNAVAILABLE, TIMEOUT),
        (rf"quota|{_NO_CREDITS}", UNAVAILABLE, "No Credits Available"),
        (r"network|connection|dns", UNAVAILABLE, CONNECTION),
        (r"no credentials|credential", UNAVAILABLE, "Invalid API Key"),
        (_NO_MODEL, UNAVAILABLE, "Model Not Found"),
        (r"rate limit|too many requests", LIMITED, "Rate Limit Exceeded"),
    ),
}
"""By status, what its text means where it is something else; None stands for an error without a status of its own."""


def read_answer(type_: str, status: int, body: bytes, *, complete: bool = True) -> Answer:
    """What an HTTP answer says.

    Args:
        type_: what was asked for: `chatCompletion`, `embedding` or `imageGeneration`.
        status: the HTTP status.
        body: as it came, perhaps cut.
        complete: False when the body was longer than is read.
    """
    parsed = _parsed(body) if complete else None
    if not 200 <= status < 300:
        return _of_error(status, _error_text(parsed, body))
    if isinstance(parsed, dict) and parsed.get("error"):
        return replace(_of_text(_error_text(parsed, body)), http_status=status)
    if not isinstance(parsed, dict) or not _PROOFS[type_](parsed):
        what = "an answer longer than 1 MB" if not complete else (_text(body) or "an empty answer")
        return Answer(UNAVAILABLE, INVALID_RESPONSE, f"no {type_} in: {what}", status)
    usage = parsed.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Answer(
        AVAILABLE,
        http_status=status,
        input_tokens=_count(tokens.get("prompt_tokens")),
        output_tokens=_count(tokens.get("completion_tokens")),
    )


def cleaned(answer: Answer, secrets: Iterable[str]) -> Answer:
    """The answer with its message on one line, without keys, and cut."""
    text = _one_line(answer.error_message)
    # The longest first: what one key leaves of another that it is a part of would stay.
    for secret in sorted({_one_line(secret) for secret in secrets} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    # Providers repeat a part of the key: "Incorrect API key provided: sk-proj-abc***xyz".
    text = re.sub(r"(?i)\b(bearer\s+)\S+", r"\1***", text)
    text = re.sub(r"\b(?:sk|pk|rk|gsk|xai|key|AIza|hf|org)[-_][\w*-]{4,}", "***", text)
    text = re.sub(r"\bAIza[\w*-]{4,}", "***", text)
    return replace(answer, error_message=text[:LONGEST_MESSAGE])


def _of_error(status: int, text: str) -> Answer:
    for pattern, result, code in _BY_TEXT.get(status, ()):
        if re.search(pattern, text, re.IGNORECASE):
            return Answer(result, code, text, status)
    result, code = _BY_STATUS.get(status, _UNKNOWN)
    return Answer(result, code, text, status)


def _of_text(text: str) -> Answer:
    for pattern, result, code in _BY_TEXT[None]:
        if re.search(pattern, text, re.IGNORECASE):
            return Answer(result, code, text)
    return Answer(*_UNKNOWN, text)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error_text(parsed: Any, body: bytes) -> str:
    """The provider's words: `error.message`, with `error.code` or type, or whatever stands there instead."""
    if not isinstance(parsed, dict):
        return _text(body)
    error = parsed.get("error") or parsed.get("message") or parsed.get("detail") or parsed
    if isinstance(error, dict):
        words = [error.get(name) for name in ("code", "type", "message")]
        told = ": ".join(str(word) for word in words if isinstance(word, str | int) and word not in {"", None})
        return told or _text(body)
    return error if isinstance(error, str) else _text(body)


def _text(body: bytes) -> str:
    # Cut far behind what `cleaned` leaves of it: half of a key is not known to be one.
    return _one_line(re.sub(r"<[^<>]{0,200}>", " ", body.decode("utf-8", "replace")))[: 100 * LONGEST_MESSAGE]


def _one_line(text: str) -> str:
    """The text without control characters and lone surrogates, which databases refuse, and without runs of spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _chat(parsed: dict[str, Any]) -> bool:
    return isinstance(_first(parsed, "choices"), dict)


def _embedding(parsed: dict[str, Any]) -> bool:
    first = _first(parsed, "data")
    return isinstance(first, dict) and bool(first.get("embedding"))


def _image(parsed: dict[str, Any]) -> bool:
    first = _first(parsed, "data")
    return isinstance(first, dict) and bool(first.get("url") or first.get("b64_json"))


_PROOFS = {"chatCompletion": _chat, "embedding": _embedding, "imageGeneration": _image}


def _first(parsed: dict[str, Any], name: str) -> Any:
    found = parsed.get(name)
    return found[0] if isinstance(found, list) and found else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0
