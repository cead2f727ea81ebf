"""jax: arrays, typed PRNG keys, ``ShapeDtypeStruct`` as a template, ``Partial``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from ..document import Kind, Value
from ..errors import LinkedPath, SerializationError, format_array
from ..tree.containers import as_items, container_mismatch, node_parts, plan_fields
from ..tree.decode import Decoder
from ..tree.encode import Encoder, Trouble
from ..tree.merge import Merger
from ..tree.registry import Handler, MakeRow, Registry, T
from ..tree.requests import Build, Want, plain_want


class WideDtypeError(Exception):
    """A 64-bit array has to become a jax array while jax is limited to 32 bits."""

    def __init__(self, index: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.index = index
        self._array = format_array(dtype, shape)
        self._narrow = str(jax.dtypes.canonicalize_dtype(dtype))

    def explain(self, path: str) -> str:
        """Say what is wrong and which ways out there are."""
        return (
            f"Cannot load {self._array} at path {path} as a jax array without losing precision: jax is limited to "
            "32 bits. Call jax.config.update('jax_enable_x64', True), or pass arrays='numpy', or pass a target whose "
            f"leaf is {self._narrow}."
        )


class JaxArrayHandler(Handler):
    """``jax.Array``, on any number of devices of this process; typed PRNG keys too."""

    atomic = True

    def encode(self, array: Any, encoder: Encoder) -> Value:
        """Refer to the array; it goes to the host when it is written."""
        if array.is_deleted():
            raise _trouble("Cannot save the jax array at path {}: it has been deleted or donated.")
        if not array.is_fully_addressable:
            raise _trouble(
                "Cannot save the jax array at path {}: its shards lie on several processes. Save with Orbax, or gather "
                "it with jax.experimental.multihost_utils.process_allgather."
            )
        dtype = array.dtype
        if not isinstance(dtype, np.dtype):
            data = encoder.encode(jax.random.key_data(array))
            return encoder.leaf("jax.key", data, impl=str(jax.random.key_impl(array)))
        return encoder.array(dtype, array.shape, "jax_weak" if array.weak_type else "jax", array)

    def plain_arrays(self, objects: list[Any], make: MakeRow[T], *, targets: bool = False) -> list[T] | None:
        """Tell of arrays that are here, or as targets may be anywhere, and no keys."""
        rows: list[T] = []
        dtype, shape, weak = None, None, False
        for array in objects:
            if array.dtype is not dtype or array.shape != shape or array.weak_type is not weak:
                dtype, shape = array.dtype, array.shape
                if not isinstance(dtype, np.dtype):
                    return None
                weak = array.weak_type
                row = make(dtype, shape, "jax_weak" if weak else "jax")
            if array.is_deleted() or (array.committed if targets else not array.is_fully_addressable):
                return None
            rows.append(row)
        return rows

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for an array of the target's shape, dtype, device and sharding."""
        if not isinstance(target.dtype, np.dtype):
            return plan_key(target, value, path, merger)
        kind: Kind = "jax_weak" if target.weak_type else "jax"
        if target.is_deleted() or not target.committed:
            return merger.plan_array(target, plain_want(target.dtype, target.shape, kind), value, path)
        return merger.plan_array(target, Want(kind, target.dtype, target.shape, target.sharding), value, path)


def hold(arrays: Sequence[Any]) -> list[Any]:
    """Take of jax arrays what stays when they are deleted or donated, without waiting for any of them.

    Returns
    -------
    list
        Views of arrays that lie on a CPU, as jax then makes a copy where it would use their memory again. Of others a
        copy is begun, into pinned memory of the host where the backend has it: that is a jax array, which becomes a
        host array in time.
    """
    held = list(map(_view, arrays))
    others = [index for index, view in enumerate(held) if view is None]
    for index, copy in zip(others, _copies([arrays[index] for index in others]), strict=True):
        held[index] = copy
    return held


def _view(array: Any) -> Any | None:
    if not array.is_ready():
        return None
    try:
        return memoryview(array)
    except (TypeError, ValueError, BufferError):  # it is not here, or has a dtype that buffers do not know
        array = _one_of(array)
        devices = array.sharding.device_set
        return np.asarray(array) if len(devices) == 1 and next(iter(devices)).platform == "cpu" else None


