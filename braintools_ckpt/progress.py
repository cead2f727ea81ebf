"""A bar of the bytes that a save has written or a load has read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from .storage.sources import Source


@contextmanager
def progress_bar(show: bool, what: str, size: int | None) -> Iterator[Callable[[int], None] | None]:
    """Show a bar in a block, and give what counts bytes; None where it is not to be shown."""
    if not show:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=size, desc=what, unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def advance(nbytes: float) -> None:
            bar.update(min(nbytes, inf if size is None else size - bar.n))  # header and index are not in the size

        yield advance
        if size is not None:  # what was not needed need not be read
            advance(size)


def counting(source: Source, on_bytes: Callable[[int], None] | None) -> Source:
    """Let a source count what is read from it."""
    source.on_bytes = on_bytes
    return source
