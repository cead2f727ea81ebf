"""Many threads and processes at one path: readers see whole versions, and a new file has one author."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import braintools_ckpt as bt
from braintools_ckpt.tree.registry import Handler, Registry

ROOT = Path(__file__).parent.parent


def tree(version):
    """Give a tree of which each part says its version."""
    return {
        "large": np.full(20_000 + version % 7, version),
        "small": [np.full(3, version) for _ in range(20)],
        "version": version,
        ("key", version): version,
    }


def check(loaded):
    """Check that a tree is all of one version, and give that."""
    version = loaded["version"]
    assert len(loaded["large"]) == 20_000 + version % 7
    assert (loaded["large"] == version).all()
    assert all((part == version).all() for part in loaded["small"])
    assert loaded["key", version] == version
    return version


def read(path, number):
    """Load in one of several ways."""
    if number % 4 == 0:
        return check(bt.msgpack_load(path))
    if number % 4 == 1:
        return check(bt.msgpack_load(path, mmap=True))
    with bt.open_checkpoint(path) as checkpoint:
        version = checkpoint["version"]
        if number % 4 == 2:
            checkpoint.verify()
        assert checkpoint.read("large", slice(-5, None)).tolist() == [version] * 5
        assert checkpoint["small"][7].tolist() == [version] * 3
        return check(checkpoint.load())


COMMON = "import sys; sys.path.insert(0, 'tests'); from test_concurrency import *; path = sys.argv[1]\n"
WRITER = (
    COMMON
    + """
first = int(sys.argv[2])
for version in range(first, first + 25):
    bt.msgpack_save(path, tree(version), durable=version % 5 == 0, compression="zstd" if version % 2 else None)
with bt.AsyncManager() as manager:
    for version in range(first + 25, first + 50):
        bt.msgpack_save(path, tree(version), durable=False, async_manager=manager)
"""
)
READER = (
    COMMON
    + """
seen, loads = set(), 0
print("ready", flush=True)
while os.path.exists(path + ".running"):
    seen.add(read(path, loads))
    loads += 1
print(loads, len(seen))
"""
)


def start(code, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, **options)


def ended(process):
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return out.split()


def test_processes_that_save_and_load_one_path(tmp_path):
    path = tmp_path / "state.ckpt"
    running = tmp_path / "state.ckpt.running"
    running.touch()
    bt.msgpack_save(path, tree(0))
    readers = [start(READER, path) for _ in range(2)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for writer in [start(WRITER, path, number * 1000) for number in range(1, 4)]:
        ended(writer)
    running.unlink()
    loads = [list(map(int, ended(reader))) for reader in readers]
    assert check(bt.msgpack_load(path)) % 1000 == 49
    assert os.listdir(tmp_path) == ["state.ckpt"]
    assert all(seen > 3 for _, seen in loads)
    print(f"150 saves by 3 processes, {sum(n for n, _ in loads)} loads by 2 others; 0 of them mixed or failed")


def test_threads_that_save_and_load_one_path(tmp_path):
    path = tmp_path / "state.ckpt"
    bt.msgpack_save(path, tree(0))
    stop, seen = threading.Event(), []

    def save(number):
        with bt.AsyncManager() as manager:
            for version in range(number * 1000, number * 1000 + 40):
                bt.msgpack_save(path, tree(version), durable=False, async_manager=manager if version % 3 else None)

    def load(number):
        for turn in range(number, 10**9):
            seen.append(read(path, turn))
            if stop.is_set():
                return

    with ThreadPoolExecutor(7) as pool:
        readers = [pool.submit(load, number) for number in range(4)]
        try:
            list(pool.map(save, range(1, 4)))
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert len(set(seen)) > 3
    assert check(bt.msgpack_load(path)) % 1000 == 39
    assert os.listdir(tmp_path) == ["state.ckpt"]


AUTHOR = (
    COMMON
    + """
number, start = int(sys.argv[2]), float(sys.argv[3])
won = []
time.sleep(max(0, start - time.time()))
for turn in range(40):
    try:
        with bt.AsyncManager() as manager:
            bt.msgpack_save(f"{path}-{turn}", tree(number), overwrite=False, durable=False,
                            async_manager=manager if turn % 2 else None)
        won.append(turn)
    except bt.AlreadyExistsError:
        pass
