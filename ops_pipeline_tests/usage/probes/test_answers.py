"""What an answer says about a model: every class of errors, proofs of each type, and messages without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.usage.probes.answers import (
    AVAILABLE,
    INCONCLUSIVE,
    LIMITED,
    LONGEST_MESSAGE,
    UNAVAILABLE,
    Answer,
    cleaned,
    read_answer,
)
from ops_pipeline_tests.usage.calls import examples

TYPES = ["chatCompletion", "embedding", "imageGeneration"]
CHAT = {"choices": [{"message": {"role": "assistant", "content": "hi"}}]}
INVALID, UNKNOWN = (UNAVAILABLE, "Invalid Response"), (UNAVAILABLE, "Unknown Error")
KEY = "4f3c9d1e-b7a2-TOPSECRET"


def answer(status: int, content: Any, type_: str = "chatCompletion") -> Answer:
    """Read an answer whose body is this JSON."""
    return read_answer(type_, status, json.dumps(content).encode())


def said(message: str, *secrets: str) -> str:
    """A message after it was cleaned."""
    return cleaned(Answer(UNAVAILABLE, "Unknown Error", message), secrets).error_message


# Errors by status

BY_STATUS = [
    (301, "moved", *UNKNOWN),
    (302, "", *UNKNOWN),
    (400, "max_tokens must be at least 16", INCONCLUSIVE, "Invalid Argument"),
    (400, "The model `gpt` does not exist", UNAVAILABLE, "Model Not Found"),
    (400, "Invalid model: gpt", UNAVAILABLE, "Model Not Found"),
    (400, "This model has been decommissioned", UNAVAILABLE, "Model Not Found"),
    (400, "this model isn't supported. It does not support images.", INCONCLUSIVE, "Invalid Argument"),
    (401, "Incorrect API key provided", UNAVAILABLE, "Invalid API Key"),
    (402, "Insufficient balance", UNAVAILABLE, "No Credits Available"),
    (403, "Your key has expired", UNAVAILABLE, "Expired Credential"),
    (403, "", UNAVAILABLE, "Expired Credential"),
    (403, "Refused by our content filter", INCONCLUSIVE, "Content Policy Violation"),
    (403, "violates our usage POLICY", INCONCLUSIVE, "Content Policy Violation"),
    (403, "Country, region, or territory not supported", UNAVAILABLE, "Region Restriction"),
    (403, "not available in your location", UNAVAILABLE, "Region Restriction"),
    (403, "You are temporarily suspended", LIMITED, "Temporary Block"),
    (403, "Request blocked: suspicious activity", LIMITED, "Temporary Block"),
    (404, "no such deployment", UNAVAILABLE, "Model Not Found"),
    (408, "", *UNKNOWN),
    (418, "", *UNKNOWN),
    (429, "Rate limit reached for gpt", LIMITED, "Rate Limit Exceeded"),
    (429, "", LIMITED, "Rate Limit Exceeded"),
    (429, "Too many requests, slow down", LIMITED, "Rate Limit Exceeded"),
    (429, "You exceeded your current quota, please check your plan", UNAVAILABLE, "No Credits Available"),
    (429, "credit limit is used up", UNAVAILABLE, "No Credits Available"),
    (500, "The server had an error", UNAVAILABLE, "Model Unavailable"),
    (502, "Bad Gateway", UNAVAILABLE, "Model Unavailable"),
    (503, "overloaded", UNAVAILABLE, "Model Unavailable"),
    (504, "Gateway Timeout", *UNKNOWN),
    (522, "", *UNKNOWN),
    (529, "overloaded", *UNKNOWN),
    (599, "", *UNKNOWN),
]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"error": {"message": text, "type": None, "param": 5}},
        lambda text: {"error": text},
        lambda text: {"message": text},
        lambda text: {"detail": text},
    ],
    ids=["error.message", "error", "message", "detail"],
)
@pytest.mark.parametrize(
    ("status", "text", "result", "code"), BY_STATUS, ids=[f"{one[0]} {one[1][:20]}" for one in BY_STATUS]
)
def test_an_error_is_classed_by_its_status_and_text(
    status: int, text: str, result: str, code: str, wrap: Callable[[str], Any]
) -> None:
    for type_ in TYPES:
        found = answer(status, wrap(text), type_)
        assert (found.result, found.error_code, found.http_status) == (result, code, status)
        assert text in found.error_message
        assert (found.input_tokens, found.output_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("status", "text", "result", "code"), BY_STATUS, ids=[f"{one[0]} {one[1][:20]}" for one in BY_STATUS]
)
def test_an_error_in_html_or_plain_text_is_classed_alike(status: int, text: str, result: str, code: str) -> None:
    """Gateways and load balancers answer in HTML, whatever was asked for."""
    for body in (f"<html>\n<body class='x'><h1>{text}</h1>\r\n</body></html>", f" {text}\n"):
        assert read_answer("chatCompletion", status, body.encode()) == Answer(result, code, text, status)


def test_an_account_without_money_is_told_by_the_code_too() -> None:
    """OpenAI answers 429 with this code: a model of such an account was said to be limited for weeks."""
    found = answer(429, {"error": {"message": "Please see our plans.", "code": "insufficient_quota", "type": "x"}})
    assert (found.result, found.error_code) == (UNAVAILABLE, "No Credits Available")
    assert found.error_message == "insufficient_quota: x: Please see our plans."


def test_a_rate_limit_that_advertises_more_is_a_rate_limit() -> None:
    """OpenAI's text for small accounts ends with the address of their billing page."""
    text = (
        "Rate limit reached for gpt in organization org-1 on requests per min. Limit: 3 / min. Please add a payment"
        " method to your account. Visit https://platform.openai.com/account/billing to add a payment method."
    )
    found = answer(429, {"error": {"message": text, "type": "requests", "code": "rate_limit_exceeded"}})
    assert (found.result, found.error_code) == (LIMITED, "Rate Limit Exceeded")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"error": {"code": 42, "type": "", "message": ["odd"]}}, "42"),
        ({"error": {"reason": "x"}}, '{"error": {"reason": "x"}}'),
        ({"error": ["a", "b"]}, '{"error": ["a", "b"]}'),
        ({"error": {}, "message": "m"}, "m"),
        ({"code": "c", "other": 1}, "c"),
        (["a"], '["a"]'),
        ("text", '"text"'),
        (None, "null"),
        ({}, "{}"),
    ],
)
def test_an_error_of_another_shape_is_shown_as_it_is(content: Any, text: str) -> None:
    assert answer(500, content) == Answer(UNAVAILABLE, "Model Unavailable", text, 500)


