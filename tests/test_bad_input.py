"""What happens when something is wrong: a typed error whose message helps, and nothing else has changed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import os
import pathlib
import pickle
import re
import stat
import subprocess
import sys
import tempfile
import textwrap
import traceback
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_same, copy_tree

import braintools_ckpt as bt
from braintools_ckpt.format import layout

TREE = {"w": np.arange(3.0), "layers": [{"b": jnp.ones(2)}], "step": 5}


@pytest.fixture
def path(tmp_path):
    """A checkpoint of TREE, alone in its directory."""
    return pathlib.Path(bt.msgpack_save(tmp_path / "state.msgpack", TREE))


@pytest.fixture
def intact(path):
    """Check that the checkpoint and its directory are afterwards what they were before."""
    before = path.read_bytes(), sorted(os.listdir(path.parent)), stat.S_IMODE(path.stat().st_mode)
    yield path
    assert before == (path.read_bytes(), sorted(os.listdir(path.parent)), stat.S_IMODE(path.stat().st_mode))


def raises(kind, message, function, *args, **kwargs):
    """Check the type and the whole message of an error."""
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    assert str(caught.value) == message
    return caught.value


_NUMBERS = itertools.count()


def new_class(**methods):
    """Make a class that nobody registered yet, with a name of its own."""
    methods.setdefault("__init__", lambda self, **fields: self.__dict__.update(fields))
    return type(f"Thing{next(_NUMBERS)}", (), methods)


# --- the file -----------------------------------------------------------------------------------------------


def test_missing_file(intact):
    missing = intact.parent / "nothing like it"
    error = raises(FileNotFoundError, f"Checkpoint not found: {missing}", bt.msgpack_load, missing)
    assert isinstance(error, ValueError)
    assert isinstance(error, bt.CheckpointError)
    raises(bt.CheckpointNotFoundError, f"Checkpoint not found: {missing}", bt.open_checkpoint, missing)


def test_missing_file_with_a_near_name(intact):
    message = f"Checkpoint not found: {intact.parent}/state.msgpak. Did you mean 'state.msgpack'?"
    raises(bt.CheckpointNotFoundError, message, bt.msgpack_load, intact.parent / "state.msgpak")


def test_missing_directory(intact):
    missing = intact.parent / "run" / "x"
    message = f"Checkpoint not found: {missing}. The directory '{missing.parent}' does not exist."
    raises(bt.CheckpointNotFoundError, message, bt.msgpack_load, missing)
    assert not missing.parent.exists()


def test_a_directory(intact):
    folder = intact.parent
    message = f'Cannot load "{folder}": it is a directory. Pass the path of a checkpoint file.'
    raises(bt.InvalidCheckpointPath, message, bt.msgpack_load, folder)
    raises(bt.InvalidCheckpointPath, message, bt.open_checkpoint, folder)
    message = (
        f'Cannot write a checkpoint to "{folder}": it is a directory. Pass the path of a file, such as '
        f'"{folder}/checkpoint.msgpack".'
    )
    raises(bt.InvalidCheckpointPath, message, bt.msgpack_save, folder, TREE)


def test_a_device(intact):
    message = 'Cannot load "/dev/null": it is not a regular file. Pass open("/dev/null", "rb") instead.'
    raises(bt.InvalidCheckpointPath, message, bt.msgpack_load, "/dev/null")
    with pytest.raises(bt.InvalidCheckpointPath, match='Cannot write a checkpoint to "/dev/null": it is not a'):
        bt.msgpack_save("/dev/null", TREE)


def test_an_existing_file(intact):
    message = f'Trying overwrite an existing file: "{intact}". Pass overwrite=True to replace it, or another path.'
    error = raises(bt.AlreadyExistsError, message, bt.msgpack_save, intact, {"a": 1}, overwrite=False)
    assert isinstance(error, FileExistsError)
    assert isinstance(error, bt.InvalidCheckpointPath)
    with bt.AsyncManager() as manager:
        raises(
            bt.AlreadyExistsError,
            message,
            bt.msgpack_save,
            intact,
            {"a": 1},
            overwrite=False,
            async_manager=manager,
        )


def test_a_dangling_symlink_exists(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(bt.CheckpointNotFoundError, match="Checkpoint not found"):
        bt.msgpack_load(link)


NOT_CHECKPOINTS = {
    "empty": b"",
    "text": b"hello world, this is no checkpoint\n",
    "json": b'{"a": 1}',
    "pickle": pickle.dumps({"a": 1}),
    "zip": b"PK\x03\x04" + bytes(100),
    "npy": b"\x93NUMPY\x01\x00v\x00" + bytes(100),
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "utf-16": "checkpoint".encode("utf-16"),
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_not_a_checkpoint(name, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(NOT_CHECKPOINTS[name])
    for load in (bt.msgpack_load, bt.open_checkpoint):
        with pytest.raises(bt.CorruptCheckpointError) as caught:
            load(path)
        error = caught.value
        assert isinstance(error, bt.InvalidCheckpointPath)
        assert isinstance(error, ValueError)
        text = str(error)
        assert str(path) in text
        text = text.replace(str(path), "")
        # What it is not, in words that a user knows; msgpack's own would not help.
        assert re.search("empty|not a checkpoint|no checkpoint|neither", text), text
        assert "unpack" not in text.lower()


def test_every_truncation_is_found(path):
    data = path.read_bytes()
    assert len(data) < 2000
    for size in range(len(data)):
        with pytest.raises(bt.CorruptCheckpointError):
            bt.msgpack_loads(data[:size])


@pytest.mark.parametrize(
    ("part", "why"),
    [(30, "it has only 30 bytes"), (-1, "its last bytes are not those of a checkpoint")],
)
def test_truncated(path, part, why):
    path.write_bytes(path.read_bytes()[:part])
    message = (
        f"Corrupt checkpoint {path}: {why}. The file was damaged or cut short after it was written; use another copy."
    )
    raises(bt.CorruptCheckpointError, message, bt.msgpack_load, path)
    raises(bt.CorruptCheckpointError, message, bt.open_checkpoint, path)


def test_truncated_within_the_header(path):
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        bt.msgpack_load(path)
    assert "cut short" in str(caught.value)


def test_appended_bytes(path):
    for more in (b"\0", b"\xc0", path.read_bytes()):
        with pytest.raises(bt.CorruptCheckpointError):
            bt.msgpack_loads(path.read_bytes() + more + b"\0")


def test_damaged_array_names_its_leaf(path):
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(3.0).tobytes()) + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(bt.CorruptCheckpointError) as caught:
        bt.msgpack_load(path)
    text = str(caught.value)
    assert text.startswith(f"Corrupt checkpoint {path}: the checksum of ")
    assert "does not match" in text
    assert text.endswith("The file was damaged or cut short after it was written; use another copy.")
    # Small arrays lie in one pack, so any of its leaves may be named.
    assert re.search(r"\bw\b|layers/0/b", text), text


def test_damaged_index(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"structure") + 1] ^= 1
    path.write_bytes(data)
    message = (
        f"Corrupt checkpoint {path}: the checksum of its index does not match. The file was damaged or cut short "
        "after it was written; use another copy."
    )
    raises(bt.CorruptCheckpointError, message, bt.msgpack_load, path)


def test_text_mode_damage_is_named(path):
    for old, new in ((b"\r\n", b"\n"), (b"\n", b"\r\n")):
        damaged = path.parent / "damaged"
        damaged.write_bytes(path.read_bytes().replace(old, new))
        with pytest.raises(bt.CorruptCheckpointError) as caught:
            bt.msgpack_load(damaged)
        assert "text" in str(caught.value).replace(str(damaged), "")


def test_future_version(path):
    data = bytearray(path.read_bytes())
    data[len(layout.MAGIC) + 2] = 2
    path.write_bytes(data)
    message = (
        f"The checkpoint {path} has format version 2, and this version of braintools_ckpt reads version 1. Run: pip "
        "install --upgrade braintools-ckpt"
    )
    error = raises(bt.UnsupportedVersionError, message, bt.msgpack_load, path)
    assert isinstance(error, bt.CorruptCheckpointError)
    raises(bt.UnsupportedVersionError, message, bt.open_checkpoint, path)


def test_too_large(intact):
    size = intact.stat().st_size
    message = f"Checkpoint data too large: {intact} has {size} bytes, which exceeds maximum 10 bytes (max_size=)."
    raises(bt.CheckpointTooLargeError, message, bt.msgpack_load, intact, max_size=10)


@pytest.mark.parametrize("mmap", [False, True])
def test_damage_changes_no_object(path, mmap):
    path.write_bytes(path.read_bytes()[:-1])
    target = copy_tree(TREE) | {"s": brainstate.ParamState(jnp.zeros(2))}
    before = copy_tree(target)
    with pytest.raises(bt.CorruptCheckpointError):
        bt.msgpack_load(path, target, mismatch="ignore", mmap=mmap)
    assert_same(before, target)


# --- the system ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unprivileged():
    """Give up the rights of root for a while, who may do everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public_folder():
    """A directory that others can enter, unlike pytest's own."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_permission_denied_to_read(public_folder):
    path = public_folder / "x"
    bt.msgpack_save(path, TREE)
    path.chmod(0)
    for load in (bt.msgpack_load, bt.open_checkpoint):
        with unprivileged(), pytest.raises(PermissionError) as caught:
            load(path)
        assert str(caught.value) == f"[Errno 13] Permission denied: '{path}'"
        assert caught.value.filename == str(path)


def test_permission_denied_to_write(public_folder):
    path = public_folder / "x"
    bt.msgpack_save(path, TREE)
    public_folder.chmod(0o555)
    for name in ("x", "new", "deeper/new"):
        with unprivileged(), pytest.raises(PermissionError) as caught:
            bt.msgpack_save(public_folder / name, {"a": 1})
        assert caught.value.errno == errno.EACCES
        assert str(public_folder) in str(caught.value)
        assert ".tmp" not in str(caught.value)
    assert os.listdir(public_folder) == ["x"]
    assert_same(TREE, bt.msgpack_load(path))


def test_permission_denied_in_the_background(public_folder):
    public_folder.chmod(0o555)
    manager = bt.AsyncManager()
    with unprivileged():
        bt.msgpack_save(public_folder / "x", {"a": 1}, async_manager=manager)
        with pytest.raises(PermissionError, match=str(public_folder)):
            manager.close()
    assert os.listdir(public_folder) == []


DISK_FULL = """
    import os, resource, signal, sys
    import numpy as np
    import braintools_ckpt as bt

    path = sys.argv[1]
    bt.msgpack_save(path, {"w": np.arange(3.0)})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    for tree in ({"w": np.ones(10**6)}, [np.ones(100)] * 3 + [np.ones(10**5), np.ones(10**5)]):
        for durable in (True, False):
            try:
                bt.msgpack_save(path, tree, durable=durable)
            except OSError as error:
                assert error.filename == path, error.filename
                assert str(error) == f"[Errno 27] File too large: {path!r}", str(error)
            else:
                raise SystemExit("no error")
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)], os.listdir(os.path.dirname(path))
    assert bt.msgpack_load(path)["w"].tolist() == [0, 1, 2]
    print("done")
