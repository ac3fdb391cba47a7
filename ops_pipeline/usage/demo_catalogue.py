"""The gateway of the demonstration: its models with public prices, its users and apps, and how a call turns out.

What belongs here: the figures that make invented calls believable, and drawing calls from them. What does not:
when calls happen and writing them (`demo`), and anything that a production deployment reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops_pipeline.usage.tables import CREDIT_DIGITS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

PRICED = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "images",
    "media_seconds",
)
"""What costs money. Cached tokens come on top of input tokens; reasoning tokens are part of the output."""


@dataclass(frozen=True)
class Model:
    """A model at a provider.

    Args:
        provider: who serves it.
        name: its public name.
        type: the type of its calls.
        prices: credits (US dollars) per token, image or second, in the order of `PRICED`.
        typical: the median amounts of a call, in the same order; what a model does not count is 0.
        seconds: the median time that it works on a typical call.
        ttfb_ms: the median time to the first byte of a stream.
        reasons: True when part of the output is reasoning.
    """

    provider: str
    name: str
    type: str
    prices: tuple[Decimal, ...]
    typical: tuple[int, ...]
    seconds: float
    ttfb_ms: float = 0.0
    reasons: bool = False


def _chat(name: str, prices: str, seconds: float, ttfb_ms: float, *, reasons: bool = False) -> Model:
    """A chat model; prices per million tokens of input, output, cache read and cache write."""
    provider, _, name = name.partition("/")
    read, write = (Decimal(price) for price in prices.split()[2:])
    # Caching that has no price of its own is not reported by the provider either.
    typical = (950, 900 if reasons else 320, 4200 if read else 0, 2600 if write else 0, 0, 0)
    return Model(provider, name, "chatCompletion", _per_unit(prices), typical, seconds, ttfb_ms, reasons)


def _other(name: str, kind: str, prices: str, typical: tuple[int, int, int], seconds: float) -> Model:
    """A model that answers in one piece; prices and amounts of input tokens, images and media seconds."""
    provider, _, name = name.partition("/")
    tokens, image, second = prices.split()
    per_unit = _per_unit(f"{tokens} 0 0 0 {image} {second}")
    return Model(provider, name, kind, per_unit, (typical[0], 0, 0, 0, *typical[1:]), seconds)


def _per_unit(prices: str) -> tuple[Decimal, ...]:
    """Prices as providers list them, turned from a million tokens to one."""
    listed = [Decimal(price) for price in prices.split()]
    images_and_seconds = listed[4:] or [Decimal(0)] * 2
    return (*(price.scaleb(-6) for price in listed[:4]), *images_and_seconds)


MODELS = (
    _chat("openai/gpt-4o-mini", "0.15 0.60 0.075 0", 4.2, 420),
    _chat("anthropic/claude-sonnet-4-5", "3 15 0.30 3.75", 5.8, 980),
    _chat("google/gemini-2.5-flash", "0.30 2.50 0.03 0", 3.1, 390),
    _other("openai/text-embedding-3-small", "embedding", "0.02 0 0", (480, 0, 0), 0.21),
    _chat("openai/gpt-5", "1.25 10 0.125 0", 14.0, 2600, reasons=True),
    _chat("anthropic/claude-haiku-4-5", "1 5 0.10 1.25", 2.6, 540),
    _chat("openai/gpt-5-mini", "0.25 2 0.025 0", 8.5, 1700, reasons=True),
    _chat("deepseek/deepseek-chat", "0.27 1.10 0.07 0", 8.0, 1100),
    _chat("google/gemini-2.5-pro", "1.25 10 0.125 0", 12.5, 3100, reasons=True),
    _other("openai/gpt-image-1", "imageGeneration", "5 0.042 0", (90, 1, 0), 16.0),
    _chat("openai/gpt-4.1", "2 8 0.50 0", 5.0, 620),
    _other("google/gemini-embedding-001", "embedding", "0.15 0 0", (620, 0, 0), 0.34),
    _other("openai/whisper-1", "audioGeneration", "0 0 0.0001", (0, 0, 75), 6.2),
    _chat("deepseek/deepseek-reasoner", "0.55 2.19 0.14 0", 28.0, 1900, reasons=True),
    _other("voyageai/rerank-2.5", "custom", "0.05 0 0", (5200, 0, 0), 0.42),
    _other("openai/gpt-4o-mini-tts", "audioGeneration", "0.60 0 0.00025", (110, 0, 28), 3.8),
    _other("voyageai/voyage-3.5", "embedding", "0.06 0 0", (700, 0, 0), 0.26),
    _chat("anthropic/claude-opus-4-1", "15 75 1.50 18.75", 11.0, 1650),
    _other("google/imagen-4.0-generate-001", "imageGeneration", "0 0.04 0", (60, 1, 0), 8.5),
    _other("openai/sora-2", "video", "0 0 0.10", (70, 0, 7), 95.0),
    _other("google/veo-3.0-generate-001", "video", "0 0 0.40", (70, 0, 7), 70.0),
)
"""The most popular first: the n-th is called about 1/n times as often as the first."""

APPS = {
    "support-assistant": ("chatCompletion", "embedding"),
    "code-review": ("chatCompletion",),
    "document-search": ("embedding", "custom", "chatCompletion"),
    "meeting-notes": ("audioGeneration", "chatCompletion"),
    "image-studio": ("imageGeneration", "chatCompletion"),
    "sales-mail": ("chatCompletion",),
    "clip-maker": ("video", "imageGeneration", "chatCompletion"),
    "data-analyst": ("chatCompletion",),
    "voice-agent": ("chatCompletion", "audioGeneration"),
    "translation-desk": ("chatCompletion",),
    "knowledge-base": ("embedding", "chatCompletion", "custom"),
    "contract-check": ("chatCompletion", "embedding"),
    "shop-search": ("embedding", "custom"),
    "playground": ("chatCompletion", "imageGeneration", "video", "audioGeneration"),
}
"""The apps, and the types of calls that each is made for; others it makes seldom."""
SELDOM = 0.08

FAILURE_SHARES = {"openai": 0.026, "anthropic": 0.032, "google": 0.036, "deepseek": 0.048, "voyageai": 0.022}
FAILURES = (
    ("502 Model Unavailable: the connection was closed before the answer was complete", 8, 2.0),
    ("429 Rate Limit Exceeded: too many requests, retry after 20 seconds", 44, 0.1),
    ("503 Model Unavailable: the model is overloaded", 20, 0.6),
    ("500 Model Unavailable: internal error of the provider", 13, 1.5),
    ("504 Model Unavailable: no answer within 120 seconds", 5, 120.0),
    ("400 Invalid Argument: the request exceeds the context length of the model", 6, 0.2),
    ("403 Content Policy Violation: the request was blocked", 4, 0.5),
)
"""What goes wrong: the reason, how often among a hundred failures, and after how many seconds at least.
After the first of them, a chat has used tokens all the same (which nobody pays for)."""

_APP_SHARES = (0.7, 0.9)
_STREAMED = 0.7
_CACHE_SHARES = {"cache_read_tokens": 0.35, "cache_write_tokens": 0.12}
_SPREADS = (0.8, 0.8, 0.8, 0.8, 0.5, 0.5)
_TIME_SPREAD = 0.3
_LONGEST_MS = 1_199_000
_KNOTS = 1025


@dataclass(frozen=True)
class Gateway:
    """Everything that calls are drawn from; `..._edges` are cumulative shares that end with 1."""

    user_ids: list[str]
    user_edges: Floats
    user_apps: Integers
    user_app_counts: Integers
    model_edges: Floats
    failure_shares: Floats
    failure_edges: Floats
    unit_prices: Integers
    typical: Integers
    factors: tuple[Floats, ...]
    time_factors: Floats


def generator(*key: object) -> np.random.Generator:
    """Random numbers that depend on the key alone: the same on every machine."""
    digest = blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def gateway(seed: int, users: int) -> Gateway:
    """The gateway of a seed; when it gains users, those it had stay what they are."""
    choices = generator("users", seed).random((users, len(APPS) + 1))
    return Gateway(
        user_ids=[f"user-{blake2b(f'{seed}:{n}'.encode(), digest_size=5).hexdigest()}" for n in range(users)],
        # Shifted by two, as Mandelbrot did: the first of real users is not twice as busy as the second.
        user_edges=edges(1.0 / (3.0 + np.arange(users, dtype=np.float64))),
        user_apps=np.argsort(choices[:, 1:], axis=1, kind="stable")[:, :3],
        user_app_counts=1 + (choices[:, 0] * 3).astype(np.int64),
        model_edges=_model_edges(generator("tastes", seed)),
        failure_shares=np.array([FAILURE_SHARES[model.provider] for model in MODELS]),
        failure_edges=edges(np.array([float(often) for _, often, _ in FAILURES])),
        unit_prices=np.array([_units(model) for model in MODELS]),
        typical=np.array([(*model.typical[:5], model.typical[5] * 1000) for model in MODELS]),
        factors=tuple(_log_normal(spread) for spread in _SPREADS),
        time_factors=_log_normal(_TIME_SPREAD),
    )


def edges(weights: Floats) -> Floats:
    """Cumulative shares along the last axis."""
    totals = np.cumsum(weights, axis=-1)
    return totals / totals[..., -1:]


def draw_calls(
    rng: np.random.Generator, offered: Gateway, ids: Sequence[str], called_at: Sequence[datetime]
) -> list[dict[str, Any]]:
    """One finished row of `model_calls` per id: who called what, and how it turned out."""
    count = len(ids)
    user = np.searchsorted(offered.user_edges, rng.random(count), side="right")
    slot = np.searchsorted(_APP_SHARES, rng.random(count), side="right") % offered.user_app_counts[user]
    app = offered.user_apps[user, slot]
    model = (offered.model_edges[app] <= rng.random((count, 1))).sum(axis=1)
    models = [MODELS[number] for number in model.tolist()]
    keys = (1 + (rng.random(count) * 3).astype(np.int64)).tolist()
    traces = rng.bytes(28 * count).hex()
    app_ids = list(APPS)
    return _rows(
        {
            "id": ids,
            "user_id": [offered.user_ids[number] for number in user.tolist()],
            "app_id": [app_ids[number] for number in app.tolist()],
            "provider": [model.provider for model in models],
            "model": [model.name for model in models],
            "type": [model.type for model in models],
            "credential_id": [f"{model.provider}-key-{key}" for model, key in zip(models, keys, strict=True)],
            "called_at": called_at,
            "created_at": called_at,
            "request_id": [f"req_{traces[at : at + 24]}" for at in range(0, 56 * count, 56)],
            "trace_id": [traces[at + 24 : at + 56] for at in range(0, 56 * count, 56)],
            **_outcomes(rng, offered, model),
        }
    )


def draw_outcome(rng: np.random.Generator, offered: Gateway, model: Model) -> dict[str, Any]:
    """How one call of a model turns out."""
    return _rows(_outcomes(rng, offered, np.array([MODELS.index(model)])))[0]


def _rows(columns: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _outcomes(rng: np.random.Generator, offered: Gateway, model: Integers) -> dict[str, Sequence[Any]]:
    """The columns that are known when a call has ended."""
    count = len(model)
    chat = np.array([MODELS[number].type == "chatCompletion" for number in model.tolist()], dtype=np.bool_)
    usage, worked_ms, ttfb_ms = _work(rng, offered, model)
    reasons = np.array([MODELS[number].reasons for number in model.tolist()], dtype=np.bool_)
    reasoning = (usage[:, 1] * (0.3 + 0.6 * rng.random(count))).astype(np.int64) * reasons

    failed = rng.random(count) < offered.failure_shares[model]
    kind = np.searchsorted(offered.failure_edges, rng.random(count), side="right")
    after = np.array([seconds for _, _, seconds in FAILURES])[kind]
    refused_ms = (1000 * (after + 0.3 * _factor(rng, offered.time_factors, count))).astype(np.int64)
    interrupted = failed & chat & (kind == 0)
    used = ~failed | interrupted
    # 502 comes after the first byte of a stream, any other failure before it.
    streamed = chat & used & ((rng.random(count) < _STREAMED) | interrupted)
    duration_ms = np.where(used, worked_ms, refused_ms)
    credit_units = (usage * offered.unit_prices[model]).sum(axis=1) * ~failed
    usage *= used[:, None]
    return {
        "status": np.where(failed, "failed", "success").tolist(),
        "duration_seconds": (duration_ms / 1000).tolist(),
        "ttfb_ms": [ms if told else None for ms, told in zip(ttfb_ms.tolist(), streamed.tolist(), strict=True)],
        **{name: usage[:, at].tolist() for at, name in enumerate(PRICED[:5])},
        "media_seconds": (usage[:, 5] / 1000).tolist(),
        "reasoning_tokens": (reasoning * used).tolist(),
        "credits": [Decimal(units).scaleb(-CREDIT_DIGITS) for units in credit_units.tolist()],
        "error_reason": [
            FAILURES[which][0] if bad else None for which, bad in zip(kind.tolist(), failed.tolist(), strict=True)
        ],
    }


def _work(rng: np.random.Generator, offered: Gateway, model: Integers) -> tuple[Integers, Integers, Floats]:
    """What calls use (in the order of `PRICED`, media in ms), how many ms they take, and their TTFB in ms."""
    count = len(model)
    factors = np.stack([_factor(rng, table, count) for table in offered.factors], axis=1)
    typical = offered.typical[model]
    usage = np.maximum((typical * factors).astype(np.int64), 1) * (typical > 0)
    for name, share in _CACHE_SHARES.items():
        usage[:, PRICED.index(name)] *= rng.random(count) < share
    video = np.array([MODELS[number].type == "video" for number in model.tolist()], dtype=np.bool_)
    # Films have whole seconds.
    usage[:, 5] = np.where(video, (usage[:, 5] + 999) // 1000 * 1000, usage[:, 5])

    # The time goes with what is produced: words, pictures, seconds; else all calls take about as long.
    produced = np.where(typical[:, 1] > 0, factors[:, 1], 1.0) * np.where(typical[:, 5] > 0, factors[:, 5], 1.0)
    produced *= np.maximum(usage[:, 4], 1)
    seconds = np.array([(entry.seconds, entry.ttfb_ms) for entry in MODELS])[model]
    ttfb_ms = np.rint(10 * seconds[:, 1] * _factor(rng, offered.time_factors, count)) / 10
    worked_ms = 1000 * seconds[:, 0] * produced * _factor(rng, offered.time_factors, count) + ttfb_ms
    return usage, np.minimum(worked_ms.astype(np.int64) + 1, _LONGEST_MS), ttfb_ms


def _factor(rng: np.random.Generator, table: Floats, count: int) -> Floats:
    """Log-normal factors around 1."""
    # Written out rather than np.interp: a compiler may fuse its multiplication and addition on some machines.
    position = rng.random(count) * (_KNOTS - 1)
    knot = position.astype(np.int64)
    low = table[knot]
    return low + (table[knot + 1] - low) * (position - knot)


def _log_normal(sigma: float) -> Floats:
    """Quantiles of the log-normal distribution of median 1, cut at 3.3 sigma so that nothing absurd appears."""
    # Rounded, because the last bit of exp and log differs between machines; so does numpy's own log-normal.
    normal = NormalDist()
    quantiles = (normal.inv_cdf((knot + 0.5) / _KNOTS) for knot in range(_KNOTS))
    return np.array([round(math.exp(sigma * z), 9) for z in quantiles])


def _model_edges(rng: np.random.Generator) -> Floats:
    """Per app the cumulative shares of the models: popular ones, for what the app does, to its own taste."""
    popular = 1.0 / (np.arange(len(MODELS)) + 1.0)
    fits = np.array([[1.0 if model.type in types else SELDOM for model in MODELS] for types in APPS.values()])
    return edges(popular * fits * (0.5 + rng.random(fits.shape)))


def _units(model: Model) -> list[int]:
    """Prices in units of the smallest credit, media per millisecond, so that no float touches money."""
    units = [price.scaleb(CREDIT_DIGITS) for price in (*model.prices[:5], model.prices[5] / 1000)]
    if any(unit != int(unit) for unit in units):
        raise ValueError(f"{model.name} has a price finer than {CREDIT_DIGITS} digits")
    return [int(unit) for unit in units]
