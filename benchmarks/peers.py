"""The libraries that are compared: one small class each, which says what it cannot do."""

from __future__ import annotations

import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .cases import Scene, Unsupported
from .files import sync


class Peer:
    """A library; what it does not override, it cannot do."""

    name: ClassVar[str]
    title: ClassVar[str]
    #: Distributions whose versions are told.
    modules: ClassVar[tuple[str, ...]]
    #: Whether every save waits for the disk by itself.
    synced: ClassVar[bool] = False
    #: Whether it saves brainstate States.
    states: ClassVar[bool] = False
    #: Whether what it loads must equal what was saved.
    exact: ClassVar[bool] = True

    def prepare(self, scene: Scene, case: str) -> None:
        """Do what does not belong to the timing."""

    def write(self, scene: Scene) -> None:
        """Save the tree, without waiting for the disk if the library lets one choose."""
        raise NotImplementedError

    def save(self, scene: Scene, *, durable: bool) -> None:
        """Save; the benchmark syncs for libraries that do not."""
        if scene.tree.kind == "state" and not self.states:
            raise Unsupported("does not save States")
        self.write(scene)
        if durable and not self.synced:
            sync(scene.out)

    def save_async(self, scene: Scene) -> Callable[[], None]:
        """Begin to save; the function that is given waits until it is on the disk."""
        raise Unsupported("has no async save")

    def save_compressed(self, scene: Scene) -> None:
        raise Unsupported("does not compress")

    def load_jax(self, scene: Scene) -> Any:
        """Load into a template of jax arrays; the result holds jax arrays."""
        return put(self.load_numpy(scene))

    def load_numpy(self, scene: Scene) -> Any:
        """Load into a template of numpy arrays."""
        return self.load_free(scene)

    def load_free(self, scene: Scene) -> Any:
        """Load without a template."""
        raise Unsupported("needs a template")

    def load_mmap(self, scene: Scene) -> Any:
        raise Unsupported("does not map")

    def load_leaf(self, scene: Scene) -> Any:
        raise Unsupported("reads the file whole")

    def open_list(self, scene: Scene) -> Any:
        raise Unsupported("reads the file whole")


def put(arrays: Any) -> Any:
    """Make jax arrays of numpy arrays, as a user would: all in one call."""
    import jax

    return jax.device_put(arrays)


class Ours(Peer):
    """braintools_ckpt."""

    name = "ours"
    title = "**braintools_ckpt**"
    modules = ("braintools-ckpt",)
    states = True

    def save(self, scene: Scene, *, durable: bool) -> None:
        from braintools_ckpt import msgpack_save

        msgpack_save(scene.out, scene.live, durable=durable)

    def save_async(self, scene: Scene) -> Callable[[], None]:
        from braintools_ckpt import AsyncManager, msgpack_save

        manager = AsyncManager()
        msgpack_save(scene.out, scene.live, async_manager=manager)
        return manager.close

    def save_compressed(self, scene: Scene) -> None:
        from braintools_ckpt import msgpack_save

        if "compression" not in inspect.signature(msgpack_save).parameters:
            raise Unsupported("has no compression yet")
        options: dict[str, Any] = {"compression": "zstd"}
        msgpack_save(scene.out, scene.live, durable=False, **options)

    def load_jax(self, scene: Scene) -> Any:
        from braintools_ckpt import msgpack_load

        return msgpack_load(scene.path, target=scene.live)

    def load_numpy(self, scene: Scene) -> Any:
        return self.load_jax(scene)

    def load_free(self, scene: Scene) -> Any:
        from braintools_ckpt import msgpack_load

        return msgpack_load(scene.path)

    def load_mmap(self, scene: Scene) -> Any:
        from braintools_ckpt import msgpack_load

        return msgpack_load(scene.path, mmap=True)

    def load_leaf(self, scene: Scene) -> Any:
        from braintools_ckpt import open_checkpoint

        with open_checkpoint(scene.path) as checkpoint:
            return checkpoint[quoted(scene.leaf)]

    def open_list(self, scene: Scene) -> Any:
        from braintools_ckpt import open_checkpoint

        with open_checkpoint(scene.path) as checkpoint:
            return checkpoint.specs


def quoted(key: str) -> tuple[str, ...]:
    """Give a key as a path of one step."""
    return (key,)


class Braintools(Peer):
    """braintools.file, which this library replaces."""

    name = "braintools"
    title = "braintools.file"
    modules = ("braintools",)
    states = True

    def write(self, scene: Scene) -> None:
        import braintools.file

        braintools.file.msgpack_save(scene.out, scene.live)

    def save_async(self, scene: Scene) -> Callable[[], None]:
        import braintools.file

        manager = braintools.file.AsyncManager()
        braintools.file.msgpack_save(scene.out, scene.live, async_manager=manager)

        def wait() -> None:
            manager.close()
            sync(scene.out)

        return wait

    def load_jax(self, scene: Scene) -> Any:
        loaded = self.load_numpy(scene)
        if scene.tree.kind != "state":
            return put(loaded)
        for state, value in zip(loaded.values(), put([state.value for state in loaded.values()]), strict=True):
            state.value = value
        return loaded

    def load_numpy(self, scene: Scene) -> Any:
        import braintools.file

        return braintools.file.msgpack_load(scene.path, target=scene.live)

    def load_free(self, scene: Scene) -> Any:
        import braintools.file

        return braintools.file.msgpack_load(scene.path)