"""


def test_a_disk_that_is_full(tmp_path):
    """A limit on the size of files is as good as a full disk: write() fails midway."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DISK_FULL), str(tmp_path / "x")],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.mark.parametrize("failing", ["write", "writev", "pwrite", "pwritev", "fsync", "replace", "posix_fallocate"])
def test_no_space_left(intact, failing, monkeypatch):
    if not hasattr(os, failing):
        pytest.skip(f"no os.{failing} here")
    called = []

    def full(*args, **kwargs):
        called.append(failing)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with contextlib.suppress(OSError):
        bt.msgpack_save(intact.parent / "other", {"w": np.ones(10_000)})
    if not called:
        (intact.parent / "other").unlink()
        pytest.skip(f"os.{failing} is not used")
    with pytest.raises(OSError, match="No space left on device") as caught:
        bt.msgpack_save(intact, {"w": np.ones(10_000)})
    assert caught.value.errno == errno.ENOSPC
    assert str(intact) in str(caught.value)


def test_a_full_device_as_a_file_object():
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left on device"),
    ):
        bt.msgpack_save(file, {"w": np.ones(10_000)})


def test_a_file_object_that_fails(intact):
    class Failing(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise ConnectionError("the line is dead")

    with pytest.raises(ConnectionError, match="the line is dead"):
        bt.msgpack_save(Failing(), TREE)


def test_a_file_object_that_writes_little_by_little():
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data)[:100])

    file = Slow()
    bt.msgpack_save(file, TREE)
    assert_same(TREE, bt.msgpack_loads(file.getvalue()))


