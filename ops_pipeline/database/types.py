"""Column types that mean the same on PostgreSQL and SQLite: UTC instants and exact decimals.

What belongs here: conversion of single values. What does not: SQL expressions (see `expressions`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any

from sqlalchemy import ARRAY, DateTime, Dialect, Numeric, Select, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

Rows = Select[*tuple[Any, ...]]
"""A query, whatever its columns."""


def parse_instant(text: str) -> datetime:
    """Read ISO 8601 text as an aware UTC datetime; text without an offset is taken as UTC.

    Accepts what SQLite's own date functions and other programs write: with or without fraction, a space or
    `T`, `Z` or any offset.

    Raises:
        ValueError: the text is no ISO 8601 date and time.
    """
    value = datetime.fromisoformat(text.strip())
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} lies outside the years 1 to 9999 in UTC") from error


def instant_text(value: datetime) -> str:
    """Write an aware datetime as SQLite's date functions do: UTC, a space, no offset, no zero fraction.

    Text of this form sorts like time, and `datetime('now')` writes the same.

    Raises:
        ValueError: `value` is naive.
    """
    return require_aware(value).astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")


def require_aware(value: datetime) -> datetime:
    """Return `value` unchanged, or refuse it when it carries no time zone.

    Raises:
        ValueError: `value` is naive.
    """
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(f"{value!r} has no time zone; give an aware datetime, for example with tzinfo=UTC")
    return value


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: `timestamptz` on PostgreSQL, ISO 8601 text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the storage type."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse naive values; write UTC."""
        if value is None:
            return None
        return instant_text(value) if dialect.name == "sqlite" else require_aware(value).astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return an aware UTC value."""
        if value is None:
            return None
        return parse_instant(str(value)) if isinstance(value, str) else value.astimezone(UTC)


def array_text(texts: Sequence[str]) -> str:
    """Texts as PostgreSQL reads an array of them."""
    together = "".join(texts)
    if "\\" in together or '"' in together:
        texts = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return '{"' + '","'.join(texts) + '"}' if texts else "{}"


class TextList(TypeDecorator[list[str]]):
    """A list of texts as one parameter: an array on PostgreSQL, JSON on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the form."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else ARRAY(Text()))

    def bind_processor(self, dialect: Dialect) -> Any:
        """Write JSON on SQLite, elsewhere the text of an array: the driver takes 1.5 microseconds for each element."""
        written = json.dumps if dialect.name == "sqlite" else array_text
        return lambda value: None if value is None else written(value)


class StoredInstant(UtcDateTime):
    """The same instants for whoever reads millions of them: what PostgreSQL's driver gives is aware and UTC already."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        """Read text on SQLite, nothing elsewhere."""
        return super().result_processor(dialect, coltype) if dialect.name == "sqlite" else None


class ExactDecimal(TypeDecorator[Decimal]):
    """A decimal with a fixed number of digits after the point, exact on both databases.

    `numeric(precision, scale)` on PostgreSQL. On SQLite a column of text affinity: a number that another
    program writes as a literal or as text is kept as plain decimal text (a numeric affinity would turn it into
    a float of 15 digits). Sums are made with `sums.exact_sum`, which never adds floats.
    """

    impl = Numeric
    cache_ok = True

    def __init__(self, scale: int, precision: int = 30) -> None:
        """Keep `scale` digits after the point out of `precision` in all."""
        super().__init__(precision, scale)
        self.scale = scale
        self.precision = precision

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the storage type."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Numeric(self.precision, self.scale))

    def process_bind_param(self, value: Decimal | int | None, dialect: Dialect) -> Any:
        """Round half to even at the scale, and write plain digits.

        Raises:
            ValueError: `value` is not finite, or has too many digits before the point.
        """
        if value is None:
            return None
        number = Decimal(value)
        try:
            rounded = number.quantize(Decimal(1).scaleb(-self.scale), ROUND_HALF_EVEN, Context(self.precision))
        except InvalidOperation:
            rounded = Decimal("nan")
        if not rounded.is_finite():
            raise ValueError(f"{value} is no decimal number of {self.precision - self.scale} digits before the point")
        return f"{rounded:f}" if dialect.name == "sqlite" else rounded

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Return a Decimal with trailing zeros as stored."""
        if value is None:
            return None
        try:
            return Decimal(str(value))
        except InvalidOperation as error:
            raise ValueError(f"{value!r} stands where a decimal number is expected") from error
