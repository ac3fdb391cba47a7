"""The picture of a sweep, of whatever was found."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pytest
from PIL import Image

from ops_pipeline.checkpoints.figures import picture

RED, BLUE = (0xC0, 0x39, 0x2B), (0x2E, 0x86, 0xC1)
ODD_NAMES = [
    b"",
    b"\xff\xfe\x00",
    "Ärger 🙂".encode(),
    b"x" * 10_000,
    b"two\nlines\ttab",
    b"\\",
    b"%d {x}",
    b"\x1b[31m",
]
DOLLARS = [b"$", b"$a$b", b"$\\frac$", b"a$^$", b"$_$x$", b"\\$", b"$$"]


def drawn(
    ages: Mapping[int, int], largest: Sequence[tuple[int, bytes]] = (), retention_days: float = 30
) -> tuple[Image.Image, set[tuple[int, ...]]]:
    """The picture as it is opened again, and the colours in it."""
    content = picture(ages, largest, retention_days)
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return image, {color for _, color in image.getcolors(10**6) or [] if isinstance(color, tuple)}


def test_a_picture_shows_threads_beyond_the_retention_in_red() -> None:
    image, colors = drawn({0: 12, 5: 3, 40: 7}, [(9, b"T"), (300, b"user:1")])
    assert image.size == (880, 320)
    assert {RED, BLUE} <= colors


def test_without_threads_beyond_the_retention_nothing_is_red() -> None:
    _, colors = drawn({0: 12, 29: 3})
    assert BLUE in colors
    assert RED not in colors


def test_nothing_found_is_a_picture_too() -> None:
    image, colors = drawn({})
    assert image.size == (880, 320)
    assert not {RED, BLUE} & colors


@pytest.mark.parametrize("retention_days", [0.01, 30, 36_500])
def test_threads_of_ten_thousand_days_are_in_the_last_bar(retention_days: float) -> None:
    """A line at a retention of years pressed the bars into nothing."""
    image, colors = drawn({0: 1, 10_000: 10**9, 4_000_000: 1}, [(10**9, b"T")], retention_days)
    assert image.size == (880, 320)
    assert {RED, BLUE} & colors


@pytest.mark.parametrize("names", [ODD_NAMES, DOLLARS], ids=["odd", "dollars"])
def test_any_name_of_a_thread_can_be_drawn(names: list[bytes]) -> None:
    """A dollar begins a formula for matplotlib: the id `$a^$` ended the run after everything was deleted."""
    image, _ = drawn({1: 1}, [(number + 1, name) for number, name in enumerate(names)])
    assert image.size == (880, 320)