# Errors that come with 200


@pytest.mark.parametrize(
    ("text", "result", "code"),
    [
        ("upstream timed out", UNAVAILABLE, "Timeout"),
        ("Request time-out", UNAVAILABLE, "Timeout"),
        ("Quota used up", UNAVAILABLE, "No Credits Available"),
        ("your credit balance is too low", UNAVAILABLE, "No Credits Available"),
        ("Network unreachable", UNAVAILABLE, "Connection Error"),
        ("connection reset by upstream", UNAVAILABLE, "Connection Error"),
        ("No credentials for this provider", UNAVAILABLE, "Invalid API Key"),
        ("model gpt not found", UNAVAILABLE, "Model Not Found"),
        ("rate limit", LIMITED, "Rate Limit Exceeded"),
        ("Too many requests", LIMITED, "Rate Limit Exceeded"),
        ("something else", *UNKNOWN),
    ],
)
def test_an_error_that_comes_as_a_success_is_classed_by_its_text(text: str, result: str, code: str) -> None:
    """A router answered 200 to everything, and every model was available."""
    for content in ({"error": {"message": text}}, {"error": text}, CHAT | {"error": {"message": text}}):
        assert answer(200, content) == Answer(result, code, text, 200)


@pytest.mark.parametrize("error", [None, "", {}, [], 0, False])
def test_an_empty_error_is_none(error: Any) -> None:
    assert answer(200, CHAT | {"error": error}) == Answer(AVAILABLE, http_status=200)


