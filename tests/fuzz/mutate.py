"""Changes to checkpoints that go on meaning something: mostly to their parts, so that the checksums are right."""

from __future__ import annotations

import numpy as np

from .files import Ext, Map, finish, pack, put_together, take_apart

_WORDS = [0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 65, 127, 128, 255, 256, 1023, 1024, 65535, 65536]
_LIMITS = [2**n + d for n in (24, 31, 32, 53, 61, 63) for d in (-1, 0, 1)]
NUMBERS = [*_WORDS, *(-n for n in _WORDS), *_LIMITS, *(-n for n in _LIMITS if n <= 2**63), 2**64 - 1]
DTYPES = [
    *("bool", "int8", "uint8", "int32", ">int32", "int64", "uint64", "float16", "float32", ">float64", "complex64"),
    *("bfloat16", "float8_e4m3fn", "int4", "U1", "U3", ">U2", "S0", "S4", "V0", "V3", "datetime64[s]", "datetime64"),
    *("timedelta64[25us]", "float128", "complex256", "O", "object", "<f8", "U99999999999", "V-1", "float6_e2m3fn"),
]
TAGS = [
    *("tuple", "list", "deque", "OrderedDict", "defaultdict", "Counter", "namedtuple", "dataclass", "pytree", "dict"),
    *("brainstate.State", "brainstate.NestedDict", "brainstate.FlattedDict", "brainstate.Module", "flax.FrozenDict"),
    *("flax.nnx.Variable", "flax.nnx.State", "flax.nnx.Module", "equinox.Module", "equinox.nn.State"),
    *("penzai.NamedArray", "penzai.Variable", "brainpy.math.BrainPyObject", "int", "float", "complex", "str", "bytes"),
    *("bytearray", "set", "frozenset", "enum", "ellipsis", "function", "range", "slice", "datetime", "date", "time"),
    *("timedelta", "timezone", "zoneinfo", "uuid", "decimal", "fraction", "random", "path.PurePosixPath"),
    *("path.PosixPath", "path.WindowsPath", "array", "numpy.scalar", "numpy.str", "numpy.bytes", "numpy.dtype"),
    *("numpy.strings", "numpy.subclass", "numpy.masked", "numpy.masked_constant", "numpy.generator"),
    *("numpy.seedsequence", "numpy.randomstate", "jax.key", "brainunit.Quantity", "brainunit.Unit"),
    *("brainunit.Dimension", "class:fuzz.Point", "class:fuzz.Old", "class:fuzz.Color", "class:no", "new", "os.system"),
]
TEXTS = [
    *("", "a", "0", "1", "x", "data", "mask", "class", "version", "unit", "maxlen", "shape", "dtype", "kind", "impl"),
    *("name", "value", "numpy", "jax", "jax_weak", "zstd", "threefry2x32", "Europe/Berlin", "UTC", "MT19937", "PCG64"),
    *("12:00", "2020-01-01", "2020-01-01T00:00:00", "1e5", "nan", "\x00", "\u00e9", "a/b", "__class__", "ParamState"),
    *("__msgpack_chunked_array__", "mantissa", "scale", "base", "dim", "factor", "shared", "structure", "arrays"),
]
BYTES = [b"", b"\x00", b"\x01", b"\xff" * 4, b"\x80" * 8, b"a" * 16, bytes(64)]
#: First bytes of MessagePack objects.
HEADS = b"\x00\x01\x7f\x80\x90\x91\x93\xa0\xa1\xc0\xc1\xc4\xc7\xc9\xcf\xd4\xdc\xdd\xdf\xe0\xff"
OTHERS = [None, True, False, 0.0, -0.0, 1.5, float("inf"), float("nan"), 1e300, 2.0**63]


def value(rng):
    """Give any value of MessagePack."""
    kind = rng.randrange(9)
    if kind <= 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(OTHERS)
    if kind == 3:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice(BYTES)
    if kind == 5:
        return rng.choice(DTYPES)
    return _node(rng)


def _node(rng):
    kind = rng.randrange(9)
    if kind == 0:
        return [0, *(value(rng) for _ in range(rng.randrange(3)))]
    if kind == 1:
        return [1, rng.randrange(4)]
    if kind == 2:
        return [2, *(value(rng) for _ in range(2 * rng.randrange(3)))]
    if kind in (3, 4):
        tag, state = rng.choice(TAGS), value(rng)
        if rng.randrange(2):
            return [kind, tag, state]
        return [kind, tag, state, Map([[rng.choice(TEXTS), value(rng)] for _ in range(rng.randrange(1, 3))])]
    if kind == 5:
        return [5, rng.randrange(4)]
    if kind == 6:
        return [6, rng.randrange(3), rng.randrange(4)]
    if kind == 7:
        return [7, rng.randrange(3), *(rng.choice(TEXTS) for _ in range(rng.randrange(3)))]
    return Map([[rng.choice(TEXTS), value(rng)] for _ in range(rng.randrange(3))])


def _places(root):
    """Give every place of a tree: what holds it, and where in that."""
    found, waiting = [], [root]
    while waiting:
        holder = waiting.pop()
        for i, item in enumerate(holder):
            found.append((holder, i))
            if isinstance(item, list):
                waiting.append(item)
    return found


