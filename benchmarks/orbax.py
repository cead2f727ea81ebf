"""Orbax, by its old and its new interface; both write a folder and wait for the disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from .cases import Scene, Unsupported
from .peers import Peer

warnings.filterwarnings("ignore", module="orbax")
warnings.filterwarnings("ignore", message="Sharding info not provided")


def _abstract(scene: Scene) -> dict[str, Any]:
    """Describe the leaf that is read alone."""
    import jax

    if scene.tree.kind == "numpy":
        raise Unsupported("gives jax arrays of a part, not numpy")
    spec = scene.specs[scene.leaf]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {scene.leaf: jax.ShapeDtypeStruct(spec.shape, spec.numpy_dtype, sharding=device)}


class _Orbax(Peer):
    modules = ("orbax-checkpoint",)
    synced = True

    def load_numpy(self, scene: Scene) -> Any:
        return self.load_jax(scene)


class OrbaxV0(_Orbax):
    """orbax.checkpoint.StandardCheckpointer, and PyTreeRestore for a part."""

    name = "orbax0"
    title = "orbax v0"

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        self._checkpointer = ocp.StandardCheckpointer()

    def write(self, scene: Scene) -> None:
        self._checkpointer.save(scene.out, scene.live)
        self._checkpointer.wait_until_finished()

    def save_async(self, scene: Scene) -> Callable[[], None]:
        self._checkpointer.save(scene.out, scene.live)
        return self._checkpointer.wait_until_finished  # type: ignore[no-any-return]

    def load_jax(self, scene: Scene) -> Any:
        return self._checkpointer.restore(scene.path, scene.live)

    def load_free(self, scene: Scene) -> Any:
        return self._checkpointer.restore(scene.path)

    def load_leaf(self, scene: Scene) -> Any:
        import orbax.checkpoint as ocp

        item = _abstract(scene)
        args = ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(scene.path, args=args)[scene.leaf]

    def open_list(self, scene: Scene) -> Any:
        return dict(self._checkpointer.metadata(scene.path).item_metadata.tree)


class OrbaxV1(_Orbax):
    """orbax.checkpoint.v1."""

    name = "orbax1"
    title = "orbax v1"

    def write(self, scene: Scene) -> None:
        from orbax.checkpoint import v1 as ocp

        ocp.save(scene.out, scene.live)

    def save_async(self, scene: Scene) -> Callable[[], None]:
        from orbax.checkpoint import v1 as ocp

        return ocp.save_async(scene.out, scene.live).result  # type: ignore[no-any-return]

    def load_jax(self, scene: Scene) -> Any:
        from orbax.checkpoint import v1 as ocp

        return ocp.load(scene.path, scene.live)

    def load_free(self, scene: Scene) -> Any:
        from orbax.checkpoint import v1 as ocp

        return ocp.load(scene.path)

    def load_leaf(self, scene: Scene) -> Any:
        from orbax.checkpoint import v1 as ocp

        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return ocp.load(scene.path, _abstract(scene))[scene.leaf]

    def open_list(self, scene: Scene) -> Any:
        from orbax.checkpoint import v1 as ocp

        return dict(ocp.metadata(scene.path).metadata)