# Proofs


@pytest.mark.parametrize(
    ("type_", "content"),
    [
        ("chatCompletion", CHAT),
        ("chatCompletion", {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
        ("embedding", {"data": [{"embedding": [0.0, -0.5]}]}),
        ("embedding", {"data": [{"embedding": "AACAPwAAAEA="}]}),
        ("imageGeneration", {"data": [{"url": "https://images/1.png"}]}),
        ("imageGeneration", {"data": [{"b64_json": "iVBORw0KGgo="}]}),
    ],
)
def test_an_answer_of_the_right_kind_proves_the_model_and_no_other_type(type_: str, content: dict[str, Any]) -> None:
    usage = {"usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}}
    for status in (200, 201, 299):
        proved = Answer(AVAILABLE, http_status=status, input_tokens=8, output_tokens=1)
        assert answer(status, content | usage, type_) == proved
    for other in TYPES:
        found = answer(200, content, other)
        assert (found.result == AVAILABLE) == (other == type_)
        if other != type_:
            assert (found.result, found.error_code) == INVALID
            assert found.error_message.startswith(f"no {other} in: {{")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        [CHAT],
        "text",
        7,
        None,
        {"choices": []},
        {"choices": None},
        {"choices": {}},
        {"choices": "x"},
        {"choices": [None]},
        {"data": []},
        {"data": [[]]},
        {"data": [{}]},
        {"data": [{"embedding": []}]},
        {"data": [{"embedding": ""}]},
        {"data": [{"url": "", "b64_json": None}]},
        {"data": {"0": {"embedding": [1]}}},
    ],
    ids=str,
)
def test_json_of_another_shape_proves_nothing(content: Any) -> None:
    for type_ in TYPES:
        expected = Answer(*INVALID, f"no {type_} in: {json.dumps(content)}", 200)
        assert answer(200, content, type_) == expected


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "an empty answer"),
        (b" \n", "an empty answer"),
        (b"<html><head><title>Login</title></head></html>", "Login"),
        (b"{'choices': [1]}", "{'choices': [1]}"),
        (json.dumps(CHAT).encode()[:-1], json.dumps(CHAT)[:-1]),
        (b"data: {}\n\ndata: [DONE]", "data: {} data: [DONE]"),
        (b"\xff\xfe\x00ok", "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} ok"),
        (b'{"choices": ' + b"9" * 5000 + b"}", '{"choices": 999'),
        (b"[" * 100_000, "[[["),
        (b'{"choices":' * 100_000, '{"choices":{"choices":'),
        (b"<" * 100_000, "<<<"),
    ],
    ids=range(11),
)
def test_what_is_no_json_proves_nothing(body: bytes, shown: str) -> None:
    """A hotel's login page answered 200."""
    for type_ in TYPES:
        found = read_answer(type_, 200, body)
        assert (found.result, found.error_code, found.http_status) == (*INVALID, 200)
        assert found.error_message.startswith(f"no {type_} in: {shown}")


def test_an_answer_that_was_cut_proves_nothing_even_if_what_is_there_would() -> None:
    found = read_answer("chatCompletion", 200, json.dumps(CHAT).encode(), complete=False)
    assert found == Answer(*INVALID, "no chatCompletion in: an answer longer than 1 MB", 200)


def test_an_error_that_was_cut_is_still_classed() -> None:
    body = b'{"error": {"message": "Country not supported ' + b"x" * 1_048_576
    found = read_answer("chatCompletion", 403, body, complete=False)
    assert (found.result, found.error_code) == (UNAVAILABLE, "Region Restriction")