class Flax(Peer):
    """flax.serialization: bytes, which the user writes and reads."""

    name = "flax"
    title = "flax.serialization"
    modules = ("flax",)

    def write(self, scene: Scene) -> None:
        from flax import serialization

        scene.out.write_bytes(serialization.to_bytes(scene.live))

    def save_async(self, scene: Scene) -> Callable[[], None]:
        """Save in a thread, as users do who do not know that what changes meanwhile is written changed."""

        def task() -> None:
            self.write(scene)
            sync(scene.out)

        thread = threading.Thread(target=task)
        thread.start()
        return thread.join

    def load_numpy(self, scene: Scene) -> Any:
        from flax import serialization

        return serialization.from_bytes(scene.live, scene.path.read_bytes())

    def load_free(self, scene: Scene) -> Any:
        from flax import serialization

        return serialization.msgpack_restore(scene.path.read_bytes())


class SafetensorsNumpy(Peer):
    """safetensors.numpy."""

    name = "safetensors.numpy"
    title = "safetensors.numpy"
    modules = ("safetensors",)
    framework: ClassVar[str] = "numpy"

    def write(self, scene: Scene) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.asarray(leaf) for name, leaf in scene.live.items()}, scene.out)

    def load_jax(self, scene: Scene) -> Any:
        raise Unsupported("gives numpy arrays: see safetensors.flax")

    def load_free(self, scene: Scene) -> Any:
        from safetensors.numpy import load_file

        return load_file(scene.path)

    def load_mmap(self, scene: Scene) -> Any:
        raise Unsupported("maps the file, but copies the arrays")

    def load_leaf(self, scene: Scene) -> Any:
        from safetensors import safe_open

        with safe_open(scene.path, framework=self.framework) as file:
            return file.get_tensor(scene.leaf)

    def open_list(self, scene: Scene) -> Any:
        from safetensors import safe_open

        with safe_open(scene.path, framework=self.framework) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}


class SafetensorsFlax(SafetensorsNumpy):
    """safetensors.flax."""

    name = "safetensors.flax"
    title = "safetensors.flax"
    framework = "flax"

    def write(self, scene: Scene) -> None:
        from safetensors.flax import save_file

        if scene.tree.kind == "numpy":
            raise Unsupported("saves jax arrays: see safetensors.numpy")
        save_file(dict(scene.live), scene.out)  # a copy: it changes the dict

    def load_jax(self, scene: Scene) -> Any:
        return self.load_free(scene)

    def load_numpy(self, scene: Scene) -> Any:
        raise Unsupported("gives jax arrays: see safetensors.numpy")

    def load_free(self, scene: Scene) -> Any:
        from safetensors.flax import load_file

        return load_file(scene.path)


class Equinox(Peer):
    """equinox.tree_serialise_leaves."""

    name = "equinox"
    title = "equinox"
    modules = ("equinox",)

    def write(self, scene: Scene) -> None:
        import equinox

        with scene.out.open("wb") as file:  # by a path, it would choose the file's name
            equinox.tree_serialise_leaves(file, scene.live)

    def load_jax(self, scene: Scene) -> Any:
        import equinox

        with scene.path.open("rb") as file:
            return equinox.tree_deserialise_leaves(file, scene.live)

    def load_numpy(self, scene: Scene) -> Any:
        return self.load_jax(scene)


class NumpySavez(Peer):
    """numpy.savez."""

    name = "savez"
    title = "numpy.savez"
    modules = ("numpy",)

    def write(self, scene: Scene) -> None:
        with scene.out.open("wb") as file:
            np.savez(file, **scene.live)

    def save_compressed(self, scene: Scene) -> None:
        if scene.tree.kind == "state":
            raise Unsupported("does not save States")
        with scene.out.open("wb") as file:
            np.savez_compressed(file, **scene.live)

    def load_free(self, scene: Scene) -> Any:
        with np.load(scene.path) as file:
            return dict(file)

    def load_leaf(self, scene: Scene) -> Any:
        with np.load(scene.path) as file:
            return file[scene.leaf]

    def open_list(self, scene: Scene) -> Any:
        raise Unsupported("lists names, but not shapes")


class Pickle(Peer):
    """Pickle, protocol 5, of numpy arrays; unsafe to load from others."""

    name = "pickle"
    title = "pickle 5"
    modules = ()

    def write(self, scene: Scene) -> None:
        with scene.out.open("wb") as file:
            pickle.dump({name: np.asarray(leaf) for name, leaf in scene.live.items()}, file, protocol=5)

    def load_free(self, scene: Scene) -> Any:
        with scene.path.open("rb") as file:
            return pickle.load(file)
