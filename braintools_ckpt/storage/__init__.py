"""Places to write bytes to and to read them from: local files, memory, and file objects."""

from .local import atomic_write
from .sinks import Buffer, BytesSink, FileSink, Sink, StreamSink
from .sources import BufferSource, LocalSource, Source, StreamSource, open_source
from .temporary import clean_temporaries

__all__ = [
    "Buffer",
    "BufferSource",
    "BytesSink",
    "FileSink",
    "LocalSource",
    "Sink",
    "Source",
    "StreamSink",
    "StreamSource",
    "atomic_write",
    "clean_temporaries",
    "open_source",
]
