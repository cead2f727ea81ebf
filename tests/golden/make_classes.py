"""Write the golden files of classes. A file that is in the repository is never written again::

    python tests/golden/make_classes.py

What is in each of them is said in ``v1/classes/expected.py``.
"""

import dataclasses
import sys
from pathlib import Path

import braintools_ckpt

HERE = Path(__file__).parent / "v1" / "classes"
sys.path.insert(0, str(HERE))

from expected import TREES, Synapse  # noqa: E402


@dataclasses.dataclass
class OldSynapse:
    """What ``Synapse`` was in its version 1."""

    w: object


def make(name):
    if name != "upgraded":
        return TREES[name]()
    braintools_ckpt.serializable(name="golden/Synapse", override=True)(OldSynapse)
    (synapse,) = TREES[name]().values()
    assert isinstance(synapse, Synapse)
    return {"synapse": OldSynapse(synapse.weight)}


if __name__ == "__main__":
    for name in TREES:
        path = HERE / f"{name}.msgpack"
        if not path.exists():
            braintools_ckpt.msgpack_save(path, make(name))
            print("wrote", path)