print(*won)
"""
)


def test_a_new_file_has_one_author(tmp_path):
    path = tmp_path / "new"
    begin = time.time() + 3
    authors = [start(AUTHOR, path, number, begin) for number in range(4)]
    won = {number: list(map(int, ended(author))) for number, author in enumerate(authors)}
    counts = collections.Counter(turn for turns in won.values() for turn in turns)
    assert counts == dict.fromkeys(range(40), 1)
    for number, turns in won.items():
        for turn in turns:
            assert check(bt.msgpack_load(f"{path}-{turn}")) == number
    assert sorted(os.listdir(tmp_path)) == sorted(f"new-{turn}" for turn in range(40))


def test_a_new_file_has_one_author_among_threads(tmp_path):
    for turn in range(20):
        path, barrier = tmp_path / f"new-{turn}", threading.Barrier(8)

        def save(number, path=path, barrier=barrier):
            barrier.wait(30)
            try:
                with bt.AsyncManager() as manager:
                    options = {"async_manager": manager} if number % 2 else {}
                    bt.msgpack_save(path, tree(number), overwrite=False, durable=False, **options)
            except bt.AlreadyExistsError:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(save, range(8)) if number is not None]
        assert len(winners) == 1
        assert check(bt.msgpack_load(path)) == winners[0]


# --- the registry -----------------------------------------------------------------------------------------------


def test_one_of_many_threads_registers_a_class():
    for _ in range(50):
        registry, cls, barrier = Registry(), type("Thing", (), {}), threading.Barrier(8)

        def register(number, registry=registry, cls=cls, barrier=barrier):
            barrier.wait(30)
            try:
                registry.register(cls, Handler())
            except bt.RegistrationError:
                return 0
            return 1

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(register, range(8))) == 1


def test_classes_are_registered_saved_and_loaded_by_many_threads():
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait(30)
        for turn in range(60):
            name = f"test_concurrency.{number}.{turn}"
            cls = type(f"Thing{number}", (), {"__init__": lambda self, value=0: setattr(self, "value", value)})
            bt.msgpack_register_serialization(
                cls,
                lambda thing: {"value": thing.value},
                lambda target, state: type(target)(state["value"]),
                name=name,
            )
            data = bt.msgpack_dumps({"things": [cls(turn), cls(number)], "tuple": (1, 2.5)})
            loaded = bt.msgpack_loads(data, {"things": [cls(), cls()], "tuple": (0, 0.0)})
            assert [thing.value for thing in loaded["things"]] == [turn, number]
            assert bt.msgpack_loads(data)["things"][0]["value"] == turn
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_handler_is_replaced_while_others_use_it():
    class Shared:
        def __init__(self, value):
            self.value = value

    def register(factor):
        bt.msgpack_register_serialization(
            Shared,
            lambda thing: {"value": thing.value * factor, "factor": factor},
            lambda target, state: Shared(state["value"] // state["factor"]),
            override=True,
            name="test_concurrency.Shared",
        )

    register(1)
    stop = threading.Event()

    def use():
        while not stop.is_set():
            state = bt.msgpack_to_state_dict(Shared(5))
            assert state["value"] == 5 * state["factor"]
            assert bt.msgpack_loads(bt.msgpack_dumps([Shared(5)]), [Shared(0)])[0].value == 5

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(4)]
        try:
            for factor in range(1, 150):
                register(factor)
        finally:
            stop.set()
        for user in users:
            user.result()


def test_temporary_files_of_writers_at_work_are_left_alone(tmp_path):
    """A start that cleans up does not take away what others are writing."""
    from braintools_ckpt.storage import clean_temporaries

    path, stop, cleaned = tmp_path / "state.ckpt", threading.Event(), []

    def clean():
        while not stop.is_set():
            cleaned.extend(clean_temporaries(tmp_path))

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for version in range(100):
            bt.msgpack_save(path, tree(version), durable=False)
            assert bt.msgpack_load(path)["version"] == version
    finally:
        stop.set()
        cleaner.join()
    assert cleaned == []
