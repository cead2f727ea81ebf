"""Write the golden files of format version 1. A file that is in the repository is never written again::

    python tests/golden/make_v1.py

What is in each of them is said in ``v1/expected.py``. When the format changes, this script stays as it is, and the
files stay too: the next version gets a script and a folder of its own.
"""

import sys
from pathlib import Path
from unittest import mock

import braintools_ckpt
from braintools_ckpt.format import layout

HERE = Path(__file__).parent / "v1"
sys.path.insert(0, str(HERE))

from expected import COMPRESSION, METADATA, TREES, sizes  # noqa: E402


def write(name):
    with mock.patch.multiple(layout, **sizes(name, layout)):
        return braintools_ckpt.msgpack_dumps(
            TREES[name](), metadata=METADATA.get(name), compression=COMPRESSION.get(name)
        )


if __name__ == "__main__":
    if layout.VERSION != 1:
        sys.exit(f"This version of braintools_ckpt writes format version {layout.VERSION}.")
    for name in TREES:
        path = HERE / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(write(name))
            print("wrote", path)
