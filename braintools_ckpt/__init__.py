"""braintools_ckpt: save and load trees of JAX users in one safe MessagePack file.

``import braintools_ckpt`` imports neither jax nor any library that it can save objects of: the names below are
loaded when they are first used, and an adapter when the first object of its library is met.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import msgpack_dumps as msgpack_dumps
    from .api import msgpack_from_state_dict as msgpack_from_state_dict
    from .api import msgpack_load as msgpack_load
    from .api import msgpack_loads as msgpack_loads
    from .api import msgpack_register_serialization as msgpack_register_serialization
    from .api import msgpack_save as msgpack_save
    from .api import msgpack_to_state_dict as msgpack_to_state_dict
    from .api import serializable as serializable
    from .async_manager import AsyncManager as AsyncManager
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import LeafSpec as LeafSpec
    from .checkpoint import open_checkpoint as open_checkpoint
    from .errors import AlreadyExistsError as AlreadyExistsError
    from .errors import CheckpointError as CheckpointError
    from .errors import CheckpointNotFoundError as CheckpointNotFoundError
    from .errors import CheckpointTooLargeError as CheckpointTooLargeError
    from .errors import CorruptCheckpointError as CorruptCheckpointError
    from .errors import HandlerError as HandlerError
    from .errors import IncompleteCheckpointError as IncompleteCheckpointError
    from .errors import InvalidCheckpointPath as InvalidCheckpointPath
    from .errors import MismatchError as MismatchError
    from .errors import MissingLibraryError as MissingLibraryError
    from .errors import PendingSaveError as PendingSaveError
    from .errors import PrecisionError as PrecisionError
    from .errors import RegistrationError as RegistrationError
    from .errors import SerializationError as SerializationError
    from .errors import StepExistsError as StepExistsError
    from .errors import UnsupportedVersionError as UnsupportedVersionError
    from .in_loop import save_in_loop as save_in_loop
    from .manager.manager import CheckpointManager as CheckpointManager
    from .manager.policies import AtSteps as AtSteps
    from .manager.policies import EverySeconds as EverySeconds
    from .manager.policies import EverySteps as EverySteps
    from .manager.policies import KeepBest as KeepBest
    from .manager.policies import KeepEvery as KeepEvery
    from .manager.policies import KeepLatest as KeepLatest
    from .manager.policies import KeepSteps as KeepSteps
    from .manager.policies import KeepYounger as KeepYounger
    from .manager.policies import Moment as Moment
    from .manager.policies import OnPreemption as OnPreemption
    from .manager.policies import StepInfo as StepInfo
    from .manager.run_state import run_state as run_state
    from .tree.load_report import LoadReport as LoadReport
    from .tree.mismatch import Mismatch as Mismatch

_HOMES = {
    "api": (
        "msgpack_dumps",
        "msgpack_from_state_dict",
        "msgpack_load",
        "msgpack_loads",
        "msgpack_register_serialization",
        "msgpack_save",
        "msgpack_to_state_dict",
        "serializable",
    ),
    "async_manager": ("AsyncManager",),
    "checkpoint": ("Checkpoint", "LeafSpec", "open_checkpoint"),
    "errors": (
        "AlreadyExistsError",
        "CheckpointError",
        "CheckpointNotFoundError",
        "CheckpointTooLargeError",
        "CorruptCheckpointError",
        "HandlerError",
        "IncompleteCheckpointError",
        "InvalidCheckpointPath",
        "MismatchError",
        "MissingLibraryError",
        "PendingSaveError",
        "PrecisionError",
        "RegistrationError",
        "SerializationError",
        "StepExistsError",
        "UnsupportedVersionError",
    ),
    "in_loop": ("save_in_loop",),
    "manager.manager": ("CheckpointManager",),
    "manager.policies": (
        "AtSteps",
        "EverySeconds",
        "EverySteps",
        "KeepBest",
        "KeepEvery",
        "KeepLatest",
        "KeepSteps",
        "KeepYounger",
        "Moment",
        "OnPreemption",
        "StepInfo",
    ),
    "manager.run_state": ("run_state",),
    "tree.load_report": ("LoadReport",),
    "tree.mismatch": ("Mismatch",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
