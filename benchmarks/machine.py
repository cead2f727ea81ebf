"""What the numbers were taken on: no names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from .lineup import PEERS

_LIBRARIES = ("jax", "jaxlib", "numpy", "msgpack", "xxhash", "brainstate", "brainunit")


def describe(directory: Path) -> dict[str, str]:
    """Describe machine and libraries."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "file system": file_system(directory),
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Give the versions of all libraries, by distribution."""
    names = dict.fromkeys([*(name for peer in PEERS.values() for name in peer.modules), *_LIBRARIES])
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def file_system(directory: Path) -> str:
    """Give the type of the file system of a folder."""
    here = str(directory.resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        if (here == place or here.startswith(place.rstrip("/") + "/")) and len(place) >= len(best):
            best, kind = place, name
    return kind