def test_a_file_in_the_place_of_a_directory(intact):
    with pytest.raises(NotADirectoryError, match="Cannot make the directory of the checkpoint") as caught:
        bt.msgpack_save(intact / "x", TREE)
    assert str(intact) in str(caught.value)
    with pytest.raises(bt.CheckpointNotFoundError, match="Checkpoint not found"):
        bt.msgpack_load(intact / "x")


def test_a_name_that_is_too_long(intact):
    name = str(intact.parent / ("x" * 300))
    raises(OSError, f"[Errno 36] File name too long: {name!r}", bt.msgpack_save, name, TREE)


def test_a_name_that_is_nearly_too_long(tmp_path):
    for length in (200, 240, 255):
        path = tmp_path / ("x" * length)
        bt.msgpack_save(path, {"a": 1})
        assert bt.msgpack_load(path) == {"a": 1}
    assert len(os.listdir(tmp_path)) == 3


# --- arguments ----------------------------------------------------------------------------------------------

FILE = "filename must be a str, a PathLike or a binary file object, got {}."
CHOICES = "Must be one of 'error', 'warn', or 'ignore'."

#: name -> what is called with the path of a checkpoint, the type and the whole message of the error
ARGUMENTS = {
    "save to an int": (lambda path: bt.msgpack_save(5, {}), TypeError, FILE.format("int")),
    "save to None": (lambda path: bt.msgpack_save(None, {}), TypeError, FILE.format("NoneType")),
    "save to bytes": (lambda path: bt.msgpack_save(b"x", {}), TypeError, FILE.format("bytes")),
    "load from an int": (lambda path: bt.msgpack_load(5), TypeError, FILE.format("int")),
    "load from a list": (lambda path: bt.msgpack_load(["x"]), TypeError, FILE.format("list")),
    "save to nothing": (lambda path: bt.msgpack_save("", {}), ValueError, "filename is empty."),
    "load from nothing": (lambda path: bt.msgpack_load(""), ValueError, "filename is empty."),
    "save to a text file": (
        lambda path: bt.msgpack_save(io.StringIO(), {}),
        TypeError,
        "Cannot write a checkpoint to a text file. Open it with mode 'wb'.",
    ),
    "load from a text file": (
        lambda path: bt.msgpack_load(io.StringIO("x")),
        TypeError,
        "Cannot read a checkpoint from a text file. Open it with mode 'rb'.",
    ),
    "data": (
        lambda path: bt.msgpack_loads("x"),
        TypeError,
        "data must be bytes-like, got str. To load a file, use msgpack_load.",
    ),
    "format": (
        lambda path: bt.msgpack_save(path, {}, format="v2"),
        ValueError,
        "format must be one of 'v1', 'flax', got 'v2'.",
    ),
    "mismatch": (
        lambda path: bt.msgpack_load(path, TREE, mismatch="raise"),
        ValueError,
        f"Invalid mismatch mode: 'raise'. {CHOICES}",
    ),
    "units": (
        lambda path: bt.msgpack_load(path, TREE, units="si"),
        ValueError,
        "units must be one of 'exact', 'convert', got 'si'.",
    ),
    "arrays": (
        lambda path: bt.msgpack_load(path, arrays="torch"),
        ValueError,
        "arrays must be one of 'saved', 'numpy', 'jax', got 'torch'.",
    ),
    "raw and target": (
        lambda path: bt.msgpack_load(path, TREE, raw=True),
        ValueError,
        "raw=True gives the plain state dict and takes no target; pass one or the other.",
    ),
    "metadata and flax": (
        lambda path: bt.msgpack_save(path, {}, format="flax", metadata={"a": 1}),
        ValueError,
        "format='flax' has no place for metadata: put it into the tree, or use format='v1'.",
    ),
    "metadata keys": (
        lambda path: bt.msgpack_save(path, {}, metadata={1: 1}),
        bt.SerializationError,
        "metadata must be a mapping with string keys, got dict with keys [1].",
    ),
    "metadata type": (
        lambda path: bt.msgpack_save(path, {}, metadata=[1]),
        bt.SerializationError,
        "metadata must be a mapping with string keys, got list.",
    ),
    "metadata value": (
        lambda path: bt.msgpack_save(path, {}, metadata={"a": object()}),
        bt.SerializationError,
        "Cannot save a value of type object at path metadata/a: no handler is registered for it. Decorate the class "
        "with @braintools_ckpt.serializable, or call msgpack_register_serialization.",
    ),
    "rename of nothing": (
        lambda path: bt.msgpack_load(path, TREE, rename={"old": "new"}),
        ValueError,
        "rename= names the path 'old', which the checkpoint does not have.",
    ),
    "register an object": (
        lambda path: bt.msgpack_register_serialization(5, dict, dict),
        bt.RegistrationError,
        "Only a class can be registered, got 5.",
    ),
    "register no function": (
        lambda path: bt.msgpack_register_serialization(new_class(), 5, dict),
        bt.RegistrationError,
        "ty_to_state_dict must be a function, got int.",
    ),
    "register with one name of fields": (
        lambda path: bt.serializable(fields="abc")(new_class()),
        bt.RegistrationError,
        "fields and static must be lists of names, got a single string.",
    ),
    "register version 0": (
        lambda path: bt.serializable(version=0)(new_class()),
        bt.RegistrationError,
        "version must be an integer of 1 or more, got 0.",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments(name, intact):
    function, kind, message = ARGUMENTS[name]
    raises(kind, message, function, intact)


#: Here the type and what the message names are enough.
MORE_ARGUMENTS = {
    "async_manager": (lambda path: bt.msgpack_save(path, {}, async_manager=5), TypeError, "async_manager"),
    "max_size": (lambda path: bt.msgpack_load(path, max_size="1"), TypeError, "max_size"),
    "rename": (lambda path: bt.msgpack_load(path, TREE, rename=5), TypeError, "rename"),
    "rename value": (lambda path: bt.msgpack_load(path, TREE, rename={"w": 5}), TypeError, "rename"),
    "rename function": (lambda path: bt.msgpack_load(path, TREE, rename=lambda p: 5), TypeError, "rename"),
    "NUL in the name": (lambda path: bt.msgpack_save("a\0b", {}), ValueError, "null"),
    "NUL in the name to load": (lambda path: bt.msgpack_load("a\0b"), ValueError, "null"),
}


@pytest.mark.parametrize("name", MORE_ARGUMENTS)
def test_more_wrong_arguments(name, intact):
    function, kind, word = MORE_ARGUMENTS[name]
    with pytest.raises(kind, match=word):
        function(intact)


def test_a_file_that_cannot_be_written(intact):
    with open(intact, "rb") as file, pytest.raises((OSError, TypeError, ValueError), match="wb"):
        bt.msgpack_save(file, TREE)


def test_a_file_that_cannot_be_read(tmp_path):
    with (
        open(tmp_path / "x", "wb") as file,
        pytest.raises((OSError, TypeError, ValueError), match="rb") as caught,
    ):
        bt.msgpack_load(file)
    assert not isinstance(caught.value, bt.CorruptCheckpointError)


def test_a_closed_manager(intact):
    manager = bt.AsyncManager()
    manager.close()
    message = "Cannot save with a closed AsyncManager. Make a new one."
    raises(RuntimeError, message, bt.msgpack_save, intact, {}, async_manager=manager)


# --- the tree -----------------------------------------------------------------------------------------------


class Unknown:
    pass


@dataclasses.dataclass
class Known:
    value: Any = None


UNSAVABLE = "Cannot save a value of type {} at path net/0/w: no handler is registered for it. "
REGISTER = "Decorate the class with @braintools_ckpt.serializable, or call msgpack_register_serialization."
FUNCTIONS = "Functions and classes are not saved; take it out of the tree, or hold it in a static field."
OBJECTS = (
    "Cannot save the object array at path net/0/w: its elements are Python objects. Save a list of them, or an array "
    "of a plain dtype."
)

VALUES = {
    "unknown class": (Unknown(), UNSAVABLE.format("test_bad_input.Unknown") + REGISTER),
    "object": (object(), UNSAVABLE.format("object") + REGISTER),
    "iterator": (iter([]), UNSAVABLE.format("list_iterator") + REGISTER),
    "module": (os, UNSAVABLE.format("module") + REGISTER),
    "function": (len, UNSAVABLE.format("builtin_function_or_method") + FUNCTIONS),
    "lambda": (lambda x: x, UNSAVABLE.format("function") + FUNCTIONS),
    "class": (Unknown, UNSAVABLE.format("type") + FUNCTIONS),
    "dataclass itself": (Known, UNSAVABLE.format("type") + FUNCTIONS),
    "object array": (np.array([Unknown()]), OBJECTS),
    "object field": (np.zeros(2, [("a", "O")]), OBJECTS),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_values_that_cannot_be_saved(name, asynchronous, intact):
    value, message = VALUES[name]
    tree = {"ok": 1, "net": [{"w": value}]}
    with bt.AsyncManager() as manager:
        manager = manager if asynchronous else None
        error = raises(bt.SerializationError, message, bt.msgpack_save, intact, tree, async_manager=manager)
    assert isinstance(error, TypeError)
    raises(bt.SerializationError, message, bt.msgpack_dumps, tree)


def test_an_unknown_target():
    message = "Cannot load into a test_bad_input.Unknown at path net/0: no handler is registered for it. " + REGISTER
    data = bt.msgpack_dumps({"net": [1]})
    raises(bt.SerializationError, message, bt.msgpack_loads, data, {"net": [Unknown()]})


def test_a_key_that_cannot_be_saved():
    for key in (Unknown, len, Known):
        with pytest.raises(bt.SerializationError, match="key .*at path net"):
            bt.msgpack_dumps({"net": {key: 1}})


@pytest.mark.parametrize("name", ["list", "dict", "dataclass", "deque", "state"])
def test_cycles(name, intact):
    import collections

    if name == "list":
        cycle: Any = [0]
        cycle.append(cycle)
        where = "net/1"
    elif name == "dict":
        cycle = {}
        cycle["x"] = [cycle]
        where = "net/x/0"
    elif name == "dataclass":
        cycle = Known()
        cycle.value = (cycle,)
        where = "net/value/0"
    elif name == "deque":
        cycle = collections.deque()
        cycle.append(cycle)
        where = "net/0"
    else:
        cycle = brainstate.State(0)
        cycle.value = [cycle]
        where = "net/0"
    with pytest.raises(bt.SerializationError) as caught:
        bt.msgpack_save(intact, {"ok": 1, "net": cycle})
    kinds = {"dataclass": "test_bad_input.Known", "state": "brainstate.State", "deque": "collections.deque"}
    kind = kinds.get(name, name)
    assert str(caught.value) == (
        f"Cannot save a cycle: the {kind} at path {where} contains itself. Break the cycle, or register the type with "
        "a handler that leaves it out."
    )


def test_nesting_beyond_the_limit(intact):
    tree: Any = 1
    for _ in range(3000):
        tree = {"k": tree}
    with pytest.raises(bt.SerializationError) as caught:
        bt.msgpack_save(intact, tree)
    assert re.fullmatch(
        r"Cannot save a tree that nests deeper than \d+ levels \(at path k/k/[k/]* \.\.\. [k/]*/k/k\)\. Flatten it, "
        r"for example into a list with indices\.",
        str(caught.value),
    ), str(caught.value)
    assert "//" not in str(caught.value)


def test_the_limit_of_nesting_is_the_one_that_the_message_tells():
    tree: Any = 1
    for _ in range(3000):
        tree = [tree]
    with pytest.raises(bt.SerializationError) as caught:
        bt.msgpack_dumps(tree)
    limit = int(re.search(r"deeper than (\d+) levels", str(caught.value)).group(1))
    for _ in range(3000 - limit):
        tree = tree[0]
    data = bt.msgpack_dumps(tree)
    for back in (bt.msgpack_loads(data), bt.msgpack_loads(data, tree)):
        for _ in range(limit):
            (back,) = back
        assert back == 1
    with pytest.raises(bt.SerializationError):
        bt.msgpack_dumps([tree])


def test_the_limit_does_not_depend_on_the_callers_stack():
    tree: Any = 1
    for _ in range(300):
        tree = [tree]

    def deeper(n):
        return deeper(n - 1) if n else bt.msgpack_loads(bt.msgpack_dumps(tree), tree)

    assert deeper(max(0, 800 - len(traceback.extract_stack()))) == tree


def test_keys_that_collide():
    message = (
        "Dict keys do not have a unique string representation. Collisions: {'1': [1, '1']}. A plain state dict cannot "
        "hold them; format='v1' can."
    )
    tree = {"net": {1: "int", "1": "str"}}
    raises(bt.SerializationError, message, bt.msgpack_dumps, tree["net"], format="flax")
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)))
    assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), tree))
    for function in (lambda: bt.msgpack_dumps(tree, format="flax"), lambda: bt.msgpack_to_state_dict(tree)):
        with pytest.raises(bt.SerializationError, match="Collisions.*at path net|at path net.*Collisions"):
            function()


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_text_that_is_no_utf8_comes_back(text):
    for tree in ({"a": text}, {text: 1}, {"a": {text, "b"}}, [(text,)]):
        assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree)))
        assert_same(tree, bt.msgpack_loads(bt.msgpack_dumps(tree), tree))


