"""Handlers of single values: the scalars that MessagePack holds, and those of the standard library.

Each of the latter is a row of one table: a type, its tag, how it becomes plain values and how it comes back.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import pathlib
import random
import reprlib
import uuid
import zoneinfo
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..claims import short
from ..document import LEAF, Value
from ..dtypes import describe, parse
from ..errors import CheckpointError, LinkedPath, SerializationError, format_array
from .decode import Decoder
from .encode import Encoder, Trouble
from .merge import Merger, constant
from .registry import Handler, Registry
from .requests import Build

#: A longer string of bytes is stored like an array, so that it does not swell the index.
MAX_INLINE_BYTES = 1 << 16


def class_name(ty: type) -> str:
    """Write a class for messages and attributes; nothing is ever looked up by it."""
    return f"{ty.__module__}.{ty.__qualname__}"


#: The value of an object of a builtin class, or of one derived from it, whatever methods that one has overridden.
_EXACT: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: int.__index__,
    float: float.__float__,
    complex: complex.__complex__,
    str: str.__str__,
    bytes: lambda text: bytes.__getitem__(text, slice(None)),
}


def _like(target: Any, base: type, value: Any) -> Any:
    """Make an object of the target's class, which is derived from ``base``, without calling what it overrides."""
    made: Any = base.__new__(type(target), value)
    if hasattr(made, "__dict__"):
        vars(made).update(vars(target))
    return made


def no_subclass(obj: Any, base: type, remedy: str) -> None:
    """Refuse an object of a class derived from ``base``: what that class adds would be lost."""
    if type(obj) is not base:
        raise Trouble(
            lambda path: SerializationError(
                f"Cannot save the {class_name(type(obj))} at path {path}: it would come back as a plain "
                f"{class_name(base)}. {remedy}, or register the class with msgpack_register_serialization."
            )
        )


# What a state of a file has to look like, written as a value of that form. A type stands for its instances (bool is no
# int), a range for its integers, an array for those of its dtype and shape, a tuple for any of its items, and a list
# or a dict for those that have one item for each of its own.
Form: TypeAlias = Any


def check(state: Any, form: Form) -> Any:
    """Give a state back if it has the form, and raise a TypeError if not."""
    if not _fits(state, form):
        raise TypeError(f"expected {_written(form)}, got {reprlib.repr(state)}")
    return state


def _fits(state: Any, form: Form) -> bool:
    if isinstance(form, tuple):
        return any(_fits(state, one) for one in form)
    if isinstance(form, type):
        return isinstance(state, form) and (form is not int or type(state) is int)
    if isinstance(form, range):
        return type(state) is int and state in form
    if isinstance(form, np.ndarray):
        return (getattr(state, "dtype", None), getattr(state, "shape", None)) == (form.dtype, form.shape)
    if type(state) is not type(form) or len(state) != len(form):
        return False
    if type(form) is dict:
        return state.keys() == form.keys() and all(_fits(state[key], one) for key, one in form.items())
    return all(map(_fits, state, form))