def _one_of(array: Any) -> Any:
    """Give the array on one device, if each has all of it."""
    return array.addressable_data(0) if array.is_fully_replicated else array


def _copies(arrays: list[Any]) -> list[Any]:
    arrays = list(map(_one_of, arrays))
    try:
        shardings = [array.sharding.with_memory_kind("pinned_host") for array in arrays]
        return list(jax.device_put(arrays, shardings, may_alias=False))
    except (ValueError, RuntimeError, NotImplementedError):  # the backend has none, or not enough
        for array in arrays:
            array.copy_to_host_async()
        return [np.array(array) for array in arrays]


class StructHandler(Handler):
    """``jax.ShapeDtypeStruct``: a template for an array that does not exist yet."""

    tracked = False

    def encode(self, struct: Any, encoder: Encoder) -> Value:
        """Refuse: there is no data."""
        raise _trouble("Cannot save the jax.ShapeDtypeStruct at path {}: it is a template and holds no data.")

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Ask for a jax array of that shape and dtype."""
        if not isinstance(target.dtype, np.dtype):
            return plan_key(target, value, path, merger)
        kind = "jax_weak" if getattr(target, "weak_type", False) else "jax"
        sharding = _concrete(target.sharding, path, merger)
        return merger.plan_array(target, Want(kind, target.dtype, tuple(target.shape), sharding), value, path)


def _concrete(sharding: Any, path: LinkedPath, merger: Merger) -> Any:
    """Give a sharding over devices for one over the axes of an abstract mesh, as ``nnx.eval_shape`` has it."""
    if not isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return sharding
    mesh = jax.sharding.get_mesh() if hasattr(jax.sharding, "get_mesh") else None
    if mesh is None or mesh.empty or mesh.abstract_mesh != sharding.mesh:
        raise SerializationError(
            f"Cannot load into the jax.ShapeDtypeStruct at path {merger.format(path)}: its sharding {sharding.spec} is "
            f"over the abstract mesh {dict(sharding.mesh.shape)}, which has no devices. Load within "
            "`with jax.set_mesh(mesh):`."
        )
    return jax.sharding.NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


class TracerHandler(Handler):
    """Values inside a function that jax is tracing."""

    atomic = True

    def encode(self, tracer: Any, encoder: Encoder) -> Value:
        """Refer to what will be there when the function runs; else refuse: there is no data."""
        if not encoder.traced:
            raise _trouble(
                "Cannot save the traced value at path {}: inside jit, scan or grad it has no data yet. Save outside of "
                "the transformed function, or with braintools_ckpt.save_in_loop."
            )
        dtype = getattr(tracer, "dtype", None)
        if dtype is None:
            raise _trouble(
                "Cannot save the traced value at path {}: it is no array, but an object that jax traces as a whole, as "
                "an nnx.Variable with hijax=True is. Save outside of the transformed function, or pass its value."
            )
        if not isinstance(dtype, np.dtype):
            return encoder.leaf("jax.key", encoder.encode(jax.random.key_data(tracer)), impl=_impl(tracer))
        return encoder.array(dtype, tracer.shape, "jax_weak" if tracer.weak_type else "jax", tracer)

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Refuse likewise."""
        raise SerializationError(f"Cannot load into the traced value at path {merger.format(path)}.")


def _trouble(text: str) -> Trouble:
    return Trouble(lambda path: SerializationError(text.format(path)))


