"""All hostile files: ``python tests/hostile/make.py FOLDER`` writes them.

Each is built from its parts, with right checksums: what they claim is all that is wrong with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from hostile import attacks, frames, indices, legacy, states
from hostile.forge import forge


def cases(*tables):
    """Give what is in some tables as parameters of a test."""
    return [pytest.param(make, id=name) for table in tables for name, make in table.items()]


def all_files():
    """Give a function that makes each file, by name; those that have to be refused are in a folder ``refused``."""
    files = {}
    for kind in ("INDICES", "TABLES", "SPECS", "STRUCTURES"):
        files |= {f"refused/{kind.lower()}: {name}": make for name, make in getattr(indices, kind).items()}
    for tag, wrong in states.WRONG.items():
        for i, state in enumerate(wrong):
            files[f"refused/state: {tag} {i}"] = lambda state=state: forge({"a": state}, states.EXTRA)
    files |= {f"refused/blobs: {name}": make for name, make in frames.BLOBS.items()}
    for name, frame in frames.FRAMES.items():
        files[f"refused/frame: {name}"] = lambda frame=frame: frames.compressed([frame])
    files |= {f"refused/legacy: {name}": lambda data=data: data for name, data in legacy.HOSTILE.items()}
    files |= {f"refused/attack: {name}": make for name, make in attacks.REFUSED.items()}
    files |= {f"loaded/attack: {name}": make for name, make in attacks.LOADED.items()}
    files |= {f"loaded/legacy: {name}": make for name, make in attacks.LEGACY.items()}
    return files


def main(folder):
    for number, (name, make) in enumerate(all_files().items()):
        group, _, title = name.partition("/")
        path = Path(folder, group, f"{number:04}.msgpack")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
        print(path, title)


if __name__ == "__main__":
    main(sys.argv[1])
