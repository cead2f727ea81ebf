"""How long ``import braintools_ckpt`` takes: whole processes, against one that imports nothing."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

_PROGRAMS = {"empty": "pass", "ours": "import braintools_ckpt", "jax": "import jax"}
_MODULES = """\
import json, sys
before = set(sys.modules)
import braintools_ckpt
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def measure(rounds: int) -> dict[str, Any]:
    """Measure, in turn."""
    times: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    for number in range(rounds + 1):
        for name, program in _PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            if number:  # the first time, files are read and compiled
                times[name].append(time.perf_counter() - start)
    modules = json.loads(subprocess.check_output([sys.executable, "-c", _MODULES]))
    summary = {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in times.items()
    }
    return {
        **summary,
        "extra": summary["ours"]["median"] - summary["empty"]["median"],
        "modules": len(modules),
        "jax_modules": sum(name.split(".")[0] in ("jax", "jaxlib") for name in modules),
    }