FLAX = "Cannot save {} in the format of flax and braintools, which has no place for it. Save it with format='v1'."


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({1, 2}, "a value of type set at path net/x"),
        (np.array(["a"]), "an array of dtype <U1 at path net/x"),
        (2**64, "an int of more than 64 bits at path net/x"),
    ],
    ids=["set", "text", "int"],
)
def test_what_the_legacy_format_cannot_hold(value, what, intact):
    message = FLAX.format(what)
    raises(bt.SerializationError, message, bt.msgpack_save, intact, {"net": {"x": value}}, format="flax")


# --- handlers -----------------------------------------------------------------------------------------------


def keep(target, state, mismatch):
    return target


#: what a handler gives, the error and its message
HANDLERS = {
    "list": (
        lambda x: [1],
        bt.HandlerError,
        "The handler of {} must return a dict with string keys, got list (at path net/0).",
    ),
    "None": (
        lambda x: None,
        bt.HandlerError,
        "The handler of {} must return a dict with string keys, got NoneType (at path net/0).",
    ),
    "keys": (
        lambda x: {1: 2},
        bt.HandlerError,
        "A state dict must only have string keys, got key 1 of type int from the handler of {} (at path net/0).",
    ),
    "raises": (
        lambda x: 1 / 0,
        bt.HandlerError,
        "The handler of {} failed: ZeroDivisionError: division by zero (at path net/0).",
    ),
    "value": (
        lambda x: {"f": [len]},
        bt.SerializationError,
        "Cannot save a value of type builtin_function_or_method at path net/0/f/0: no handler is registered for it. "
        + FUNCTIONS,
    ),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_that_give_no_state(name, intact):
    give, kind, message = HANDLERS[name]
    cls = new_class()
    bt.msgpack_register_serialization(cls, give, keep)
    error = raises(kind, message.format(cls.__name__), bt.msgpack_save, intact, {"net": [cls()]})
    assert isinstance(error, TypeError)
    if name == "raises":
        assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_handler_that_returns_the_object_itself(intact):
    cls = new_class()
    bt.msgpack_register_serialization(cls, lambda x: {"me": x}, keep)
    with pytest.raises(bt.SerializationError, match=f"Cannot save a cycle: the .*{cls.__name__} at path net/me"):
        bt.msgpack_save(intact, {"net": cls()})


def test_a_restore_function_that_raises():
    cls = new_class()
    bt.msgpack_register_serialization(cls, lambda x: {"a": 1}, lambda target, state, mismatch: 1 / 0)
    message = (
        f"The handler of {cls.__name__} failed to restore the value at path net/0: ZeroDivisionError: division by zero"
    )
    target = {"net": [cls()], "s": brainstate.ParamState(jnp.zeros(2))}
    data = bt.msgpack_dumps({"net": [cls()], "s": brainstate.ParamState(jnp.ones(2))})
    error = raises(bt.HandlerError, message, bt.msgpack_loads, data, target)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert_same(jnp.zeros(2), target["s"].value)


def test_a_restore_function_that_changes_its_target_and_raises():
    cls = new_class()

    def restore(target, state, mismatch):
        target.a = state["a"]
        raise RuntimeError("too late")

    bt.msgpack_register_serialization(cls, lambda x: {"a": x.a}, restore)
    target = cls(a=0)
    with pytest.raises(bt.HandlerError, match="RuntimeError: too late"):
        bt.msgpack_loads(bt.msgpack_dumps(cls(a=1)), target)
    assert target.a == 0


def test_a_handler_that_is_registered_twice():
    cls = new_class()
    bt.msgpack_register_serialization(cls, lambda x: {}, keep)
    with pytest.raises(bt.RegistrationError) as caught:
        bt.msgpack_register_serialization(cls, lambda x: {}, keep)
    text = str(caught.value)
    assert text.startswith(f'a serialization handler for "{cls.__name__}" is already registered: ')
    assert text.endswith("Pass override=True to replace it.")
    assert " at 0x" not in text
    assert isinstance(caught.value, ValueError)
    bt.msgpack_register_serialization(cls, lambda x: {"a": 1}, keep, override=True)
    assert bt.msgpack_to_state_dict(cls()) == {"a": 1}


def test_builtin_types_are_registered_already():
    with pytest.raises(bt.RegistrationError, match='a serialization handler for "dict" is already') as caught:
        bt.msgpack_register_serialization(dict, lambda x: {}, keep)
    assert " at 0x" not in str(caught.value)


def test_an_unknown_tag_comes_back_as_a_plain_map_and_a_warning_names_it():
    cls = new_class()
    bt.msgpack_register_serialization(cls, lambda x: {"a": [1, 2]}, keep, name="lab.Gone")
    data = bt.msgpack_dumps({"net": cls(), "n": 1})
    code = f"""
    import warnings, braintools_ckpt as bt
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        back = bt.msgpack_loads({data!r})
    assert back == {{"net": {{"a": [1, 2]}}, "n": 1}}, back
    assert len(record) == 1 and "lab.Gone" in str(record[0].message), [str(r.message) for r in record]
    print("done")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr


# --- versions of classes ------------------------------------------------------------------------------------


def versioned(name, version, **options):
    @bt.serializable(name=name, version=version, override=True, **options)
    @dataclasses.dataclass
    class Versioned:
        a: int = 0

    return Versioned


def both(data, cls, kind, pattern):
    """Check the same error with a target and without."""
    for target in (None, {"net": cls()}):
        with pytest.raises(kind, match=pattern) as caught:
            bt.msgpack_loads(data, target)
        assert type(caught.value) is kind
        assert ".." not in str(caught.value)


def test_a_version_without_an_upgrade():
    data = bt.msgpack_dumps({"net": versioned("tests.a", 2)(1)})
    cls = versioned("tests.a", 3)
    pattern = (
        "The checkpoint holds a .*Versioned of version 2, and no upgrade from 2 to 3 is registered. Pass "
        "upgrade=\\{2: function\\} where .*Versioned is registered."
    )
    both(data, cls, bt.HandlerError, pattern)


def test_a_newer_version_than_the_code():
    data = bt.msgpack_dumps({"net": versioned("tests.b", 2)(1)})
    cls = versioned("tests.b", 1)
    pattern = "The checkpoint holds a .*Versioned of version 2, but the class registered here has version 1."
    both(data, cls, bt.HandlerError, pattern)


def test_an_upgrade_that_raises():
    data = bt.msgpack_dumps({"net": versioned("tests.c", 1)(1)})
    cls = versioned("tests.c", 2, upgrade={1: lambda state: 1 / 0})
    both(data, cls, bt.HandlerError, "The upgrade of .*Versioned from version 1 failed: ZeroDivisionError")


# --- open_checkpoint ----------------------------------------------------------------------------------------


def test_a_path_that_the_checkpoint_does_not_have(intact):
    with bt.open_checkpoint(intact) as checkpoint:
        message = f"The checkpoint {intact} has nothing at the path 'stepp'. Did you mean 'step'?"
        for read in (checkpoint.__getitem__, checkpoint.read):
            with pytest.raises(KeyError) as caught:
                read("stepp")
            assert caught.value.args == (message,)
        with pytest.raises(TypeError, match="The value at the path 'step' is no array but int"):
            checkpoint.read("step")
        with pytest.raises(IndexError):
            checkpoint.read("w", 3)


def test_a_closed_checkpoint(intact):
    with bt.open_checkpoint(intact) as checkpoint:
        pass
    with pytest.raises(ValueError, match="closed"):
        checkpoint["w"]