# Tokens


@pytest.mark.parametrize(
    ("count", "taken"),
    [
        ("0", 0),
        ("7", 7),
        ("2147483647", 2147483647),
        ("2147483648", 0),
        ("1e400", 0),
        ("9" * 400, 0),
        ("-1", 0),
        ("true", 0),
        ("NaN", 0),
        ("Infinity", 0),
        ("1.5", 0),
        ('"7"', 0),
        ("null", 0),
        ("[7]", 0),
    ],
)
def test_tokens_are_counts_or_nothing(count: str, taken: int) -> None:
    """A negative count lowered the sum of the day."""
    usage = f'{{"prompt_tokens": {count}, "completion_tokens": {count}}}'
    body = f'{{"choices": [{{}}], "usage": {usage}}}'.encode()
    found = read_answer("chatCompletion", 200, body)
    assert (found.result, found.input_tokens, found.output_tokens) == (AVAILABLE, taken, taken)


@pytest.mark.parametrize("usage", [None, [], [5], 7, "x", {}, {"total_tokens": 5}], ids=str)
def test_an_answer_without_a_usable_usage_counts_nothing(usage: Any) -> None:
    assert answer(200, CHAT | {"usage": usage}) == Answer(AVAILABLE, http_status=200)


# Anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "detail", "choices", "data", "embedding", "url", "usage"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
bodies = st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode())


@given(st.sampled_from(TYPES), st.integers(100, 599), bodies, st.booleans())
@examples(300)
def test_whatever_is_answered_is_read(type_: str, status: int, body: bytes, complete: bool) -> None:
    """An answer that raised ended the check of all other models."""
    found = cleaned(read_answer(type_, status, body, complete=complete), [KEY])
    assert found.result in {AVAILABLE, LIMITED, UNAVAILABLE, INCONCLUSIVE}
    assert (found.result == AVAILABLE) == (found.error_code == "")
    assert found.http_status == status
    assert found.result != AVAILABLE or (complete and 200 <= status < 300)
    assert len(found.error_message) <= LONGEST_MESSAGE
    assert found.error_message.isprintable()


# Messages without secrets


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Incorrect API key provided: sk-abcd1234. See docs", "Incorrect API key provided: ***. See docs"),
        ("Incorrect API key provided: sk-proj-abc***********xyz.", "Incorrect API key provided: ***."),
        ("key sk-ant-api03-abc_DEF-123 is bad", "key *** is bad"),
        ('{"api_key":"sk-or-v1-0123456789abcdef"}', '{"api_key":"***"}'),
        ("Authorization: Bearer abc.def/ghi+jkl= refused", "Authorization: Bearer *** refused"),
        ("bearer\n\tabc", "bearer ***"),
        ("API key AIzaSyA-1234567890_abc not valid", "API key *** not valid"),
        ("url?key=AIzaSyA1234567890", "url?key=***"),
        ("gsk_abcDEF1234567890", "***"),
        ("(hf_abcDEF1234567890)", "(***)"),
        ("xai-abcDEF1234567890", "***"),
        ("pk-12345678 rk_live_12345678", "*** ***"),
        ("organization org-AbCd1234", "organization ***"),
    ],
)
def test_what_looks_like_a_key_is_removed(message: str, shown: str) -> None:
    """Providers repeat a part of the key that they refuse."""
    assert said(message) == shown


@pytest.mark.parametrize(
    "message",
    ["invalid_api_key: the model risk-free does not exist", "task-1234", "disk-abcdef", "gpt-4o-mini", "sk-1"],
)
def test_other_words_stay(message: str) -> None:
    assert said(message) == message


def test_the_keys_in_use_are_removed_whatever_they_look_like() -> None:
    assert said(f"key {KEY}, {KEY}x and [{KEY}]", "", KEY) == "key ***, ***x and [***]"
    assert said(f"no {KEY}") == f"no {KEY}"