def _written(form: Form) -> str:
    if isinstance(form, tuple):
        return " or ".join(map(_written, form))
    if isinstance(form, type):
        return form.__name__
    if isinstance(form, range):
        return f"an int of {form.start} to {form[-1]}"
    if isinstance(form, np.ndarray):
        return format_array(form.dtype, form.shape)
    if type(form) is dict:
        return "{" + ", ".join(f"{key}: {_written(one)}" for key, one in form.items()) + "}"
    return "[" + ", ".join(map(_written, form)) + "]"


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
        number = _EXACT[self.type](number)
        if self.type is int:
            if -(2**63) <= number < 2**64:
                return number
            return [LEAF, self.tag, number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)]
        if self.type is complex:
            return [LEAF, self.tag, [0, number.real, number.imag]]
        return number

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Read the number."""
        number: Any
        if self.type is complex:
            number = complex(*check(decoder.sequence(state), [float, float]))
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
        if type(value) is list and value[0] == LEAF and value[1] == self.tag and len(value) > 3:
            # The class that the number was of does not matter: the target has its own.
            value = value[:3] if self.type is complex or type(value[2]) is bytes else value[2]
        own = _EXACT[self.type](target)
        number = merger.plan_number(own, value, path)
        if type(target) is self.type:
            return number

        def build() -> Any:
            found = number()
            return target if found is own else _like(target, self.type, found)

        return build


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
        plain = _EXACT[self.type](text)
        value = self._plain(plain, encoder)
        if type(text) is self.type:
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
        if getattr(text, "dtype", None) == np.uint8:
            text = np.asarray(text).tobytes()
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
        return constant(value if type(target) is self.type else _like(target, self.type, value))


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
    """A type of single values, given by two functions to plain values and back, and the form of the plain values."""

    def __init__(
        self,
        ty: type,
        tag: str,
        form: Form,
        to: Callable[[Any], Any],
        back: Callable[[Any], Any],
        *,
        tracked: bool = False,
        derived: bool = False,
    ) -> None:
        self.type = ty
        self.tag = tag
        self._form = form
        self._to = to
        self._back = back
        self._derived = derived  # classes derived from the type add nothing to it
        self.tracked = tracked  # type: ignore[misc]

    def encode(self, obj: Any, encoder: Encoder) -> Value:
        """Write the plain values that stand for the object."""
        if not self._derived:
            no_subclass(obj, self.type, "Convert it before saving")
        try:
            state = check(self._to(obj), self._form)
        except (TypeError, ValueError) as error:
            reason = str(error)
            raise Trouble(
                lambda path: SerializationError(f"Cannot save the {class_name(type(obj))} at path {path}: {reason}.")
            ) from error
        return encoder.leaf(self.tag, encoder.encode(state))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Make the object from its plain values."""
        return self._back(check(decoder.decode(state), self._form))

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Take the file's value if it is of the same type."""
        same = self._derived or type(target) is self.type
        if not (same and type(value) is list and value[0] == LEAF and value[1] == self.tag):
            return merger.leaf_mismatch(target, type(target).__name__, value, path)
        return merger.plan_decoded(value)


def _from_datetime(moment: datetime.datetime) -> Any:
    return [moment.replace(tzinfo=None).isoformat(), moment.fold, moment.tzinfo]


def _to_datetime(state: Any) -> datetime.datetime:
    text, fold, zone = state
    moment: datetime.datetime = _of_text(datetime.datetime, text)
    return moment.replace(fold=fold, tzinfo=zone)


def _from_time(time: datetime.time) -> Any:
    return [time.replace(tzinfo=None).isoformat(), time.fold, time.tzinfo]


def _to_time(state: Any) -> datetime.time:
    text, fold, zone = state
    time: datetime.time = _of_text(datetime.time, text)
    return time.replace(fold=fold, tzinfo=zone)


def _of_text(ty: Any, text: str) -> Any:
    """Read the one form that is written: Python takes others, and offsets from UTC, which would be lost."""
    made = ty.fromisoformat(text)
    if made.isoformat() != text or getattr(made, "tzinfo", None) is not None:
        raise ValueError(f"{text[:80]!r} is not in the form {ty.min.isoformat()}")
    return made


def _from_timezone(zone: datetime.timezone) -> Any:
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    named = datetime.timezone(offset).tzname(None) != name
    return [offset.days * 86400 + offset.seconds, offset.microseconds, *([name] if named else [])]


def _to_timezone(state: Any) -> datetime.timezone:
    seconds, microseconds, *name = state
    return datetime.timezone(datetime.timedelta(seconds=seconds, microseconds=microseconds), *name)


def _from_zoneinfo(zone: zoneinfo.ZoneInfo) -> str:
    if zone.key is None:
        raise ValueError("it has no key, under which it could be found again. Use ZoneInfo(key)")
    return zone.key