def every_so_often(step: Any, every: int, save: Callable[..., None], arrays: list[Any]) -> None:
    """Call ``save(step, *arrays)`` with values of every so many steps, of a function that jax is tracing.

    Nothing of the other steps leaves the device. The calls keep their order.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        raise SerializationError(
            "Cannot save inside of jax.shard_map or jax.pmap: there, each device has only its part of an array. Save "
            "outside of it, in the jit around it."
        )
    arrays = jax.lax.stop_gradient(arrays)  # a save is no part of what is differentiated
    if not isinstance(step, jax.core.Tracer):
        if step % every == 0:
            io_callback(partial(save, step), None, *arrays, ordered=True)
        return
    if step.dtype.itemsize < 4:
        step = step.astype(np.int32)
    is_due = step % every == 0 if every <= np.iinfo(step.dtype).max else step == 0
    jax.lax.cond(
        is_due,
        lambda step, *arrays: io_callback(save, None, step, *arrays, ordered=True),
        lambda step, *arrays: None,
        step,
        *arrays,
    )


def whole_number(step: Any) -> Any:
    """Give a step as an int, or traced; refuse what is no whole number."""
    if isinstance(step, jax.core.Tracer) and step.shape == () and np.issubdtype(step.dtype, np.integer):
        return jax.lax.stop_gradient(step)
    if not isinstance(step, (bool, jax.core.Tracer)):
        with suppress(TypeError):
            return operator.index(step)
    what = f"{step.dtype}{list(step.shape)}" if hasattr(step, "shape") else repr(step)
    raise TypeError(f"step must be one whole number, got {what}.")


def finish_effects() -> None:
    """Wait until all calls to Python of functions that are running have been made."""
    jax.effects_barrier()


def is_traced(array: Any) -> bool:
    """Tell whether an array has no data yet, as a function is being traced."""
    return isinstance(array, jax.core.Tracer)


class KeyHandler(Handler):
    """Typed PRNG keys: their data and the name of their implementation."""

    tag = "jax.key"

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Wrap the data."""
        return jax.random.wrap_key_data(decoder.decode(state), impl=attributes["impl"])