@pytest.mark.parametrize("swapped", [False, True])
def test_a_key_that_contains_another_leaves_nothing(swapped: bool) -> None:
    """The shorter one was replaced first, and the rest of the longer one stayed."""
    keys = [KEY, f"{KEY}-AND-MORE"]
    assert said(f"{keys[1]} {keys[0]}", *(reversed(keys) if swapped else keys)) == "*** ***"


def test_keys_that_overlap_are_not_shown() -> None:
    keys = ["abcdef-1234", "1234-ghijkl"]
    for given_keys in (keys, keys[::-1]):
        shown = said("abcdef-1234-ghijkl", *given_keys)
        assert [key for key in keys if key in shown] == []


@pytest.mark.parametrize("space", [" ", "  ", "\n", "\t", "\r\n", "\x00", "\N{NO-BREAK SPACE}"])
def test_a_key_with_a_space_in_it_is_removed_however_the_space_is_written(space: str) -> None:
    assert said("key a1b2 c3d4!", f"a1b2{space}c3d4") == "key ***!"
    assert said(f"key a1b2{space}c3d4!", "a1b2 c3d4") == "key ***!"


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_a_key_read_from_a_file_with_its_line_end_is_removed(end: str) -> None:
    assert said(f"Illegal header value {KEY!r}", KEY + end) == "Illegal header value '***'"


def test_a_message_is_one_printable_line_that_a_database_keeps() -> None:
    """PostgreSQL refuses the character zero, and no database takes half a surrogate pair: the whole check ended."""
    text = "a\x00b\r\n\tc\x1b[31md\u2028e\ud800f\u202eg  Ärger 🙂"
    assert said(text) == "a b c [31md e f g Ärger 🙂"
    found = answer(500, {"error": {"message": text}})
    assert cleaned(found, []).error_message == said(text)


def test_a_message_is_cut() -> None:
    assert said("🙂" * 301) == "🙂" * 300
    assert said("x" * 300) == "x" * 300


@pytest.mark.parametrize("before", [*range(270, 302, 3), 1170, 1190, 1200])
def test_a_key_is_not_cut_in_half(before: int) -> None:
    """What came first was the cut, and half a key is not found."""
    for filling in ("x", " ", "<br>"):
        text = f"{filling * before} {KEY} {KEY}"
        shown = [
            said(text, KEY),
            cleaned(read_answer("chatCompletion", 401, text.encode()), [KEY]).error_message,
            cleaned(read_answer("chatCompletion", 200, text.encode()), [KEY]).error_message,
            cleaned(answer(401, {"error": text}), [KEY]).error_message,
            cleaned(answer(401, {"odd": text}), [KEY]).error_message,
        ]
        assert [one for one in shown if KEY[:4] in one] == []


def test_only_the_message_is_cleaned() -> None:
    before = Answer(AVAILABLE, "x", f"a {KEY}", 200, 5.0, 7, 9)
    assert cleaned(before, [KEY]) == Answer(AVAILABLE, "x", "a ***", 200, 5.0, 7, 9)


# Without asterisks, which replace it.
secrets = st.text(st.sampled_from("abc-_ .sk\n"), min_size=1, max_size=6) | st.text(min_size=1, max_size=8)
several = st.lists(secrets.filter(lambda text: "*" not in text and text.strip()), min_size=1, max_size=4)


@given(several, st.lists(st.integers(0, 9) | st.text(max_size=3), max_size=8), st.integers(0, 310))
@examples(400)
def test_no_cleaned_message_holds_a_secret(keys: list[str], parts: list[int | str], before: int) -> None:
    words = [keys[part % len(keys)] if isinstance(part, int) else part for part in parts]
    message = "x" * before + "".join(words)
    shown = said(message, *keys)
    assert len(shown) <= LONGEST_MESSAGE
    assert [key for key in keys if key.isprintable() and key in shown] == []
