"""A copy of a file that is whole by itself, wherever the data of the original stands."""

from __future__ import annotations

import msgpack

from ..storage.sinks import Sink
from ..storage.sources import Source
from ..storage.spliced import SplicedSource
from . import layout, reader
from .writer import write_end

#: So many bytes are copied at a time.
_PIECE = 1 << 24


def copy_whole(source: Source, sink: Sink) -> None:
    """Copy a file; a checkpoint that has data in files beside it becomes one that has none.

    Parameters
    ----------
    source : Source
        The file. If it is no checkpoint of our own format, it is copied as it is.
    sink : Sink
        Where the copy goes.

    Raises
    ------
    CorruptCheckpointError
        If the checkpoint is not as it was written.
    """
    if not reader.is_checkpoint(source):
        _copy(source, source.size, sink)
        return
    blobs = reader.read_blobs(source)
    blobs.verify()
    if not isinstance(blobs.source, SplicedSource):
        _copy(source, source.size, sink)
        return
    index = reader.read_index(source)
    index["features"] = [feature for feature in index["features"] if feature != layout.EXTERNAL]
    whole = {key: value for key, value in index.items() if key != "external" and (key != "features" or value)}
    _copy(blobs.source, reader.index_span(source)[0], sink)
    write_end(sink, msgpack.packb(whole))


def _copy(source: Source, size: int, sink: Sink) -> None:
    for start in range(0, size, _PIECE):
        sink.write(source.read(start, min(_PIECE, size - start)))
