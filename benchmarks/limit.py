"""The limit: what the machine itself needs to move the same bytes, with nothing recorded about them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any, NamedTuple

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
        """Lay the bytes out, or for loads of many small jax leaves read them: none of it belongs to the limit."""
        self._places = _places(scene.specs)
        self._small = sum(place.nbytes for place in self._places.values()) < _SMALL * len(self._places)
        self._puts = self._small and scene.tree.kind != "numpy" and case in ("load_jax", "load_free")
        if scene.live is not None and (case.startswith("save") or case == "loop"):
            scene.ready = _buffers([_host(leaf) for leaf in scene.live.values()], many=self._small)
        elif self._puts:
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
        if not self._puts:
            return self.load_numpy(scene)
        import jax

        return jax.block_until_ready(jax.device_put(scene.ready))

    def load_free(self, scene: Scene) -> Any:
        """Do the same as for a jax template."""
        return self.load_jax(scene)

    def load_numpy(self, scene: Scene) -> Any:
        """Read with one thread into fresh memory: a buffer a large leaf, or one for many small leaves."""
        fd = os.open(scene.path, os.O_RDONLY)
        try:
            if self._small:
                return [_read(fd, 0, os.fstat(fd).st_size)]
            return [_read(fd, place.offset, place.nbytes) for place in self._places.values()]
        finally:
            os.close(fd)

    def load_mmap(self, scene: Scene) -> Any:
        """Map the file and make a view for each leaf."""
        with scene.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return [np.frombuffer(mapped, place.dtype, place.size, place.offset) for place in self._places.values()]

    def load_leaf(self, scene: Scene) -> Any:
        """Read the bytes of one leaf."""
        place = self._places[scene.leaf]
        fd = os.open(scene.path, os.O_RDONLY)
        try:
            return _read(fd, place.offset, place.nbytes)
        finally:
            os.close(fd)

    def open_list(self, scene: Scene) -> Any:
        raise Unsupported("there is no list in it")


class _Place(NamedTuple):
    """Where a leaf lies."""

    offset: int
    nbytes: int
    size: int
    dtype: np.dtype[Any]


def _places(specs: Specs) -> dict[str, _Place]:
    places, offset = {}, 0
    for name, spec in specs.items():
        places[name] = _Place(offset, spec.nbytes, spec.size, spec.numpy_dtype)
        offset += spec.nbytes
    return places


def _read(fd: int, offset: int, nbytes: int) -> Array:
    out = np.empty(nbytes, np.uint8)
    read_all(fd, out.data, offset)
    return out


def _host(leaf: Any) -> Array:
    value = getattr(leaf, "value", leaf)
    return np.asarray(getattr(value, "mantissa", value))


def _buffers(arrays: list[Array], *, many: bool) -> list[memoryview]:
    views = [array.reshape(-1).view(np.uint8) for array in arrays]
    return [np.concatenate(views).data] if many else [view.data for view in views]
