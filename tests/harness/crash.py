"""A run that saves again and again, to be killed at any moment: ``python crash.py FOLDER [share]``.

With ``share``, what does not change is not written again. It says where it goes on from, and each step whose save has
ended.
"""

from __future__ import annotations

import sys

import numpy as np

from braintools_ckpt import CheckpointManager, KeepLatest

FROZEN = np.arange(1 << 17)


def tree(step):
    """Give what step number so many saves: every value says which step it is of, but for what never changes."""
    layers = [{"b": np.full(10, float(step))} for _ in range(20)]
    return {"w": np.full(50_000, step), "layers": layers, "step": step, "frozen": FROZEN}


def check(loaded, step):
    """Tell whether a tree is that of the step, and whole."""
    assert loaded["step"] == step
    assert (loaded["w"] == step).all()
    assert np.array_equal(loaded["frozen"], FROZEN)
    assert all((layer["b"] == step).all() for layer in loaded["layers"])


def main(folder, *share):
    manager = CheckpointManager(folder, keep=KeepLatest(3), share_unchanged=bool(share))
    step, state = manager.restore_or(tree(0))
    check(state, step)
    print("from", step, flush=True)
    while True:
        step += 1
        manager.save(step, tree(step))
        if step % 2:  # else the save of this one is in the background of the next
            manager.wait()
            print("saved", step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
