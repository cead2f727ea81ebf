"""Handlers of single values: the scalars that MessagePack holds, and those of the standard library.

Each of the latter is a row of one table: a type, its tag, how it becomes plain values and how it comes back.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import pathlib
import random
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np

from ..document import LEAF, Value
from ..dtypes import describe, parse
from ..errors import LinkedPath
from .decode import Decoder
from .encode import Encoder
from .merge import Build, Merger, constant
from .registry import Handler, Registry

#: A longer string of bytes is stored like an array, so that it does not swell the index.
MAX_INLINE_BYTES = 1 << 16


def class_name(ty: type) -> str:
    """Write a class for messages and attributes; nothing is ever looked up by it."""
    return f"{ty.__module__}.{ty.__qualname__}"


class NumberHandler(Handler):
    """Python's bool, int, float and complex, and classes derived from them."""

    tracked = False

    def __init__(self, ty: type, tag: str) -> None:
        self.type = ty
        self.tag = tag

    def encode(self, number: Any, encoder: Encoder) -> Value:
        """Write the number as MessagePack holds it, or in a form of its own if it is too large for that."""
        plain = self._plain(number)
        if type(number) is self.type:
            return plain
        if type(plain) is list:
            return [LEAF, self.tag, plain[2], {"class": class_name(type(number))}]
        return [LEAF, self.tag, plain, {"class": class_name(type(number))}]

    def _plain(self, number: Any) -> Value:
        if self.type is int:
            number = int(number)
            if -(2**63) <= number < 2**64:
                return number
            return [LEAF, self.tag, number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)]
        if self.type is complex:
            return [LEAF, self.tag, [0, number.real, number.imag]]
        return self.type(number)

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Read the number."""
        number: Any
        if self.type is complex:
            number = complex(*decoder.sequence(state))
        elif self.type is int and type(state) is bytes:
            number = int.from_bytes(state, "little", signed=True)
        else:
            number = state
        if type(number) is not self.type:
            raise TypeError(f"expected {self.type.__name__}, got {type(number).__name__}")
        if "class" in attributes:
            return decoder.plain(number, base_reason(attributes["class"], self.type))
        return number

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take a number that equals the file's and has the target's type."""
        if type(target) is self.type:
            if type(value) is list and value[0] == LEAF and value[1] == self.tag and len(value) > 3:
                value = value[:3] if self.type is complex or type(value[2]) is bytes else value[2]
            return merger.plan_number(target, value, path)
        if type(value) is list and value[0] == LEAF and len(value) > 3 and value[1] == self.tag:
            value = value[:3] if self.type is complex or type(value[2]) is bytes else value[2]
        number = merger.plan_number(self.type(target), value, path)
        return lambda: type(target)(number())


def base_reason(name: str, base: type) -> str:
    """Say why an object of a class comes back as one of a builtin type."""
    return (
        f"The checkpoint holds an object of the class {name!r}: without a target it is loaded as a plain "
        f"{base.__name__}. Pass a target to get the class back."
    )


class TextHandler(Handler):
    """``str``, ``bytes`` and classes derived from them."""

    tracked = False

    def __init__(self, ty: type) -> None:
        self.type = ty
        self.tag = ty.__name__

    def encode(self, text: Any, encoder: Encoder) -> Value:
        """Write the text as it is; long bytes like an array, unpaired surrogates as bytes."""
        plain = text if type(text) is self.type else self.type(text)
        value = self._plain(plain, encoder)
        if plain is text:
            return value
        state = value[2] if type(value) is list else value
        return [LEAF, self.tag, state, {"class": class_name(type(text))}]

    def _plain(self, text: Any, encoder: Encoder) -> Value:
        if type(text) is bytes:
            return text if len(text) <= MAX_INLINE_BYTES else encoder.leaf(self.tag, _bytes_array(text, encoder))
        if text.isascii() and len(text) <= MAX_INLINE_BYTES:
            return text
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > MAX_INLINE_BYTES:
            return encoder.leaf(self.tag, _bytes_array(data, encoder))
        try:
            data.decode()
        except UnicodeDecodeError:
            return encoder.leaf(self.tag, data)
        return text

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Read the text."""
        text = decoder.decode(state)
        if isinstance(text, np.ndarray):
            text = text.tobytes()
        if self.type is str and type(text) is bytes:
            text = text.decode("utf-8", "surrogatepass")
        if type(text) is not self.type:
            raise TypeError(f"expected {self.tag}, got {type(text).__name__}")
        if "class" in attributes:
            return decoder.plain(text, base_reason(attributes["class"], self.type))
        return text

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's text."""
        if type(value) is list and value[0] == LEAF and value[1] == self.tag:
            value = merger.decode_now(value[:3])
        if type(value) is not self.type:
            return merger.leaf_mismatch(target, self.tag, value, path)
        return constant(value if type(target) is self.type else type(target)(value))


def _bytes_array(data: bytes, encoder: Encoder) -> Value:
    return encoder.encode(np.frombuffer(data, np.uint8))