def _change(root, rng, others):
    """Change one place of a tree."""
    places = _places(root)
    if not places:
        return
    holder, i = rng.choice(places)
    item = holder[i]
    kind = rng.randrange(12)
    if kind <= 2:
        holder[i] = _near(item, rng)
    elif kind <= 4:
        holder[i] = value(rng)
    elif kind == 5:
        other, j = rng.choice(places)
        holder[i], other[j] = other[j], holder[i]
        if _is_cyclic(root):
            holder[i], other[j] = other[j], holder[i]
    elif kind == 6:
        holder[i] = _copied(_item(rng.choice(places)))
    elif kind == 7 and _may_grow(holder):
        del holder[i]
    elif kind == 8 and _may_grow(holder):
        holder.insert(i, _copied(item) if rng.randrange(2) or type(holder) is Map else value(rng))
    elif kind == 9:
        holder[i] = [rng.choice([0, 0, 3, 4]), rng.choice(TAGS), item] if rng.randrange(2) else [0, item]
    elif kind == 10 and others:
        holder[i] = _copied(_item(rng.choice(_places(rng.choice(others).index) or [([0], 0)])))
    elif kind == 11 and isinstance(item, list) and item:
        holder[i] = rng.choice(item)


def _item(place):
    return place[0][place[1]]


def _may_grow(holder):
    return type(holder) is not Ext and not (len(holder) == 2 and type(holder[0]) is str)


def _copied(item):
    if type(item) in (list, Map, Ext):
        return type(item)(map(_copied, item))
    return item


def _is_cyclic(root):
    above, waiting = set(), [(root, False)]
    while waiting:
        item, done = waiting.pop()
        if done:
            above.discard(id(item))
            continue
        if id(item) in above:
            return True
        above.add(id(item))
        waiting.append((item, True))
        waiting += [(part, False) for part in item if isinstance(part, list)]
    return False


def _near(item, rng):
    """Give something that is much like an item."""
    if type(item) is int:
        return rng.choice([item + 1, item - 1, -item, item * 2, item // 2, item + 64, rng.choice(NUMBERS)])
    if type(item) is str:
        if item in TAGS or item.startswith("class:"):
            return rng.choice(TAGS)
        if item in DTYPES or item.rstrip("0123456789").strip(">") in ("int", "uint", "float", "U", "S", "V"):
            return rng.choice(DTYPES)
        return rng.choice([item * 2, item[:-1], item + "x", item.upper(), rng.choice(TEXTS)])
    if type(item) is bytes:
        return _near_bytes(item, rng)
    if type(item) is float:
        return rng.choice([-item, item * 2, float("nan"), 0.0, 1e308])
    if type(item) in (list, Map) and len(item) > 1:
        return rng.choice([type(item)(item[::-1]), type(item)(item[:-1]), type(item)([*item, item[-1]])])
    return value(rng)


def _near_bytes(data, rng):
    if len(data) >= 4 and rng.randrange(2):  # a column of numbers
        dtype = "<u8" if len(data) % 8 == 0 else "<u4"
        if len(data) % 4 == 0:
            column = np.frombuffer(data, dtype).copy()
            at = rng.randrange(len(column))
            own, other = int(column[at]), int(column[rng.randrange(len(column))])
            some = rng.choice([*NUMBERS, own + 1, own - 1, other])
            column[at] = some % (1 << 8 * column.itemsize)
            return column.tobytes()
    changed = bytearray(data)
    at = rng.randrange(len(changed) + 1)
    kind = rng.randrange(4)
    if kind == 0 and at < len(changed):
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        changed[at:at] = rng.choice(BYTES) or b"\x00"
    elif kind == 2:
        del changed[at : at + rng.choice([1, 1, 4, 8])]
    elif at < len(changed):
        changed[at] = rng.choice(
            b"\x00\x01\x7f\x80\x90\x91\x93\xa0\xa1\xc0\xc1\xc4\xc7\xc9\xcf\xd4\xdc\xdd\xdf\xe0\xff"
        )
    return bytes(changed)


def _change_blobs(parts, rng):
    blobs = parts.blobs
    i = rng.randrange(len(blobs))
    kind = rng.randrange(6)
    if kind <= 2:
        blobs[i] = _near_bytes(blobs[i], rng) or b"\x00"
    elif kind == 3:
        del blobs[i]
    elif kind == 4:
        blobs.insert(i, rng.choice(blobs))
    else:
        j = rng.randrange(len(blobs))
        blobs[i], blobs[j] = blobs[j], blobs[i]


def mutate(parts, rng, others=()):
    """Give a changed file.

    Parameters
    ----------
    parts : Parts
        The file to change, which is not changed itself.
    rng : random.Random
        Whence all choices come.
    others : sequence of Parts
        Files of which pieces are taken.
    """
    parts = parts.copy()
    kind = rng.randrange(20)
    if kind == 0:  # without right checksums
        return _near_bytes(put_together(parts), rng)
    if kind <= 3:  # what is no MessagePack
        if parts.is_legacy:
            return _near_bytes(pack(parts.index), rng)
        data = put_together(parts)
        packed = pack(parts.index)
        before = data[: len(data) - 38 - len(packed)]
        for _ in range(rng.choice([1, 1, 2, 4])):
            packed = _near_bytes(packed, rng)
        return finish(before, packed)
    if kind <= 5 and parts.blobs:
        _change_blobs(parts, rng)
    if rng.randrange(8) == 0:
        parts.lies = set(rng.sample(["blob_at", "blob_size", "hashes"], rng.randrange(1, 4)))
    root = [parts.index]
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5])):
        _change(root, rng, others)
    parts.index = root[0] if root else None
    try:
        return put_together(parts)
    except (OverflowError, ValueError, TypeError):  # MessagePack has no place for what it became
        return b""


def mutate_bytes(data, rng, others=()):
    """Give a changed file, if it is one, or else changed bytes."""
    try:
        return mutate(take_apart(data), rng, others)
    except Exception:
        return _near_bytes(data, rng)
