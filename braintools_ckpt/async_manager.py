"""AsyncManager: saves that are written while the program goes on.

What a save takes in the program's own time, ``api`` does: it walks the tree, holds or copies the arrays, and makes a
task of all the rest. Here tasks are run by threads, so many at a time, and nothing that fails goes unseen.
"""

from __future__ import annotations

import atexit
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

from .errors import PendingSaveError
from .storage.turns import InTurn

OnFull: TypeAlias = Literal["wait", "skip", "raise"]

_log = logging.getLogger("braintools_ckpt")
#: So that tasks are handed to threads in the order of the turns that they have taken, over all managers.
_handing_over = threading.Lock()


class SaveFuture(Future[Any]):
    """The outcome of one save in the background.

    Attributes
    ----------
    path : str or None
        Where the checkpoint goes.
    nbytes : int
        Size of the arrays that are held until it is there.
    """

    def __init__(self, path: str | None = None, nbytes: int = 0) -> None:
        super().__init__()
        self.path = path
        self.nbytes = nbytes
        self._is_taken = False

    def take(self) -> bool:
        """Tell whether the caller is the first who wants to run the save."""
        with _handing_over:
            first, self._is_taken = not self._is_taken, True
        return first

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
    more, it is reported when the interpreter exits, and the exit code is 120. Saves that are pending then are finished
    first.

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
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}.")
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full must be one of {', '.join(map(repr, get_args(OnFull)))}, got {on_full!r}.")
        self.max_workers = max_workers
        self.max_pending = max_pending
        self.on_full = on_full
        self.skipped = 0
        self._closed = False
        self._arrivals: list[Callable[[], object]] = []
        self._start()
        _managers.add(self)

    def _start(self) -> None:
        self.save_future: SaveFuture | None = None
        self.executor = ThreadPoolExecutor(self.max_workers, thread_name_prefix="braintools_ckpt")
        self._changed = threading.Condition()
        self._pending: set[SaveFuture] = set()
        self._failed: list[SaveFuture] = []

    def __repr__(self) -> str:
        held = f"{self.pending} pending, {self.pending_bytes / 2**20:.1f} MiB held, {self.skipped} skipped"
        return f"<{type(self).__name__}: {held}{', closed' if self._closed else ''}>"

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
            error.add_note(f"Besides, a save in the background failed: {failed!r}")

    @property
    def pending(self) -> int:
        """Number of saves that have not ended."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """Bytes of the arrays that are held for saves that have not ended."""
        with self._changed:
            return sum(future.nbytes for future in self._pending)

    def make_room(self) -> bool:
        """See that one more save may begin: wait, or do what ``on_full`` says.

        Returns
        -------
        bool
            False if the save is to be left out.

        Raises
        ------
        PendingSaveError
            If there is no room and ``on_full`` is ``'raise'``.
        RuntimeError
            If the manager is closed.
        """
        with self._changed:
            self._check_open()
            if len(self._pending) < self.max_pending:
                return True
            if self.on_full == "skip":
                self.skipped += 1
                return False
            if self.on_full == "raise":
                paths = ", ".join(map(_name, self._pending))
                raise PendingSaveError(
                    f"Cannot save: {len(self._pending)} of {self.max_pending} saves in the background have not ended "
                    f"({paths}). Save less often, or make the AsyncManager with on_full='wait' or a larger max_pending."
                )
            self._changed.wait_for(lambda: len(self._pending) < self.max_pending)
            self._check_open()
            return True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("Cannot save with a closed AsyncManager. Make a new one.")

    def save_async(self, task: Callable[[], Any]) -> SaveFuture | None:
        """Run a task in the background.

        Parameters
        ----------
        task : callable
            A function of no arguments. Those that have no path (an attribute of the tasks of ``msgpack_save``) are run
            one after the other.

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
        with self._changed:
            if not self.make_room():
                return None
            future = SaveFuture(work.path, work.nbytes)
            self._pending.add(future)
            self.save_future = future
        self._hand_over(work, future)
        self._raise_failures(future)
        return future

    def _hand_over(self, work: InTurn, future: SaveFuture) -> None:
        try:
            with _handing_over:
                work.take_turn()
                self.executor.submit(self._run, work, future)
        except RuntimeError as error:  # the executor was shut down, the interpreter ends, or there are too many threads
            _log.warning("No thread takes the save of %s (%s): it is written now.", _name(future), error)
            self._run(work, future)
        except BaseException:  # Ctrl-C
            if future.take():
                work.give_up()
                self._end(future)
            raise

    def _run(self, work: InTurn, future: SaveFuture) -> None:
        if not future.take():
            return
        if not future.set_running_or_notify_cancel():
            work.give_up()
            self._end(future)
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  (it is raised where somebody asks)
            error.add_note(f"This was in the background, in the save of {_name(future)}.")
            # Its frames hold what was to be saved, this one as well.
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            _log.error("The save of %s in the background failed: %r", _name(future), error)
            self._end(future, error)
        else:
            future.set_result(result)
            self._end(future)

    def _end(self, future: SaveFuture, error: BaseException | None = None) -> None:
        with self._changed:
            self._pending.discard(future)
            if error is not None:
                self._failed.append(future)
                _unseen.add(future)
                future.set_exception(error)
            self._changed.notify_all()

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

    def before_waiting(self, arrive: Callable[[], object]) -> None:
        """Call a function before each wait.

        Parameters
        ----------
        arrive : callable
            Of no arguments; it returns when all saves that are on their way to this manager have arrived.
        """
        if arrive not in self._arrivals:
            self._arrivals.append(arrive)

    def wait_previous_save(self) -> None:
        """Wait until all saves have ended; raise what has failed, once."""
        self._wait()
        self._raise_failures()

    def _wait(self) -> None:
        for arrive in self._arrivals:
            arrive()
        with self._changed:
            self._changed.wait_for(lambda: not self._pending)

    def close(self) -> None:
        """Wait for all saves and end the threads; then nothing can be saved any more.

        Raises
        ------
        Exception
            What failed in the background, if nobody has seen it yet.
        """
        if not self._closed:
            for arrive in self._arrivals:  # while there is still a place to arrive at
                arrive()
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._pending)
        self.executor.shutdown(wait=True)
        self._raise_failures()


def _name(future: SaveFuture) -> str:
    return future.path or "a task of your own"


_managers: weakref.WeakSet[AsyncManager] = weakref.WeakSet()


def _start_anew() -> None:
    """Leave what is pending to the parent process, where its threads are."""
    global _handing_over
    _handing_over = threading.Lock()
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
        self._stream.flush()
        if sys.is_finalizing():
            raise RuntimeError("what was saved in the background is lost, see above")


def _report_unseen() -> None:
    """Tell of saves whose failure nobody was told of, and see that the exit code says so."""
    failed = list(_unseen)
    for future in failed:
        print(f"\nThe save of {_name(future)} in the background failed, and nobody waited:", file=sys.stderr)
        traceback.print_exception(future.exception())
    if failed:  # data that was not written is what Python has an exit code for, if it is its own streams'
        sys.stdout = _FailsToFlush(sys.stdout or sys.stderr)


atexit.register(_report_unseen)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