class NoneHandler(Handler):
    """``None``."""

    tracked = False

    def encode(self, obj: None, encoder: Encoder) -> Value:
        """Write nil."""
        return None

    def plan(self, target: None, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take nothing but None."""
        return constant(None) if value is None else merger.leaf_mismatch(None, "None", value, path)


class ValueHandler(Handler):
    """A type of single values, given by two functions to plain values and back."""

    def __init__(
        self, ty: type, tag: str, to: Callable[[Any], Any], back: Callable[[Any], Any], *, tracked: bool = False
    ) -> None:
        self.type = ty
        self.tag = tag
        self._to = to
        self._back = back
        self.tracked = tracked  # type: ignore[misc]

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the plain values that stand for the object."""
        return encoder.leaf(self.tag, encoder.encode(self._to(obj)))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make the object from its plain values."""
        return self._back(decoder.decode(state))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's value if it is of the same type."""
        if not (type(value) is list and value[0] == LEAF and value[1] == self.tag):
            return merger.leaf_mismatch(target, type(target).__name__, value, path)
        return merger.plan_decoded(value)


def _from_datetime(moment: datetime.datetime) -> Any:
    return [moment.replace(tzinfo=None).isoformat(), moment.fold, moment.tzinfo]


def _to_datetime(state: Any) -> datetime.datetime:
    text, fold, zone = state
    return datetime.datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _from_time(time: datetime.time) -> Any:
    return [time.replace(tzinfo=None).isoformat(), time.fold, time.tzinfo]


def _to_time(state: Any) -> datetime.time:
    text, fold, zone = state
    return datetime.time.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _from_timezone(zone: datetime.timezone) -> Any:
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    named = datetime.timezone(offset).tzname(None) != name
    return [offset.days * 86400 + offset.seconds, offset.microseconds, *([name] if named else [])]


def _to_timezone(state: Any) -> datetime.timezone:
    seconds, microseconds, *name = state
    return datetime.timezone(datetime.timedelta(seconds=seconds, microseconds=microseconds), *name)


def _random_state(state: Any) -> random.Random:
    generator = random.Random(0)
    version, internal, gauss = state
    generator.setstate((version, tuple(internal.tolist()), gauss))
    return generator


def _path_handler(ty: type) -> ValueHandler:
    return ValueHandler(ty, f"path.{ty.__name__}", str, ty)


#: Values of the standard library: type, tag, to plain values, back.
VALUES = [
    ValueHandler(bytearray, "bytearray", bytes, bytearray, tracked=True),
    ValueHandler(type(...), "ellipsis", lambda _: None, lambda _: ...),
    ValueHandler(range, "range", lambda r: [r.start, r.stop, r.step], lambda s: range(*s)),
    ValueHandler(slice, "slice", lambda s: [s.start, s.stop, s.step], lambda s: slice(*s)),
    ValueHandler(datetime.datetime, "datetime", _from_datetime, _to_datetime),
    ValueHandler(datetime.date, "date", datetime.date.isoformat, datetime.date.fromisoformat),
    ValueHandler(datetime.time, "time", _from_time, _to_time),
    ValueHandler(
        datetime.timedelta,
        "timedelta",
        lambda d: [d.days, d.seconds, d.microseconds],
        lambda s: datetime.timedelta(*s),
    ),
    ValueHandler(datetime.timezone, "timezone", _from_timezone, _to_timezone),
    ValueHandler(zoneinfo.ZoneInfo, "zoneinfo", lambda z: z.key, zoneinfo.ZoneInfo),
    ValueHandler(uuid.UUID, "uuid", lambda u: u.bytes, lambda b: uuid.UUID(bytes=b)),
    ValueHandler(decimal.Decimal, "decimal", str, decimal.Decimal),
    ValueHandler(
        fractions.Fraction, "fraction", lambda f: [f.numerator, f.denominator], lambda s: fractions.Fraction(*s)
    ),
    ValueHandler(
        random.Random,
        "random",
        lambda r: (lambda s: [s[0], np.asarray(s[1], np.uint32), s[2]])(r.getstate()),
        _random_state,
        tracked=True,
    ),
    ValueHandler(np.str_, "numpy.str", str, np.str_),
    ValueHandler(np.bytes_, "numpy.bytes", bytes, np.bytes_),
    ValueHandler(np.dtype, "numpy.dtype", describe, parse),
]


def set_up(registry: Registry) -> None:
    """Register the single values."""
    registry.register(type(None), NoneHandler())
    for ty in (bool, int, float, complex):
        registry.register(ty, NumberHandler(ty, ty.__name__))
    for text in (str, bytes):
        registry.register(text, TextHandler(text))
    for handler in VALUES:
        registry.register(handler.type, handler)
    for name in ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
        registry.register(getattr(pathlib, name), _path_handler(getattr(pathlib, name)))
    registry.register_tag(_portable_path("path.PosixPath"))
    registry.register_tag(_portable_path("path.WindowsPath"))


def _portable_path(tag: str) -> ValueHandler:
    # A concrete path of the other system cannot be made here; the nearest thing is a pure one.
    ty = pathlib.Path if tag == f"path.{type(pathlib.Path()).__name__}" else getattr(pathlib, f"Pure{tag[5:]}")
    return ValueHandler(ty, tag, str, ty)