def plan_key(target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
    """Ask for keys of the target's implementation and shape."""
    impl = _impl(target)
    found = node_parts(value, "jax.key")
    if found is None:
        return merger.leaf_mismatch(target, f"key<{impl}>{list(target.shape)}", value, path)
    state, attributes = found
    if attributes["impl"] != impl:
        return merger.mismatch("dtype", target, path, "PRNG key mismatch", f"key<{impl}>", f"key<{attributes['impl']}>")
    spec = merger.specs[state[1]]
    if spec.shape[:-1] != target.shape:
        texts = f"key<{impl}>{list(target.shape)}", f"key<{impl}>{list(spec.shape[:-1])}"
        return merger.mismatch("shape", target, path, "Array shape mismatch", *texts)
    sharding = target.sharding if getattr(target, "committed", False) else None
    data = merger.plan_array(target, Want("jax", spec.dtype, spec.shape, sharding), state, path)
    return lambda: jax.random.wrap_key_data(data(), impl=impl)


def _impl(target: Any) -> str:
    if isinstance(target, jax.Array):
        return str(jax.random.key_impl(target))
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        if jax.eval_shape(partial(jax.random.key, 0, impl=name)).dtype == target.dtype:
            return name
    return str(target.dtype)


class PartialHandler(Handler):
    """``jax.tree_util.Partial``: arguments are saved, the function comes from the target."""

    tag = "jax.Partial"

    def encode(self, partial: Any, encoder: Encoder) -> Value:
        """Write the arguments."""
        return encoder.node(self.tag, encoder.fields({"args": partial.args, "keywords": partial.keywords}))

    def decode(self, state: Value, attributes: dict[str, Value], decoder: Decoder) -> Any:
        """Give the arguments."""
        return decoder.plain(
            state,
            "The checkpoint holds a jax.tree_util.Partial: without a target its function is not known, and it is "
            "loaded as a dict of args and keywords.",
        )

    def plan(self, target: Any, value: Value, path: LinkedPath, merger: Merger) -> Build:
        """Plan the arguments."""
        found = node_parts(value, self.tag)
        items = as_items(found[0] if found else value)
        if items is None:
            return container_mismatch(target, "a jax.tree_util.Partial", value, path, merger)
        plans = dict(plan_fields({"args": target.args, "keywords": target.keywords}, items, path, merger))
        return lambda: type(target)(target.func, *plans["args"](), **plans["keywords"]())


def place(arrays: Sequence[np.ndarray[Any, Any]], wants: Sequence[Want]) -> list[Any]:
    """Make jax arrays of host arrays that nobody else will ever write to, without a copy where that is possible.

    Raises
    ------
    WideDtypeError
        If an array has 64-bit numbers and jax does not.
    """
    wide = {dtype for dtype in {want.dtype for want in wants} if jax.dtypes.canonicalize_dtype(dtype) != dtype}
    if wide:
        index = next(i for i, want in enumerate(wants) if want.dtype in wide)
        raise WideDtypeError(index, wants[index].dtype, wants[index].shape)
    bound = [index for index, want in enumerate(wants) if want.sharding is not None]
    groups: dict[int, list[int]] = {}
    for index, want in enumerate(wants):  # equal ones without a sharding are one object
        if want.sharding is None:
            groups.setdefault(id(want), []).append(index)
    few = [index for group in groups.values() if len(group) < _MANY for index in group]
    placed: list[Any] = [None] * len(arrays)

    def put(indices: list[int], made: list[Any]) -> None:
        for index, array in zip(indices, made, strict=True):
            placed[index] = array

    shardings = [wants[index].sharding for index in bound]
    put(bound, jax.device_put([arrays[index] for index in bound], shardings, may_alias=True))
    put(few, jax.device_put([arrays[index] for index in few], may_alias=True))
    for group in groups.values():
        if len(group) >= _MANY:
            put(group, _put_alike([arrays[index] for index in group]))
    for index, want in enumerate(wants):
        if want.kind == "jax_weak":
            placed[index] = _weak(placed[index])
    return placed


#: As many arrays of one shape and dtype are worth compiling a function for.
_MANY = 512
#: How many it takes in at once: more take less time for each, but longer to compile, which pays from so many on.
_AT_ONCE, _AT_ONCE_OF_MORE, _MORE = 16, 32, 5000


_identity: Any = jax.jit(lambda *arrays: arrays)


def _put_alike(arrays: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Do what `jax.device_put` does with many arrays of one shape and dtype, in a fraction of the time.

    It takes 50 us an array, most of them in Python; as the argument of a compiled function an array takes 8, and 20 ms
    once to compile it.
    """
    made: list[Any] = jax.device_put(arrays[:1], may_alias=True)
    if isinstance(made[0], jax.core.Tracer):  # within a function that jax is tracing
        return [*made, *jax.device_put(arrays[1:])]
    place = made[0].sharding
    step = _AT_ONCE if len(arrays) < _MORE else _AT_ONCE_OF_MORE
    if _compiles_as_it_is() and all(device.platform == "cpu" for device in place.device_set):
        for start in range(1, len(arrays) - step + 1, step):
            taken = _identity(*arrays[start : start + step])
            if taken[0].sharding != place:  # a mesh is set: then jax places what it computes in another way
                break
            made += taken
    made += jax.device_put(arrays[len(made) :], may_alias=True)
    return made


def _compiles_as_it_is() -> bool:
    """Tell whether nothing is set that changes what a compiled function does, or what it may be given."""
    changed = any(getattr(jax.config, name, False) for name in _CHANGED_BY)
    return not changed and jax.config.jax_transfer_guard_host_to_device in (None, "allow")


#: Settings of jax, of which old versions do not have all.
_CHANGED_BY = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_no_tracing", "jax_no_execution")


def _weak(array: Any) -> Any:
    """Make an array weakly typed: its dtype then gives way to that of what it meets."""
    number = {"i": 0, "u": 0, "f": 0.0, "c": 0j}.get(array.dtype.kind)
    if number is None or array.weak_type:
        return array
    weak = jnp.broadcast_to(jnp.asarray(number), array.shape)
    if weak.dtype != array.dtype:
        return array
    result = weak.at[...].set(array)
    return jax.device_put(result, array.sharding) if array.committed else result


def set_up(registry: Registry) -> None:
    """Register the types of jax."""
    array = JaxArrayHandler()
    rows: list[tuple[Any, Handler]] = [
        (jax.Array, array),
        (jax.core.Tracer, TracerHandler()),
        (jax.ShapeDtypeStruct, StructHandler()),
        (jax.tree_util.Partial, PartialHandler()),
    ]
    for ty, handler in rows:
        registry.register(ty, handler)
    registry.register_tag(KeyHandler())
