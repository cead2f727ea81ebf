"""Fuzzing that is guided by coverage: ``pip install atheris; python tests/fuzz/guided.py CORPUS -runs=100000``.

Arguments are those of libFuzzer. Without a corpus it begins with the files of ``seeds.py``; ``CORPUS`` is a folder, to
which every file is added that reaches something new. An error that is not documented ends it, and its file is kept.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import warnings
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

with atheris.instrument_imports(include=["braintools_ckpt"]):
    import braintools_ckpt as bt
    from braintools_ckpt import api, checkpoint  # noqa: F401
    from braintools_ckpt.tree.registry import registry

    for library in ("brainunit", "brainstate", "jax", "flax", "equinox", "penzai"):
        registry.activate(library)

from fuzz.mutate import mutate_bytes  # noqa: E402
from fuzz.run import execute  # noqa: E402
from fuzz.seeds import seeds  # noqa: E402

TARGETS = [target for _, target in seeds().values()]


def change(data, max_size, seed):
    """Change a file as the other fuzzer does."""
    changed = mutate_bytes(data, random.Random(seed))
    return changed[:max_size]


def test_one_input(data):
    """Load a file; what is not documented gets out."""
    rng = random.Random(data)
    try:
        execute(data, rng, rng.choice(TARGETS))
    except bt.CheckpointError:
        return


def main(arguments):
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folders = [name for name in arguments[1:] if not name.startswith("-")]
    if folders:
        os.makedirs(folders[0], exist_ok=True)
        if not os.listdir(folders[0]):
            for name, (data, _) in seeds().items():
                Path(folders[0], name.replace(" ", "-")).write_bytes(data)
    atheris.Setup(arguments, test_one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
