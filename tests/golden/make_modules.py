"""Write the golden files of modules. A file that is in the repository is never written again::

    python tests/golden/make_modules.py

What is in each of them is said in ``v1/modules/expected.py``.
"""

import sys
from pathlib import Path

import braintools_ckpt

HERE = Path(__file__).parent / "v1" / "modules"
sys.path.insert(0, str(HERE))

from expected import TREES  # noqa: E402

if __name__ == "__main__":
    for name, make in TREES.items():
        path = HERE / f"{name}.msgpack"
        if not path.exists():
            braintools_ckpt.msgpack_save(path, make())
            print("wrote", path)
