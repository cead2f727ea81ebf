"""Storage: bytes arrive whole or not at all, and every failure says where."""

from __future__ import annotations

import contextlib
import errno
import fcntl as real_fcntl
import gc
import io
import itertools
import mmap
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braintools_ckpt.errors import (
    AlreadyExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InvalidCheckpointPath,
)
from braintools_ckpt.storage import (
    BufferSource,
    BytesSink,
    FileSink,
    LocalSource,
    StreamSink,
    StreamSource,
    atomic_write,
    buffers,
    clean_temporaries,
    open_source,
    temporary,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def write(path, data=b"new", **options):
    with atomic_write(path, **options) as sink:
        sink.write(data)


def names(directory):
    return sorted(os.listdir(directory))


def open_descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def fail_with(code, real=None, only=lambda *arguments: True):
    """Make a call that fails as one of the operating system does, for the arguments that `only` accepts."""

    def call(*arguments, **keywords):
        if only(*arguments):
            raise OSError(code, os.strerror(code), *[a for a in arguments if isinstance(a, str)][:1])
        return real(*arguments, **keywords)

    return call


@contextlib.contextmanager
def unprivileged():
    """Be a user whom permission bits bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared_directory():
    """Give a directory that unprivileged users may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield pathlib.Path(directory)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def run_python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ------------------------------------------------------------------------------------------------ buffers

EXPORTERS = {
    "bytes": b"abcd",
    "bytearray": bytearray(b"abcd"),
    "memoryview": memoryview(b"abcd"),
    "matrix view": memoryview(b"abcdef").cast("B", (2, 3)),
    "float view": memoryview(np.arange(3.0)),
    "big-endian": np.arange(3, dtype=">f4"),
    "big-endian view": memoryview(np.arange(3, dtype=">f4")),
    "datetime64": np.arange(3).astype("M8[s]"),
    "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
    "complex": np.arange(6, dtype="complex64").reshape(2, 3),
    "structured": np.zeros(2, [("a", "i4"), ("b", ">f8")]),
    "0-d": np.array(1.5),
    "empty": np.empty((0, 3), "float32"),
    "empty view": memoryview(np.empty((3, 0), ">f4")),
    "empty bytes": b"",
}


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_exporter_is_viewed_as_bytes(name):
    exporter = EXPORTERS[name]
    view = buffers.flat(exporter)
    assert (view.format, view.ndim) == ("B", 1)
    assert bytes(view) == (
        exporter
        if isinstance(exporter, bytes)
        else exporter.tobytes()
        if hasattr(exporter, "tobytes")
        else bytes(exporter)
    )


def test_a_flat_view_shares_the_memory():
    array = np.zeros(3, ">f4")
    buffers.flat(array)[0] = 0x40
    assert array[0] == 2.0


@pytest.mark.parametrize("exporter", [np.ones((2, 3)).T, memoryview(b"abcd")[::2]], ids=["array", "view"])
def test_strided_buffers_are_refused(exporter):
    with pytest.raises(ValueError, match="C-contiguous"):
        BytesSink().write(exporter)


@given(
    lengths=st.lists(st.integers(0, 12), max_size=12),
    piece=st.integers(1, 9),
    most=st.integers(1, 4),
    dropped=st.integers(0, 40),
)
def test_batches_keep_all_bytes_within_the_limits(lengths, piece, most, dropped):
    counter = itertools.count()
    data = [bytes(next(counter) % 256 for _ in range(length)) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "PIECE_BYTES", piece)
        patch.setattr(buffers, "MOST_BUFFERS", most)
        batches = list(buffers.batches(data))
    assert b"".join(itertools.chain(*batches)) == b"".join(data)
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert all(batch)
        assert sum(map(len, batch)) <= piece
        assert b"".join(buffers.drop(batch, dropped)) == b"".join(batch)[dropped:]


@pytest.mark.parametrize("answer", [-1, 0, ValueError(), OSError(), None])
def test_the_number_of_buffers_has_a_safe_default(monkeypatch, answer):
    def sysconf(name):
        if isinstance(answer, Exception):
            raise answer
        return answer

    if answer is None:
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", sysconf)
    assert buffers._most_buffers() == 16


# -------------------------------------------------------------------------------------------------- sinks


class ShortStream(io.RawIOBase):
    """Takes at most three bytes a call."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data[:3]
        return len(data[:3])


class SilentStream:
    """Writes everything and returns nothing, as many home-made file objects do."""

    def __init__(self):
        self.data = bytearray()

    def write(self, data):
        self.data += data


def file_sink(path, **options):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    return FileSink(fd, **options), lambda: (os.close(fd), path.read_bytes())[1]


def bytes_sink(path, **options):
    sink = BytesSink(**options)
    return sink, sink.getvalue


def stream_sink(make, result):
    def build(path, **options):
        stream = make()
        return StreamSink(stream, **options), lambda: bytes(result(stream))

    return build


SINKS = {
    "file": file_sink,
    "bytes": bytes_sink,
    "stream": stream_sink(io.BytesIO, io.BytesIO.getvalue),
    "short stream": stream_sink(ShortStream, lambda stream: stream.data),
    "silent stream": stream_sink(SilentStream, lambda stream: stream.data),
}


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_sink_appends_every_buffer_whole(kind, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "PIECE_BYTES", piece)
    progress = []
    sink, result = SINKS[kind](tmp_path / "file", on_bytes=progress.append)
    assert sink.position == 0
    sink.write(b"first", b"", bytearray(b"second"))
    sink.write()
    sink.write(np.arange(4, dtype="<i4"), b"x" * 50)
    expected = b"firstsecond" + np.arange(4, dtype="<i4").tobytes() + b"x" * 50
    assert sink.position == len(expected) == sum(progress)
    assert max(progress) <= piece
    assert result() == expected


@pytest.mark.parametrize("kind", SINKS)
def test_a_sink_keeps_no_buffer(kind, tmp_path):
    sink, result = SINKS[kind](tmp_path / "file")
    buffer = bytearray(b"abc")
    sink.write(buffer)
    buffer[:] = b"xyz"
    buffer.append(0)  # refused with a BufferError as long as a view of it lives
    assert result() == b"abc"


def test_bytes_already_taken_do_not_change_when_more_are_written():
    sink = BytesSink()
    sink.write(b"abc")
    before = sink.getvalue()
    sink.write(b"def")
    assert (before, sink.getvalue()) == (b"abc", b"abcdef")


def test_many_buffers_go_in_few_vectored_calls(tmp_path, monkeypatch):
    if not hasattr(os, "writev"):
        pytest.skip("no writev here")
    calls = []
    monkeypatch.setattr(buffers, "MOST_BUFFERS", 100)
    monkeypatch.setattr(os, "writev", lambda fd, views, real=os.writev: (calls.append(len(views)), real(fd, views))[1])
    sink, result = file_sink(tmp_path / "file")
    sink.write(*[b"ab"] * 250)
    assert result() == b"ab" * 250
    assert calls == [100, 100, 50]


def test_more_buffers_than_the_system_takes_at_once(tmp_path):
    data = [bytes([n % 256]) for n in range(5000)]
    sink, result = file_sink(tmp_path / "file")
    sink.write(*data)
    assert result() == b"".join(data)


def test_a_platform_without_writev(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "writev", raising=False)
    sink, result = file_sink(tmp_path / "file")
    sink.write(b"one", b"two")
    assert result() == b"onetwo"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_short_writes_are_continued(most, tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:most]))
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, b"".join(views)[:most]), raising=False)
    sink, result = file_sink(tmp_path / "file")
    sink.write(b"abc", b"defgh", b"ij")
    assert result() == b"abcdefghij"
    assert sink.position == 10


@pytest.mark.parametrize("count", [0, -1, 4])
def test_a_count_that_cannot_be_is_an_error(count, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda fd, data: count)
    sink, result = file_sink(tmp_path / "file", name="model.msgpack")
    with pytest.raises(OSError) as caught:
        sink.write(b"abc")
    assert str(caught.value) == f"[Errno 5] Writing 3 bytes reported {count} written bytes: 'model.msgpack'"
    assert result() == b""


@pytest.mark.parametrize("blocks", [[b"abc"], [b"abc", b"def"]], ids=["write", "writev"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.msgpack", "[Errno 28] No space left on device: 'm.msgpack'"),
        (None, "[Errno 28] No space left on device"),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_names_the_path(blocks, name, message):
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            FileSink(fd, name=name).write(*blocks)
    finally:
        os.close(fd)
    assert str(caught.value) == message
    assert caught.value.filename == name


@contextlib.contextmanager
def alarms(handler):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@needs_linux
def test_signals_do_not_harm_a_write():
    data = os.urandom(3 << 20)
    received = bytearray()
    handled = []
    end, fd = os.pipe()

    def drain():
        while chunk := os.read(end, 1 << 14):
            received.extend(chunk)
            time.sleep(0.0002)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with alarms(lambda *_: handled.append(1)):
            FileSink(fd).write(data[:1000], data[1000:])
    finally:
        os.close(fd)
        reader.join()
        os.close(end)
    assert len(handled) > 5  # the write was interrupted indeed
    assert received == data


@needs_linux
def test_an_interrupt_gets_through_a_write_that_waits():
    def interrupt(*_):
        raise KeyboardInterrupt

    end, fd = os.pipe()  # nobody reads it
    try:
        with pytest.raises(KeyboardInterrupt), alarms(interrupt):
            FileSink(fd).write(bytes(1 << 20))
    finally:
        os.close(fd)
        os.close(end)


def test_a_callback_may_stop_a_write(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "PIECE_BYTES", 4)

    def stop(count):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        write(tmp_path / "file", b"123456789", on_bytes=stop)
    assert names(tmp_path) == []


class BlockedStream(io.RawIOBase):
    name = "pipe"

    def writable(self):
        return True

    def write(self, data):
        return None


def test_a_stream_that_blocks_is_an_error():
    with pytest.raises(BlockingIOError) as caught:
        StreamSink(BlockedStream()).write(b"abc")
    assert str(caught.value) == f"[Errno {errno.EAGAIN}] The non-blocking file takes no more bytes now: 'pipe'"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (io.StringIO(), "Cannot write a checkpoint to a text file. Open it with mode 'wb'."),
        (5, "Expected a binary file object with a write method, got int."),
    ],
)
def test_what_is_no_binary_file_is_refused(file, message):
    with pytest.raises(TypeError) as caught:
        StreamSink(file)
    assert str(caught.value) == message


# ------------------------------------------------------------------------------- atomic_write: what it does


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("kind", [str, pathlib.Path, os.fsencode])
def test_a_new_file_is_written_with_its_directories(kind, durable, overwrite, tmp_path):
    path = tmp_path / "runs" / "7" / "model.msgpack"
    descriptors = open_descriptors()
    with atomic_write(kind(path), durable=durable, overwrite=overwrite) as sink:
        sink.write(b"some", b"thing")
        assert not path.exists()
        (temporary,) = names(path.parent)
        assert temporary.startswith(".model.msgpack.tmp-")
        assert sink.position == 9
    assert path.read_bytes() == b"something"
    assert names(path.parent) == ["model.msgpack"]
    assert open_descriptors() == descriptors


def test_a_relative_path_stays_where_it_was_when_the_block_began(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with atomic_write("model") as sink:
        os.chdir(tmp_path / "b")
        sink.write(b"data")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["model"], [])


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "model"
    write(path, b"old")
    with path.open("rb") as reader, atomic_write(path) as sink:
        sink.write(b"new and longer")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert reader.closed


def test_nothing_else_in_the_directory_is_touched(tmp_path):
    (tmp_path / "model.tmp").write_bytes(b"mine")
    (tmp_path / ".model.tmp-1").write_bytes(b"mine too")
    write(tmp_path / "model")
    assert names(tmp_path) == [".model.tmp-1", "model", "model.tmp"]
    assert (tmp_path / "model.tmp").read_bytes() == b"mine"


def test_an_empty_file(tmp_path):
    with atomic_write(tmp_path / "model"):
        pass
    assert (tmp_path / "model").read_bytes() == b""


LONG_NAMES = ["m" * 255, "é" * 127, "模" * 85, "m" * 240 + ".msgpack", "m", ".hidden", "with\nline", "tail. "]


@needs_linux
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", LONG_NAMES, ids=range(len(LONG_NAMES)))
def test_names_of_any_length_that_the_file_system_takes(name, overwrite, tmp_path):
    with atomic_write(tmp_path / name, overwrite=overwrite) as sink:
        sink.write(b"data")
        (temporary,) = names(tmp_path)
        assert len(os.fsencode(temporary)) < 128
        assert b"\xff" not in os.fsencode(temporary)
        temporary.encode()  # no half characters
    assert names(tmp_path) == [name]


@needs_linux
def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path):
    path = str(tmp_path / ("m" * 256))
    with pytest.raises(OSError) as caught, atomic_write(path):
        pytest.fail("the block must not run")
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, path)


@needs_linux
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_name_that_is_too_long_in_a_new_directory_leaves_nothing_behind(overwrite, tmp_path):
    path = str(tmp_path / "new" / ("m" * 256))  # the system cannot tell before the directory exists
    with pytest.raises(OSError) as caught:
        write(path, overwrite=overwrite)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, path)
    assert names(tmp_path / "new") == []


# --------------------------------------------------------------------------------------- links and modes


@needs_linux
def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real").write_bytes(b"old")
    (tmp_path / "middle").symlink_to("store/real")
    (tmp_path / "link").symlink_to(tmp_path / "middle")
    with atomic_write(tmp_path / "link") as sink:
        sink.write(b"new")
        assert len(names(tmp_path / "store")) == 2  # the temporary file lies on the file system of the real one
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "real").read_bytes() == b"new"
    assert names(tmp_path) == ["link", "middle", "store"]
    assert names(tmp_path / "store") == ["real"]


@needs_linux
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_dangling_link_creates_its_target(overwrite, tmp_path):
    (tmp_path / "link").symlink_to("store/real")
    write(tmp_path / "link", overwrite=overwrite)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "real").read_bytes() == b"new"


@needs_linux
def test_a_link_to_a_file_is_an_existing_file(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(AlreadyExistsError):
        write(tmp_path / "link", overwrite=False)
    assert (tmp_path / "real").read_bytes() == b"old"


@needs_linux
def test_a_link_to_itself_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError) as caught:
        write(tmp_path / "link")
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(tmp_path / "link"))


@needs_linux
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0])
@pytest.mark.parametrize("overwrite", [True, False])
def test_the_umask_holds_for_new_files(mask, overwrite, umask, tmp_path):
    umask(mask)
    write(tmp_path / "model", overwrite=overwrite)
    assert stat.S_IMODE(os.stat(tmp_path / "model").st_mode) == 0o666 & ~mask


@needs_linux
@pytest.mark.parametrize("fchmod", [True, False])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400, 0o755])
def test_a_replaced_file_keeps_its_permissions(mode, fchmod, umask, tmp_path, monkeypatch):
    if not fchmod:
        monkeypatch.delattr(os, "fchmod")
    path = tmp_path / "model"
    path.write_bytes(b"old")
    path.chmod(mode)
    with atomic_write(path) as sink:
        sink.write(b"new")
        (temporary,) = tmp_path.glob(".model.tmp-*")
        assert stat.S_IMODE(temporary.stat().st_mode) & ~(mode | stat.S_IWUSR) == 0  # nobody else may read it yet
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


@needs_linux
def test_a_file_system_without_permissions_is_no_error(tmp_path, monkeypatch):
    write(tmp_path / "model", b"old")
    monkeypatch.setattr(os, "fchmod", fail_with(errno.EPERM))
    write(tmp_path / "model", b"new")
    assert (tmp_path / "model").read_bytes() == b"new"


@needs_linux
def test_a_read_only_file_of_the_user_is_replaced(shared_directory):
    shared_directory.chmod(0o777)
    path = shared_directory / "model"
    with unprivileged():
        write(path, b"old")
        path.chmod(0o444)
        write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


# ----------------------------------------------------------------------------------- refused destinations


def test_an_existing_file_is_refused_before_the_block_runs(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    with pytest.raises(AlreadyExistsError) as caught, atomic_write(path, overwrite=False):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        f'Trying overwrite an existing file: "{path}". Pass overwrite=True to replace it, or another path.'
    )
    assert isinstance(caught.value, FileExistsError)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(hard_links, tmp_path, monkeypatch):
    if not hard_links:
        monkeypatch.delattr(os, "link", raising=False)
    path = tmp_path / "model"
    with (
        pytest.raises(AlreadyExistsError, match="existing file"),
        atomic_write(path, overwrite=False),
    ):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_is_refused(overwrite, tmp_path):
    with pytest.raises(InvalidCheckpointPath) as caught, atomic_write(tmp_path, overwrite=overwrite):
        pytest.fail("the block must not run")
    assert type(caught.value) is InvalidCheckpointPath
    assert str(caught.value) == (
        f'Cannot write a checkpoint to "{tmp_path}": it is a directory. '
        f'Pass the path of a file, such as "{tmp_path / "checkpoint.msgpack"}".'
    )
    assert names(tmp_path) == []


def test_a_path_that_names_a_directory_is_refused(tmp_path):
    path = os.path.join(tmp_path, "new", "")
    with pytest.raises(InvalidCheckpointPath) as caught:
        write(path)
    assert str(caught.value) == (
        f'Cannot write a checkpoint to "{path}": it names a directory. '
        f'Pass the path of a file, such as "{path}checkpoint.msgpack".'
    )
    assert names(tmp_path) == []


def test_an_empty_path_is_refused():
    with pytest.raises(InvalidCheckpointPath) as caught:
        write("")
    assert str(caught.value) == "Cannot write a checkpoint: the path is empty."


@needs_linux
def test_devices_and_pipes_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in [tmp_path / "pipe", tmp_path / "null", "/dev/null"]:
        with pytest.raises(InvalidCheckpointPath) as caught:
            write(path)
        assert f'"{path}": it is not a regular file. Pass the path of a file' in str(caught.value)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@pytest.mark.parametrize("path", [5, None, b"a\0b", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((TypeError, ValueError)):
        write(path)


@pytest.mark.parametrize("below", ["model", "deep/er/model"])
def test_a_parent_that_is_a_file_is_named(below, tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    directory = os.path.dirname(tmp_path / "file" / below)
    with pytest.raises(NotADirectoryError) as caught:
        write(tmp_path / "file" / below)
    assert str(caught.value) == (
        f"[Errno 20] Cannot make the directory of the checkpoint: Not a directory: '{directory}'"
    )
    assert caught.value.filename == directory


@needs_linux
def test_a_parent_that_may_not_be_made_is_named(shared_directory):
    directory = str(shared_directory / "runs")
    with pytest.raises(PermissionError) as caught, unprivileged():
        write(os.path.join(directory, "model"))
    assert str(caught.value) == (
        f"[Errno 13] Cannot make the directory of the checkpoint: Permission denied: '{directory}'"
    )


@needs_linux
def test_a_directory_that_may_not_be_written_names_the_path(shared_directory):
    path = str(shared_directory / "model")
    with pytest.raises(PermissionError) as caught, unprivileged():
        write(path)
    assert str(caught.value) == f"[Errno 13] Permission denied: '{path}'"


@needs_linux
def test_a_directory_that_may_be_written_but_not_read(shared_directory):
    shared_directory.chmod(0o333)  # it cannot be opened to be synced
    with unprivileged():
        write(shared_directory / "model")
    assert (shared_directory / "model").read_bytes() == b"new"


# ------------------------------------------------------------------------------------- each call failing

# What fails, with which error, under which `overwrite`; each leaves everything as it was.
FAILURES = [
    ("open", errno.EACCES, True),
    ("open", errno.EMFILE, True),
    ("write", errno.ENOSPC, True),
    ("write", errno.EDQUOT, True),
    ("write", errno.EIO, True),
    ("write", errno.ENOSPC, False),
    ("writev", errno.ENOSPC, True),
    ("fchmod", errno.EIO, True),
    ("fsync", errno.EIO, True),
    ("fsync", errno.ENOSPC, True),
    ("fsync", errno.EIO, False),
    ("close", errno.EIO, True),
    ("close", errno.EDQUOT, False),
    ("replace", errno.EIO, True),
    ("replace", errno.EACCES, True),
    ("replace", errno.EXDEV, True),
]


@needs_linux
@pytest.mark.parametrize(("call", "code", "overwrite"), FAILURES)
def test_a_failing_call_leaves_everything_as_it_was(call, code, overwrite, tmp_path, monkeypatch):
    path = tmp_path / "model"
    if overwrite:
        path.write_bytes(b"old")
    before = names(tmp_path)
    descriptors = open_descriptors()
    real = getattr(os, call)

    def failing(*arguments):
        if call == "close":  # the descriptor is gone even when close fails
            real(*arguments)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError) as caught, atomic_write(path, overwrite=overwrite) as sink:
        sink.write(*[b"data"] * (2 if call == "writev" else 1))
    monkeypatch.undo()
    assert caught.value.errno == code
    assert caught.value.filename == str(path)
    assert str(caught.value) == f"[Errno {code}] {os.strerror(code)}: '{path}'"
    assert names(tmp_path) == before
    assert open_descriptors() == descriptors
    if overwrite:
        assert path.read_bytes() == b"old"


def test_the_temporary_name_is_in_no_message(tmp_path, monkeypatch):
    def replace(source, destination):
        raise PermissionError(errno.EACCES, "Permission denied", source, None, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError) as caught:
        write(tmp_path / "model")
    assert str(caught.value) == f"[Errno 13] Permission denied: '{tmp_path / 'model'}'"


def test_the_first_error_is_told_when_the_clean_up_fails_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    monkeypatch.setattr(os, "unlink", fail_with(errno.EROFS))
    with pytest.raises(OSError) as caught:
        write(tmp_path / "model")
    assert caught.value.errno == errno.EIO
    (temporary,) = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"The temporary file {temporary} could not be removed: Read-only file system."]


def test_a_temporary_file_that_somebody_removed(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "model"):
        next(tmp_path.iterdir()).unlink()
    assert caught.value.filename == str(tmp_path / "model")


def test_errors_of_the_block_pass_unchanged(tmp_path):
    error = OSError(errno.EIO, "somewhere else", "other file")
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "model"):
        raise error
    assert caught.value is error
    assert error.filename == "other file"
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError, StopIteration, GeneratorExit, MemoryError])
@pytest.mark.parametrize("overwrite", [True, False])
def test_whatever_ends_the_block_leaves_nothing_behind(kind, overwrite, tmp_path):
    descriptors = open_descriptors()

    def on_bytes(count):
        raise kind

    with pytest.raises(kind):
        write(tmp_path / "model", overwrite=overwrite, on_bytes=on_bytes)
    assert names(tmp_path) == []
    assert open_descriptors() == descriptors


def test_a_generator_that_is_closed_leaves_nothing_behind(tmp_path):
    def saving():
        with atomic_write(tmp_path / "model") as sink:
            sink.write(b"data")
            yield

    generator = saving()
    next(generator)
    assert len(names(tmp_path)) == 1
    generator.close()
    assert names(tmp_path) == []


def test_a_context_that_is_thrown_away_leaves_nothing_behind(tmp_path):
    context = atomic_write(tmp_path / "model")
    context.__enter__().write(b"data")
    assert len(names(tmp_path)) == 1
    del context
    gc.collect()
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_an_interrupt_in_a_system_call_leaves_nothing_behind(call, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", overwrite=call != "link")
    assert names(tmp_path) == []


def test_an_interrupt_in_the_reservation_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.delattr(os, "link", raising=False)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", overwrite=False)
    assert names(tmp_path) == []


FULL_DISK = """
import os, sys
from braintools_ckpt.storage import atomic_write
path = os.path.join(sys.argv[1], "runs", "model")
with atomic_write(path) as sink:
    sink.write(b"old")
try:
    with atomic_write(path) as sink:
        sink.write(bytes(1 << 20))
except OSError as error:
    print(error, error.filename == path, open(path, "rb").read(), os.listdir(os.path.dirname(path)))
"""


@needs_linux
def test_a_disk_that_is_full(tmp_path):
    inner = f'mount -t tmpfs -o size=256k none "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    try:
        result = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", inner, sys.executable, FULL_DISK],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "unshare:" in result.stderr or "mount:" in result.stderr:
        pytest.skip(f"cannot mount a small file system: {result.stderr}")
    path = tmp_path / "runs" / "model"
    assert result.stdout == f"[Errno 28] No space left on device: '{path}' True b'old' ['model']\n", result.stderr


@needs_linux
def test_a_file_size_limit(tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + FULL_DISK
    result = run_python(code, tmp_path)
    out, err = result.communicate(timeout=60)
    path = tmp_path / "runs" / "model"
    assert out == f"[Errno 27] File too large: '{path}' True b'old' ['model']\n", err


# --------------------------------------------------------------------------------------- publishing once


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES])
def test_a_file_system_without_hard_links(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fail_with(code), raising=False)
    write(tmp_path / "model", b"one", overwrite=False)
    with pytest.raises(AlreadyExistsError):
        write(tmp_path / "model", b"two", overwrite=False)
    assert (tmp_path / "model").read_bytes() == b"one"
    assert names(tmp_path) == ["model"]


def test_a_reservation_is_given_back(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "link", raising=False)
    monkeypatch.setattr(os, "replace", fail_with(errno.EIO))
    with pytest.raises(OSError) as caught:
        write(tmp_path / "model", overwrite=False)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "model"))
    assert names(tmp_path) == []


def test_a_reservation_that_somebody_took_over_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "model"

    def replace(source, destination, real=os.replace):
        (tmp_path / "theirs").write_bytes(b"theirs")
        real(tmp_path / "theirs", path)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.delattr(os, "link", raising=False)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output error"):
        write(path, overwrite=False)
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["model"]


@needs_linux
def test_a_link_whose_answer_got_lost_was_made(tmp_path, monkeypatch):
    def link(source, destination, real=os.link):
        real(source, destination)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link)
    write(tmp_path / "model", overwrite=False)
    assert (tmp_path / "model").read_bytes() == b"new"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_one_thread_of_many_wins(hard_links, tmp_path, monkeypatch):
    if not hard_links:
        monkeypatch.delattr(os, "link", raising=False)
    count = 16
    for attempt in range(10):
        path = tmp_path / f"model-{attempt}"
        barrier = threading.Barrier(count)

        def save(number, path=path, barrier=barrier):
            try:
                with atomic_write(path, overwrite=False, durable=False) as sink:
                    sink.write(b"%d" % number)
                    barrier.wait(30)  # all of them passed the first check
            except AlreadyExistsError:
                return None
            return number

        with ThreadPoolExecutor(count) as pool:
            winners = [number for number in pool.map(save, range(count)) if number is not None]
        assert len(winners) == 1
        assert path.read_bytes() == b"%d" % winners[0]
    assert len(names(tmp_path)) == 10


@needs_linux
@pytest.mark.parametrize("hard_links", [True, False])
def test_one_process_of_many_wins(hard_links, tmp_path):
    code = """
        import os, sys
        from braintools_ckpt.errors import AlreadyExistsError
        from braintools_ckpt.storage import atomic_write
        if sys.argv[3] == "False":
            del os.link
        try:
            with atomic_write(sys.argv[1], overwrite=False) as sink:
                sink.write(sys.argv[2].encode())
                print("ready", flush=True)
                sys.stdin.read()
            print("won")
        except AlreadyExistsError:
            print("lost")
        """
    path = tmp_path / "model"
    writers = [run_python(code, path, number, hard_links, stdin=subprocess.PIPE) for number in range(6)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.close()
    results = [writer.stdout.read().strip() for writer in writers]
    for writer in writers:
        assert writer.stderr.read() == ""
        writer.wait(30)
        writer.stdout.close()
        writer.stderr.close()
    assert sorted(results) == ["lost"] * 5 + ["won"]
    assert path.read_bytes() == b"%d" % results.index("won")
    assert names(tmp_path) == ["model"]


def test_writers_that_overwrite_never_mix(tmp_path):
    path = tmp_path / "model"
    write(path, b"x" * 10_000)
    contents = {bytes([letter]) * 10_000 for letter in b"abcdx"}
    stop = threading.Event()

    def save(letter):
        for _ in range(30):
            write(path, bytes([letter]) * 10_000, durable=False)

    def read():
        seen = set()
        while not stop.is_set():
            seen.add(path.read_bytes())
        return seen

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        list(pool.map(save, b"abcd"))
        stop.set()
        assert all(reader.result() <= contents for reader in readers)
    assert names(tmp_path) == ["model"]


# --------------------------------------------------------------------------------------------- durability


@pytest.fixture
def calls(monkeypatch):
    """Record the order of the calls that durability depends on."""
    recorded = []

    def record(name, describe, real):
        def call(*arguments):
            recorded.append((name, describe(*arguments)))
            return real(*arguments)

        return call

    def kind(fd):
        return "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"

    monkeypatch.setattr(os, "fsync", record("fsync", kind, os.fsync))
    monkeypatch.setattr(os, "replace", record("replace", lambda *_: "", os.replace))
    monkeypatch.setattr(os, "link", record("link", lambda *_: "", os.link), raising=False)
    return recorded


@needs_linux
def test_the_file_is_synced_before_its_name_and_its_name_before_the_end(calls, tmp_path):
    write(tmp_path / "model")
    assert calls == [("fsync", "file"), ("replace", ""), ("fsync", "directory")]


@needs_linux
def test_a_new_name_is_synced_too(calls, tmp_path):
    write(tmp_path / "model", overwrite=False)
    assert calls == [("fsync", "file"), ("link", ""), ("fsync", "directory")]


@needs_linux
def test_new_directories_are_synced_with_their_parents(calls, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *rest, real=os.open: (opened.append(path), real(path, *rest))[1])
    write(tmp_path / "a" / "b" / "model")
    assert opened[1:] == [str(tmp_path / "a" / "b"), str(tmp_path / "a"), str(tmp_path)]
    assert calls.count(("fsync", "directory")) == 3


@needs_linux
def test_nothing_is_synced_unless_asked(calls, tmp_path):
    write(tmp_path / "a" / "model", durable=False)
    assert calls == [("replace", "")]


@needs_linux
@pytest.mark.parametrize("call", ["open", "fsync"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_directories_that_cannot_be_synced_are_passed_over(call, code, tmp_path, monkeypatch):
    is_directory = os.path.isdir if call == "open" else lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)
    only = lambda first, *rest: is_directory(first)  # noqa: E731
    monkeypatch.setattr(os, call, fail_with(code, getattr(os, call), only))
    descriptors = open_descriptors()
    write(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"new"
    assert open_descriptors() == descriptors


@needs_linux
def test_a_directory_that_fails_to_be_synced_is_an_error(tmp_path, monkeypatch):
    only = lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)  # noqa: E731
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO, os.fsync, only))
    with pytest.raises(OSError) as caught:
        write(tmp_path / "model")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "model"))
    assert caught.value.__notes__ == ["The file is in place, but its name may not survive a power cut."]
    assert (tmp_path / "model").read_bytes() == b"new"


@needs_linux
@pytest.mark.parametrize("known", [True, False])
def test_macos_is_asked_to_empty_the_cache_of_the_drive(known, calls, tmp_path, monkeypatch):
    asked = []

    def control(fd, command):
        asked.append(command)
        if not known:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(real_fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(real_fcntl, "fcntl", control)
    write(tmp_path / "model")
    assert asked == [51]
    assert (("fsync", "file") in calls) is not known


@needs_linux
def test_the_poorest_platform(tmp_path, monkeypatch):
    for name in ["writev", "preadv", "pread", "link", "fchmod", "sysconf"]:
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(temporary, "fcntl", None)
    monkeypatch.setattr(os, "open", fail_with(errno.EACCES, os.open, lambda path, *rest: os.path.isdir(path)))
    path = tmp_path / "a" / "model"
    write(path, b"one", overwrite=False)
    write(path, b"two")
    with pytest.raises(AlreadyExistsError):
        write(path, overwrite=False)
    with LocalSource(path) as source:
        assert source.read(0, 3) == b"two"
    assert clean_temporaries(path.parent) == []


# ---------------------------------------------------------------------------------- clean_temporaries

KILLED = """
    import sys
    from braintools_ckpt.storage import atomic_write
    with atomic_write(sys.argv[1]) as sink:
        sink.write(b"half")
        print("ready", flush=True)
        sys.stdin.read()
    """


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@needs_linux
def test_files_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    writer = run_python(KILLED, tmp_path / "model", stdin=subprocess.PIPE)
    assert writer.stdout.readline() == "ready\n"
    (temporary,) = tmp_path.iterdir()
    age(temporary, 7200)
    assert clean_temporaries(tmp_path) == []  # it lives, however long it takes
    writer.kill()
    writer.communicate(timeout=30)
    assert names(tmp_path) == [temporary.name]
    assert clean_temporaries(tmp_path) == [str(temporary)]  # at once: there is no such process here any more
    assert names(tmp_path) == []


@needs_linux
def test_files_of_writers_elsewhere_are_removed_when_they_are_old(tmp_path):
    temporary = tmp_path / ".model.tmp-12-0123456789abcdef"  # of another machine
    temporary.write_bytes(b"data")
    age(temporary, 3000)
    assert clean_temporaries(tmp_path) == []  # its lock may not be seen from here
    age(temporary, 3700)
    assert clean_temporaries(tmp_path) == [str(temporary)]


@needs_linux
def test_the_age_can_be_chosen(tmp_path):
    writer = run_python(KILLED, tmp_path / "model", stdin=subprocess.PIPE)
    writer.stdout.readline()
    assert clean_temporaries(tmp_path, older_than=0) == []
    writer.kill()
    writer.communicate(timeout=30)
    assert len(clean_temporaries(str(tmp_path), older_than=0)) == 1


def test_writers_of_this_process_are_left_alone(tmp_path):
    with atomic_write(tmp_path / "model") as sink:
        sink.write(b"data")
        age(next(tmp_path.iterdir()), 7200)
        assert clean_temporaries(tmp_path) == []
    assert (tmp_path / "model").read_bytes() == b"data"


@needs_linux
def test_only_our_own_names_are_removed(tmp_path):
    mine = ".model.tmp-12-0123456789abcdef"
    others = [
        "model",
        ".model.tmp-12",
        ".model.tmp-x-0123456789abcdef",
        "model.tmp-12-0123456789abcdef",
        mine + "0",
    ]
    for name in [mine, *others]:
        (tmp_path / name).write_bytes(b"data")
        age(tmp_path / name, 7200)
    (tmp_path / ".dir.tmp-12-0123456789abcdef").mkdir()
    (tmp_path / ".link.tmp-12-0123456789abcdef").symlink_to("model")
    assert clean_temporaries(tmp_path, older_than=-1) == [str(tmp_path / mine)]
    assert len(names(tmp_path)) == len(others) + 2


@needs_linux
def test_locks_that_do_not_exist_mean_that_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(real_fcntl, "flock", fail_with(errno.ENOLCK))
    write(tmp_path / "model")
    (tmp_path / ".model.tmp-12-0123456789abcdef").write_bytes(b"data")
    assert clean_temporaries(tmp_path, older_than=-1) == []


@pytest.mark.parametrize("call", ["stat", "unlink"])
def test_a_file_that_vanishes_meanwhile_is_no_error(call, tmp_path, monkeypatch):
    path = tmp_path / ".model.tmp-12-0123456789abcdef"
    path.write_bytes(b"data")
    if call == "unlink":
        monkeypatch.setattr(os, "unlink", fail_with(errno.ENOENT))
    else:
        monkeypatch.setattr(
            os, "scandir", lambda path, real=os.scandir: contextlib.nullcontext(Vanishing.of(real(path)))
        )
    assert clean_temporaries(tmp_path, older_than=-1) == []


class Vanishing:
    def __init__(self, entry):
        self.name, self.path = entry.name, entry.path

    @classmethod
    def of(cls, entries):
        with entries:
            return [cls(entry) for entry in entries]

    def stat(self, follow_symlinks):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


# ------------------------------------------------------------------------------------------------ sources

DATA = bytes(range(256)) * 5


class NoReadinto:
    """A seekable file object of the plainest kind, which gives at most 100 bytes a call."""

    def __init__(self, data):
        self._file = io.BytesIO(data)
        self.seek, self.tell, self.seekable = self._file.seek, self._file.tell, self._file.seekable

    def read(self, size=-1):
        return self._file.read(size if size < 0 else min(size, 100))


def stream(path):
    file = io.BytesIO(b"before" + path.read_bytes())
    file.seek(6)
    return StreamSource(file)


def pipe(path):
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as file:
        file.write(path.read_bytes())
    with os.fdopen(read_end, "rb") as file:
        return open_source(file)


SOURCES = {
    "local": LocalSource,
    "local, without preadv": LocalSource,
    "local, without pread": LocalSource,
    "bytes": lambda path: BufferSource(path.read_bytes()),
    "array": lambda path: BufferSource(np.frombuffer(path.read_bytes(), ">u4") if path.stat().st_size else b""),
    "stream": stream,
    "plain stream": lambda path: open_source(NoReadinto(path.read_bytes())),
    "pipe": pipe,
}


@pytest.fixture(params=SOURCES)
def open_path(request, monkeypatch):
    if "without" in request.param:
        monkeypatch.delattr(os, "preadv", raising=False)
    if "without pread" in request.param and "preadv" not in request.param:
        monkeypatch.delattr(os, "pread", raising=False)
    return SOURCES[request.param]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.msgpack"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("piece", [1, 13, 1 << 20])
def test_a_source_reads_by_position(open_path, path, piece, monkeypatch):
    monkeypatch.setattr(buffers, "PIECE_BYTES", piece)
    with open_path(path) as source:
        assert source.size == len(DATA)
        assert source.read(0, len(DATA)) == DATA
        assert source.read(100, 7) == DATA[100:107]
        assert source.read(len(DATA), 0) == b""
        first, second, none = bytearray(3), np.zeros((2, 5), ">u2"), bytearray()
        source.read_into(250, memoryview(first), memoryview(none), memoryview(second))
        assert bytes(first) + second.tobytes() == DATA[250:273]


def test_a_source_is_read_by_many_threads(open_path, path):
    with open_path(path) as source, ThreadPoolExecutor(8) as pool:
        offsets = [offset * 7 % 1200 for offset in range(400)]
        assert list(pool.map(lambda offset: source.read(offset, 50), offsets)) == [
            DATA[offset : offset + 50] for offset in offsets
        ]


@pytest.mark.parametrize(("offset", "size"), [(0, 1281), (1280, 1), (2000, 0), (-1, 1), (0, -1), (10, 1 << 60)])
def test_a_range_outside_the_file_is_an_error_before_anything_is_allocated(open_path, path, offset, size):
    with open_path(path) as source, pytest.raises(CorruptCheckpointError) as caught:
        source.read(offset, size)
    assert str(caught.value) == (
        f"{source.name} ends early: expected {size} bytes at offset {offset}, but it ends at offset 1280. "
        "It was cut short, or changed while it was read."
    )


def test_a_range_outside_the_file_leaves_the_buffers_alone(open_path, path):
    buffer = bytearray(b"....")
    with open_path(path) as source, pytest.raises(CorruptCheckpointError):
        source.read_into(1278, memoryview(buffer))
    assert buffer == b"...."


@pytest.mark.parametrize("missing", [[], ["preadv"], ["preadv", "pread"]])
def test_a_file_that_is_cut_after_it_was_opened(missing, path, monkeypatch):
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    with LocalSource(path) as source:
        os.truncate(path, 5)
        with pytest.raises(CorruptCheckpointError) as caught:
            source.read(2, 10)
        assert str(caught.value) == (
            f"{path} ends early: expected 7 bytes at offset 5, but it ends at offset 5. "
            "It was cut short, or changed while it was read."
        )
        with pytest.raises(CorruptCheckpointError, match="expected 1280 bytes at offset 0, but it ends at offset 5"):
            source.map()


def test_a_stream_that_is_cut_after_it_was_opened():
    for file in [io.BytesIO(DATA), NoReadinto(DATA)]:
        source = StreamSource(file)
        (file if isinstance(file, io.BytesIO) else file._file).truncate(5)
        with pytest.raises(CorruptCheckpointError, match="expected 7 bytes at offset 5, but it ends at offset 5"):
            source.read(2, 10)


def test_a_map_is_writable_and_belongs_to_the_caller(open_path, path):
    with open_path(path) as source:
        view = source.map()
        assert (bytes(view), view.readonly, view.format) == (DATA, False, "B")
        view[0] = 77
        assert source.read(0, 1) == source.map()[:1] == DATA[:1]
    assert view[:2] == bytes([77, 1])  # it outlives the source
    assert path.read_bytes() == DATA
    assert np.frombuffer(view, "u1").ctypes.data % mmap.PAGESIZE == 0


def test_a_map_outlives_the_file(path):
    with LocalSource(path) as source:
        view = source.map()
    write(path, b"replaced")
    path.unlink()
    assert bytes(view) == DATA


def test_an_empty_source(open_path, path):
    path.write_bytes(b"")
    with open_path(path) as source:
        assert (source.size, source.read(0, 0), bytes(source.map())) == (0, b"", b"")


@needs_linux
def test_a_map_may_be_larger_than_the_memory(path):
    os.truncate(path, 1 << 42)
    with LocalSource(path) as source:
        view = source.map()
        view[-1] = 1
        assert (len(view), view[5]) == (1 << 42, 5)


def test_other_platforms_map_by_their_own_means(path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with LocalSource(path) as source:
        view = source.map()
    view[0] = 9
    assert bytes(view) == b"\x09" + DATA[1:]
    assert path.read_bytes() == DATA


def test_a_closed_source_reads_nothing(path):
    with LocalSource(path) as source:
        pass
    source.close()
    with pytest.raises(ValueError, match="closed file"):
        source.read(0, 1)


def test_many_buffers_are_filled_by_few_calls(path, monkeypatch):
    if not hasattr(os, "preadv"):
        pytest.skip("no preadv here")
    calls = []
    monkeypatch.setattr(
        os, "preadv", lambda fd, views, at, real=os.preadv: (calls.append(len(views)), real(fd, views, at))[1]
    )
    parts = [bytearray(5) for _ in range(200)]
    with LocalSource(path) as source:
        source.read_into(10, *map(memoryview, parts))
    assert b"".join(parts) == DATA[10:1010]
    assert calls == [200]


def test_short_reads_are_continued(path, monkeypatch):
    monkeypatch.setattr(os, "preadv", lambda fd, views, at, real=os.preadv: real(fd, [views[0][:3]], at), raising=False)
    with LocalSource(path) as source:
        parts = [bytearray(4), bytearray(5)]
        source.read_into(1, *map(memoryview, parts))
    assert b"".join(parts) == DATA[1:10]


def test_a_read_error_passes(path, monkeypatch):
    monkeypatch.setattr(os, "preadv", fail_with(errno.EIO), raising=False)
    with LocalSource(path) as source, pytest.raises(OSError) as caught:
        source.read(0, 1)
    assert caught.value.errno == errno.EIO


# --------------------------------------------------------------------------------- what cannot be opened


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError) as caught:
        LocalSource(tmp_path / "model.msgpack")
    assert str(caught.value) == f"Checkpoint not found: {tmp_path / 'model.msgpack'}"
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, ValueError)


def test_a_missing_file_names_those_with_similar_names(path, monkeypatch):
    (path.parent / "unrelated").touch()
    wrong = path.parent / "modle.msgpack"
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_source(wrong)
    assert str(caught.value) == f"Checkpoint not found: {wrong}. Did you mean 'model.msgpack'?"
    (path.parent / "mode.msgpack").touch()
    monkeypatch.chdir(path.parent)
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_source("modle.msgpack")
    assert str(caught.value) == ("Checkpoint not found: modle.msgpack. Did you mean 'mode.msgpack' or 'model.msgpack'?")


def test_temporary_files_are_never_suggested(tmp_path):
    name = "a-long-name-of-a-checkpoint-of-step-100.msgpack"
    (tmp_path / f".{name}.tmp-1-0123456789abcdef").touch()
    with pytest.raises(CheckpointNotFoundError) as caught:
        LocalSource(tmp_path / name)
    assert str(caught.value) == f"Checkpoint not found: {tmp_path / name}"


def test_a_missing_directory_is_named(tmp_path):
    missing = tmp_path / "runs" / "model"
    with pytest.raises(CheckpointNotFoundError) as caught:
        LocalSource(missing)
    assert str(caught.value) == (
        f"Checkpoint not found: {missing}. The directory '{tmp_path / 'runs'}' does not exist."
    )


def test_a_file_below_a_file_is_missing(path):
    with pytest.raises(CheckpointNotFoundError) as caught:
        LocalSource(path / "model")
    assert str(caught.value) == f"Checkpoint not found: {path / 'model'}"


@needs_linux
def test_a_dangling_link_says_so(tmp_path):
    (tmp_path / "latest").symlink_to("gone")
    with pytest.raises(CheckpointNotFoundError) as caught:
        LocalSource(tmp_path / "latest")
    assert str(caught.value) == (
        f"Checkpoint not found: {tmp_path / 'latest'}. It is a symbolic link to 'gone', which does not exist."
    )


def test_a_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(InvalidCheckpointPath) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == (f'Cannot load "{tmp_path}": it is a directory. Pass the path of a checkpoint file.')


@needs_linux
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidCheckpointPath) as caught:
        open_source(tmp_path / "pipe")
    assert str(caught.value) == (
        f'Cannot load "{tmp_path / "pipe"}": it is not a regular file. Pass open("{tmp_path / "pipe"}", "rb") instead.'
    )


@needs_linux
def test_a_file_that_may_not_be_read(shared_directory):
    path = shared_directory / "model"
    path.touch(0o600)
    path.chmod(0o600 if os.geteuid() == 0 else 0)
    with pytest.raises(PermissionError) as caught, unprivileged():
        LocalSource(path)
    assert str(caught.value) == f"[Errno 13] Permission denied: '{path}'"


@needs_linux
def test_a_directory_that_may_not_be_listed_gives_no_hint(shared_directory):
    shared_directory.chmod(0o711 if os.geteuid() == 0 else 0o311)
    with pytest.raises(CheckpointNotFoundError) as caught, unprivileged():
        LocalSource(shared_directory / "model")
    shared_directory.chmod(0o755)
    assert str(caught.value) == f"Checkpoint not found: {shared_directory / 'model'}"


# -------------------------------------------------------------------------------------------- open_source


def test_open_source_chooses(path):
    with open_source(path) as source:
        assert (type(source), source.name) == (LocalSource, str(path))
    with open_source(str(path)) as source:
        assert (type(source), source.name) == (LocalSource, str(path))
    with path.open("rb") as file:
        source = open_source(file)
        assert (type(source), source.name) == (StreamSource, str(path))
        with source:
            assert source.read(0, 3) == DATA[:3]
        assert not file.closed  # it is the caller's
    assert open_source(io.BytesIO(DATA)).name == "<BytesIO>"


def test_a_stream_is_left_where_it_was_when_opened():
    file = io.BytesIO(DATA)
    file.seek(7)
    assert open_source(file).size == len(DATA) - 7
    assert file.tell() == 7


def test_a_stream_beyond_its_end_is_empty():
    file = io.BytesIO(b"abc")
    file.seek(10)
    assert open_source(file).size == 0


def test_threads_do_not_move_a_stream_under_each_other():
    class Slow(io.BytesIO):
        def seek(self, *arguments):
            position = super().seek(*arguments)
            time.sleep(0.001)  # let another thread in
            return position

    source = StreamSource(Slow(DATA))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda offset: source.read(offset, 1), range(64))) == [
            DATA[offset : offset + 1] for offset in range(64)
        ]


class Reader:
    """Knows `read` alone."""

    def read(self, size=-1):
        return DATA


def test_a_stream_that_cannot_seek_is_read_whole():
    source = open_source(Reader())
    assert (type(source), source.name, source.read(5, 2)) == (BufferSource, "<Reader>", DATA[5:7])


def test_a_stream_without_bytes_now_is_an_error():
    class Waiting(io.BytesIO):
        def readinto(self, buffer):
            return None

    with pytest.raises(BlockingIOError) as caught:
        StreamSource(Waiting(DATA)).read(0, 1)
    assert str(caught.value) == "Cannot read <Waiting>: it is non-blocking and has no bytes yet."


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (io.StringIO("text"), "Cannot read a checkpoint from a text file. Open it with mode 'rb'."),
        (b"bytes", "Expected a path or a binary file object, got bytes. Wrap bytes in io.BytesIO."),
        (None, "Expected a path or a binary file object, got NoneType. Wrap bytes in io.BytesIO."),
    ],
)
def test_what_cannot_be_read_is_refused(file, message):
    with pytest.raises(TypeError) as caught:
        open_source(file)
    assert str(caught.value) == message


def test_a_buffer_source_copies_nothing():
    data = bytearray(DATA)
    source = BufferSource(data)
    data[0] = 99
    assert source.read(0, 1) == b"c"
