"""AsyncManager: saves that are written while the program goes on.

What a save takes in the program's own time, ``api`` does: it walks the tree, holds or copies the arrays, and makes a
task of all the rest. Here tasks are run by threads, so many at a time, and nothing that fails goes unseen.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np

from .errors import PendingSaveError
from .storage.turns import InTurn, in_background, is_background

OnFull: TypeAlias = Literal["wait", "skip", "raise"]

_log = logging.getLogger("braintools_ckpt")
#: So that tasks are handed to threads in the order of the turns that they have taken, over all managers.
_handing_over = threading.RLock()
_here = threading.local()
#: Seconds after which a wait looks again: what is given up by being forgotten wakes nobody.
_NAP = 1.0


class SaveFuture(Future[Any]):
    """The outcome of one save in the background.

    Attributes
    ----------
    path : str or None
        Where the checkpoint goes.
    nbytes : int
        Size of the arrays that are held until it is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: str | None = None
        self.nbytes = 0
        #: The thread that cannot wait for the save: it has still to hand it over, or is doing it.
        self.owner: int | None = threading.get_ident()
        self.work: InTurn | None = None
        self.has_begun = self.has_ended = False
        self._free = threading.Lock()

    def take(self) -> bool:
        """Tell whether the caller is the first who wants to run the save."""
        return self._free.acquire(blocking=False)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and give what the save raised; it is not raised again by the manager."""
        error = super().exception(timeout)
        _unseen.discard(self)
        return error

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and raise what the save raised."""
        self.exception(timeout)
        return super().result(timeout)


#: Saves that failed, of which nobody has been told yet.
_unseen: set[SaveFuture] = set()