def _to_zoneinfo(key: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(key)
    except zoneinfo.ZoneInfoNotFoundError as error:
        if zoneinfo.available_timezones():
            reason = f"there is no time zone {key[:80]!r} in the database here, run: pip install -U tzdata"
            raise ValueError(reason) from error
        raise Trouble(
            lambda path: CheckpointError(
                f"Cannot load the time zone {key[:80]!r} at path {path}: there is no time zone database here. "
                "Run: pip install tzdata"
            )
        ) from error
    except OSError as error:  # a directory of the database, or too long for a file name
        raise ValueError(f"{key[:80]!r} is no time zone") from error


def _from_random(generator: random.Random) -> Any:
    version, internal, gauss = generator.getstate()
    return [version, np.asarray(internal, np.uint32), gauss]


def _random_state(state: Any) -> random.Random:
    generator = random.Random(0)
    version, internal, gauss = state
    generator.setstate((version, tuple(internal.tolist()), gauss))
    return generator


def _path_handler(ty: type) -> ValueHandler:
    return ValueHandler(ty, f"path.{ty.__name__}", str, str, ty)


_NONE = type(None)
_ANY = object
_INTS = [int, int, int]

#: Values of the standard library: type, tag, form of the state, to plain values, back.
VALUES = [
    ValueHandler(bytearray, "bytearray", bytes, bytes, bytearray, tracked=True),
    ValueHandler(type(...), "ellipsis", _NONE, lambda _: None, lambda _: ...),
    ValueHandler(range, "range", _INTS, lambda r: [r.start, r.stop, r.step], lambda s: range(*s)),
    ValueHandler(slice, "slice", [_ANY] * 3, lambda s: [s.start, s.stop, s.step], lambda s: slice(*s)),
    ValueHandler(
        datetime.datetime, "datetime", [str, range(2), (_NONE, datetime.tzinfo)], _from_datetime, _to_datetime
    ),
    ValueHandler(datetime.date, "date", str, datetime.date.isoformat, partial(_of_text, datetime.date)),
    ValueHandler(datetime.time, "time", [str, range(2), (_NONE, datetime.tzinfo)], _from_time, _to_time),
    ValueHandler(
        datetime.timedelta,
        "timedelta",
        _INTS,
        lambda d: [d.days, d.seconds, d.microseconds],
        lambda s: datetime.timedelta(*s),
    ),
    ValueHandler(datetime.timezone, "timezone", ([int, int], [int, int, str]), _from_timezone, _to_timezone),
    ValueHandler(zoneinfo.ZoneInfo, "zoneinfo", str, _from_zoneinfo, _to_zoneinfo),
    ValueHandler(uuid.UUID, "uuid", bytes, lambda u: u.bytes, lambda b: uuid.UUID(bytes=b)),
    ValueHandler(decimal.Decimal, "decimal", str, str, decimal.Decimal),
    ValueHandler(
        fractions.Fraction,
        "fraction",
        [int, int],
        lambda f: [short(int(f.numerator)), short(int(f.denominator))],
        lambda s: fractions.Fraction(*map(short, s)),
    ),
    ValueHandler(
        random.Random,
        "random",
        [int, np.empty(625, np.uint32), (float, _NONE)],
        _from_random,
        _random_state,
        tracked=True,
    ),
    ValueHandler(np.str_, "numpy.str", str, str, np.str_),
    ValueHandler(np.bytes_, "numpy.bytes", bytes, bytes, np.bytes_),
    ValueHandler(np.dtype, "numpy.dtype", (str, list, dict), describe, parse, derived=True),
    ValueHandler(type(np.ma.masked), "numpy.masked_constant", _NONE, lambda _: None, lambda _: np.ma.masked),
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
    return ValueHandler(ty, tag, str, str, ty)
