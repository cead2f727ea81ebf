"""The limit: what the machine itself needs to move the same bytes, with nothing recorded about them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Scene, Unsupported
from .files import read_all, sync, write_all
from .peers import Peer
from .trees import Array, Specs

#: Below this mean size of the leaves, making jax arrays costs more than reading their bytes.
_SMALL = 1 << 16


class Limit(Peer):
    """Plain write, plain read, memcpy, and jax.device_put alone."""

    name = "limit"
    title = "*limit*"
    modules = ()
    states = True
    exact = False

    def prepare(self, scene: Scene, case: str) -> None:
        """Lay the bytes out, or for loads of many small jax leaves read them."""
        if scene.live is not None and case.startswith("save"):
            arrays = [_host(leaf) for leaf in scene.live.values()]
            scene.ready = _buffers(arrays, many=_is_small(scene.specs))
        elif case in ("load_jax", "load_free") and _puts(scene):
            scene.ready = list(scene.tree.host(scene.specs).values())

    def write(self, scene: Scene) -> None:
        """Write the bytes with as few calls as there are large leaves (many small ones: one)."""
        fd = os.open(scene.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for data in scene.ready:
                write_all(fd, data)
        finally:
            os.close(fd)

    def save_async(self, scene: Scene) -> Callable[[], None]:
        """Copy what could change meanwhile, then write."""
        if scene.tree.kind != "numpy":
            raise Unsupported("jax arrays do not change: nothing has to be done before going on")
        copies = [np.array(np.frombuffer(data, np.uint8)) for data in scene.ready]

        def wait() -> None:
            scene.ready = [copy.data for copy in copies]
            self.write(scene)
            sync(scene.out)

        return wait

    def load_jax(self, scene: Scene) -> Any:
        """Read, or with many small leaves: put them on the device."""
        return self._put(scene) if _puts(scene) else self.load_numpy(scene)

    def load_free(self, scene: Scene) -> Any:
        """Do the same as for a jax template."""
        return self.load_jax(scene)

    def load_numpy(self, scene: Scene) -> Any:
        """Read with one thread into fresh memory: a buffer a large leaf, or one for many small leaves."""
        fd = os.open(scene.path, os.O_RDONLY)
        try:
            if _is_small(scene.specs):
                whole = np.empty(os.fstat(fd).st_size, np.uint8)
                read_all(fd, whole.data)
                return [whole]
            arrays, offset = [], 0
            for spec in scene.specs.values():
                array = np.empty(spec.nbytes, np.uint8)
                read_all(fd, array.data, offset)
                arrays.append(array)
                offset += spec.nbytes
            return arrays
        finally:
            os.close(fd)

    def load_mmap(self, scene: Scene) -> Any:
        """Map the file and make a view for each leaf."""
        with scene.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        arrays, offset = {}, 0
        for name, spec in scene.specs.items():
            arrays[name] = np.frombuffer(mapped, spec.numpy_dtype, spec.size, offset)
            offset += spec.nbytes
        return arrays

    def load_leaf(self, scene: Scene) -> Any:
        """Read the bytes of one leaf."""
        offset = 0
        for name, spec in scene.specs.items():
            if name == scene.leaf:
                break
            offset += spec.nbytes
        out = np.empty(spec.nbytes, np.uint8)
        fd = os.open(scene.path, os.O_RDONLY)
        try:
            read_all(fd, out.data, offset)
        finally:
            os.close(fd)
        return out

    def open_list(self, scene: Scene) -> Any:
        raise Unsupported("there is no list in it")

    @staticmethod
    def _put(scene: Scene) -> Any:
        import jax

        return jax.device_put(scene.ready)


def _is_small(specs: Specs) -> bool:
    return sum(spec.nbytes for spec in specs.values()) < _SMALL * len(specs)


def _puts(scene: Scene) -> bool:
    return scene.tree.kind != "numpy" and _is_small(scene.specs)


def _host(leaf: Any) -> Array:
    value = getattr(leaf, "value", leaf)
    return np.asarray(getattr(value, "mantissa", value))


def _buffers(arrays: list[Array], *, many: bool) -> list[memoryview]:
    views = [array.reshape(-1).view(np.uint8) for array in arrays]
    return [np.concatenate(views).data] if many else [view.data for view in views]