class AsyncManager:
    """Writes checkpoints in the background.

    Pass it as ``async_manager=`` to :func:`msgpack_save`. What is written are the values of the moment of the call:
    arrays of jax are held (on a CPU without a copy), numpy arrays are copied. Saves to one path are written in the
    order of the calls, and a load of that path waits for them.

    What fails in the background is raised once: at the next save (which is done nevertheless), at
    :meth:`wait_previous_save` or at :meth:`close`, with a note that names the checkpoint. If none of these comes any
    more, it is reported when the interpreter exits, and the exit code is 120, whatever else it would be (a child
    process that multiprocessing has forked only logs it). Saves that are pending then are finished first.

    Parameters
    ----------
    max_workers : int, default 1
        Number of threads, so of saves (to different paths) that are written at a time.
    max_pending : int, default 1
        Number of saves that may be unfinished, which bounds the memory that is held for them.
    on_full : {'wait', 'skip', 'raise'}, default 'wait'
        What to do with one more: wait until one has ended, leave it out (``msgpack_save`` then gives ``''``), or raise
        :class:`PendingSaveError`.

    Attributes
    ----------
    save_future : concurrent.futures.Future or None
        The last save.
    skipped : int
        Number of saves that were left out.

    Examples
    --------
    >>> import tempfile, os, numpy as np
    >>> from braintools_ckpt import AsyncManager, msgpack_load, msgpack_save
    >>> path = os.path.join(tempfile.mkdtemp(), "state.msgpack")
    >>> weights = np.ones(2)
    >>> with AsyncManager() as manager:
    ...     _ = msgpack_save(path, {"w": weights}, async_manager=manager)
    ...     weights += 1  # comes too late to be saved
    >>> msgpack_load(path)
    {'w': array([1., 1.])}
    """

    def __init__(self, max_workers: int = 1, *, max_pending: int = 1, on_full: OnFull = "wait") -> None:
        for name, number in (("max_workers", max_workers), ("max_pending", max_pending)):
            if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}.")
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full must be one of {', '.join(map(repr, get_args(OnFull)))}, got {on_full!r}.")
        self.max_workers = max_workers
        self.max_pending = max_pending
        self.on_full = on_full
        self.skipped = 0
        self._closed = False
        self._start()
        _managers.add(self)

    def _start(self) -> None:
        self.save_future: SaveFuture | None = None
        self.executor = ThreadPoolExecutor(self.max_workers, thread_name_prefix="braintools_ckpt")
        self._changed = threading.Condition()
        # Weakly, so that what Ctrl-C lets nobody hand over is not waited for; the others are held by the executor.
        self._pending: weakref.WeakSet[SaveFuture] = weakref.WeakSet()
        self._failed: list[SaveFuture] = []
        self._barriers: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        held = f"{self.pending} pending, {self.pending_bytes / 2**20:.1f} MiB held, {self.skipped} skipped"
        return f"<{type(self).__name__}: {held}{', closed' if self._closed else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError("An AsyncManager cannot be copied or pickled: its threads are of this process. Make a new one.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failed:  # noqa: BLE001  (it must not hide the exception that is on its way)
            text = "".join(traceback.format_exception_only(failed)).strip()
            error.add_note(f"Besides, a save in the background failed: {text}")

    @property
    def closed(self) -> bool:
        """Whether the manager takes no more saves."""
        return self._closed

    @property
    def pending(self) -> int:
        """Number of saves that have not ended."""
        return len(self._unfinished())

    @property
    def pending_bytes(self) -> int:
        """Bytes of the arrays that are held for saves that have not ended."""
        return sum(future.nbytes for future in self._unfinished())

    def _unfinished(self) -> list[SaveFuture]:
        with self._changed:
            return [future for future in self._pending if not future.has_ended]

    def reserve(self) -> SaveFuture | None:
        """Reserve room for one more save: wait for it, or do what ``on_full`` says.

        Returns
        -------
        SaveFuture or None
            The save to be, which has to be handed over by :meth:`save_async` or given back by :meth:`release`; None if
            it is to be left out.

        Raises
        ------
        PendingSaveError
            If there is no room and ``on_full`` is ``'raise'``.
        RuntimeError
            If the manager is closed.
        """
        with self._changed:
            self._check_open()
            unfinished = self._unfinished()
            if len(unfinished) >= self.max_pending and self.on_full == "skip":
                self.skipped += 1
                self._raise_failures()
                return None
            if len(unfinished) >= self.max_pending and self.on_full == "raise":
                raise PendingSaveError(
                    f"Cannot save: {len(unfinished)} of {self.max_pending} saves in the background have not ended "
                    f"({', '.join(map(_name, unfinished))}). Save less often, or make the AsyncManager with "
                    "on_full='wait' or a larger max_pending."
                )
            while self._others() >= self.max_pending:
                self._changed.wait(_NAP)
            self._check_open()
            future = SaveFuture()
            self._pending.add(future)
            return future

    def _others(self) -> int:
        """Count saves that this thread can wait for: not its own, nor what waits for those."""
        unfinished = [future for future in self._unfinished() if not (future.work and future.work.turn.waits_for_own())]
        if is_background():  # those that have not begun may stand behind it
            unfinished = [future for future in unfinished if future.has_begun]
        me = threading.get_ident()
        return sum(future.owner != me for future in unfinished)

    def release(self, future: SaveFuture) -> None:
        """Give back what was reserved.

        Parameters
        ----------
        future : SaveFuture
            What :meth:`reserve` gave.
        """
        future.cancel()
        self._forget(future)

    def _forget(self, future: SaveFuture) -> None:
        future.has_ended = True
        with self._changed:
            self._pending.discard(future)
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("Cannot save with a closed AsyncManager. Make a new one.")

    def save_async(self, task: Callable[[], Any]) -> SaveFuture | None:
        """Run a task in the background.

        Parameters
        ----------
        task : callable
            A function of no arguments. Tasks of your own are run one after the other.

        Returns
        -------
        SaveFuture or None
            The outcome; None if the task was left out.

        Raises
        ------
        RuntimeError
            If the manager is closed.
        PendingSaveError
            If there is no room and ``on_full`` is ``'raise'``.
        Exception
            What an earlier task raised, if nobody has seen it yet. This one is run nevertheless.
        """
        work = task if isinstance(task, InTurn) else InTurn(task, self)
        future: SaveFuture | None = work.slot or self.reserve()
        if future is None:
            return None
        future.path, future.nbytes, future.work = work.path, work.nbytes, work
        self.save_future = future
        try:
            handed_over = self._hand_over(work, future)
        except BaseException:  # Ctrl-C
            if future.take():
                work.give_up()
                self.release(future)
            raise
        if not handed_over:
            self._run(work, future)
        self._raise_failures(future)
        return future

    def _hand_over(self, work: InTurn, future: SaveFuture) -> bool:
        """Give a save to a thread; False if none can have it, and it is to be written now."""
        if getattr(_here, "hands_over", False) or work.turn.waits_for_own():
            return False  # a signal handler's save, in the midst of another one
        try:
            with _handing_over, in_background():  # a signal handler that comes now must not wait for it
                _here.hands_over = True
                work.turn.take()
                work.turn.hand_over()
                future.owner = None
                handed = self.executor.submit(self._work, work, future)
                # Whoever shuts the executor down and cancels what is in it, writes it.
                handed.add_done_callback(lambda handed: self._work(work, future) if handed.cancelled() else None)
        except RuntimeError as error:  # the executor was shut down, the interpreter ends, or there are too many threads
            _log.warning("No thread takes the save of %s (%s): it is written now.", _name(future), error)
            return False
        finally:
            _here.hands_over = False
        return True

    def _work(self, work: InTurn, future: SaveFuture) -> None:
        """Do a save in a thread that nobody else's Ctrl-C or exit concerns."""
        try:
            self._run(work, future)
        except BaseException as error:  # noqa: BLE001  (it is told where somebody asks)
            _log.error("The save of %s in the background ended with %r", _name(future), error)

    def _run(self, work: InTurn, future: SaveFuture) -> None:
        if not future.take():
            return
        try:
            future.owner, future.has_begun = threading.get_ident(), True
            with in_background():
                if not future.set_running_or_notify_cancel():
                    work.give_up()
                    return
                try:
                    result = work()
                except BaseException as error:
                    self._fail(future, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    future.set_result(result)
        finally:
            future.work = None
            self._forget(future)

    def _fail(self, future: SaveFuture, error: BaseException) -> None:
        _let_go(error)
        # Ctrl-C and sys.exit() would end whoever asks.
        told = error if isinstance(error, Exception) else RuntimeError(f"The save ended with {error!r}")
        told.add_note(f"This was in the background, in the save of {_name(future)}.")
        _log.error("The save of %s in the background failed: %r", _name(future), error)
        with self._changed:
            self._failed.append(future)
            _unseen.add(future)
        future.set_exception(told)

    def _raise_failures(self, begun: SaveFuture | None = None) -> None:
        with self._changed:
            failed = [future for future in self._failed if future in _unseen and future is not begun]
            self._failed = [future for future in self._failed if future is begun]
            errors = [future.exception() for future in failed]
        first, *others = errors or [None]
        if first is None:
            return
        for future, other in zip(failed[1:], others, strict=True):
            first.add_note(f"Besides, the save of {_name(future)} in the background failed: {other!r}")
        if begun is not None:
            first.add_note(f"The save that was asked for now, of {_name(begun)}, goes on.")
        raise first

    def add_barrier(self, barrier: Callable[[], object]) -> None:
        """Call a function before each wait.

        Parameters
        ----------
        barrier : callable
            Of no arguments; it returns when saves that are on their way to this manager have arrived.
        """
        if barrier not in self._barriers:
            self._barriers.append(barrier)

    def wait_previous_save(self) -> None:
        """Wait until all saves have ended; raise what has failed, once."""
        self._pass_barriers(self._wait)

    def close(self) -> None:
        """Wait for all saves and end the threads; then nothing can be saved any more.

        Raises
        ------
        Exception
            What failed in the background, if nobody has seen it yet.
        """
        self._pass_barriers(self._end)

    def _pass_barriers(self, go_on: Callable[[], None]) -> None:
        """Let arrive what is on its way; if that fails, as a loop did that saves, go on all the same."""
        failed: Exception | None = None
        for barrier in () if self._closed else self._barriers:
            try:
                barrier()
            except Exception as error:  # noqa: BLE001  (raised below)
                failed = failed or error
        try:
            go_on()
            self._raise_failures()
        except Exception as error:
            if failed is not None:
                error.add_note(f"Besides, a loop that saves has failed: {failed!r}")
            raise
        if failed is not None:
            raise failed

    def _wait(self) -> None:
        with self._changed:
            while self._others():
                self._changed.wait(_NAP)

    def _end(self) -> None:
        with self._changed:
            self._closed = True
        self._wait()
        self.executor.shutdown(wait=True)


def _let_go(error: BaseException) -> None:
    """Take the values of an error's frames away: they hold what was to be saved."""
    known: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in known:
        known.add(id(found))
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
    if error.__traceback__ is not None:  # this frame, which is not at its end
        error.__traceback__ = error.__traceback__.tb_next


def _name(future: SaveFuture) -> str:
    return future.path or "a task without a path"


_managers: weakref.WeakSet[AsyncManager] = weakref.WeakSet()


def _start_anew() -> None:
    """Leave what is pending to the parent process, where its threads are."""
    global _handing_over
    _handing_over = threading.RLock()
    _unseen.clear()
    for manager in _managers:
        manager._start()


class _FailsToFlush:
    """A standard stream that cannot be flushed when the interpreter ends, which then exits with the code 120."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        """Flush; at the very end, fail."""
        with contextlib.suppress(ValueError):  # it may be closed
            self._stream.flush()
        if sys.is_finalizing():
            raise RuntimeError("saves in the background failed, see above; so the exit code is 120")

    def __repr__(self) -> str:
        return "the end of the process"


def _report_unseen() -> None:
    """Tell of saves whose failure nobody was told of, and see that the exit code says so."""
    lost = 0
    for manager in list(_managers):
        for barrier in manager._barriers:
            with contextlib.suppress(Exception):  # jax tells of it itself
                barrier()
        for future in manager._unfinished():  # Ctrl-C while the interpreter waited for it
            print(f"\nThe save of {_name(future)} in the background was not finished.", file=sys.stderr)
            lost += 1
    for future in list(_unseen):
        print(f"\nThe save of {_name(future)} in the background failed, and nobody waited:", file=sys.stderr)
        traceback.print_exception(future.exception())
        lost += 1
    if lost:  # data that was not written is what Python has an exit code for, if it is its own streams'
        sys.stdout = _FailsToFlush(sys.stdout or sys.stderr)


atexit.register(_report_unseen)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
