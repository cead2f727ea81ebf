"""AsyncManager: saves that are written while the program goes on.

What a save takes in the program's own time, ``api`` does: it walks the tree, holds or copies the arrays, and makes a
task of all the rest. ``storage.turns`` has it run when its turn has come. Here is how many saves there may be, and who
is told what has failed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np

from . import api, at_exit
from .errors import PendingSaveError
from .lockfree import Token
from .storage.outcome import Failure, failures, is_shown
from .storage.turns import Save, crew_of, line, that_can_end, wait_until

# Imported here, though it is not used: a signal handler that saves must not be the first to import it.
_ = api
OnFull: TypeAlias = Literal["wait", "skip", "raise"]
#: One save in the background: a concurrent.futures.Future with ``path`` and ``nbytes``.
SaveFuture: TypeAlias = Save


class ManagerClosedError(RuntimeError):
    """A save was asked for of a manager that is closed."""


class AsyncManager:
    """Writes checkpoints in the background.

    Pass it as ``async_manager=`` to :func:`msgpack_save`. What is written are the values of the moment of the call:
    arrays of jax are held (on a CPU without a copy), numpy arrays are copied. Saves to one path are written in the
    order of the calls, and a load of that path waits for them.

    What fails in the background is raised once: at the next save (which is done nevertheless, unless it is left out),
    at :meth:`wait_previous_save` or at :meth:`close`, with a note that names the checkpoint. If none of these comes any
    more, or ``sys.exit()`` leaves the ``with`` block, it is reported when the interpreter exits, and the exit code is
    120, whatever else it would be (a child process that multiprocessing has forked only logs it). Saves that are
    pending then are finished first.

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
        self.save_future: SaveFuture | None = None
        self._crew = crew_of(int(max_workers))
        self._barriers: list[Callable[[], object]] = []
        self._closed = False

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
            self._pass_barriers(closes=True, tells=is_shown(error))  # else it is told at the end
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
        return sum(save.nbytes for save in self._unfinished())

    def _unfinished(self) -> list[SaveFuture]:
        return [save for save in at_exit.saves.present() if save.crew is self._crew]

    def reserve(self, save: SaveFuture | None = None) -> SaveFuture | None:
        """Reserve room for one more save: wait for it, or do what ``on_full`` says.

        Parameters
        ----------
        save : SaveFuture, optional
            The save to be, if there is one already. Whoever has made it can give it up, whatever happens here.

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
        save = save or Save()
        save.crew = self._crew
        is_reserved = False
        try:
            at_exit.saves.enter(save)  # first: its place among the others is what counts
            self._check_open()
            if self.on_full == "wait":
                wait_until(lambda: self._too_many(save))
            elif others := self._too_many(save):
                self._refuse(others)
                return None
            self._check_open()  # it was closed while this one waited
            is_reserved = True
            return save
        finally:
            if not is_reserved:
                save.is_over = True

    def _too_many(self, save: SaveFuture) -> list[SaveFuture]:
        """Give the unfinished saves that were asked for before by others, if there is no room beside them."""
        before = that_can_end(takewhile(lambda other: other is not save, self._unfinished()))
        return before if len(before) >= self.max_pending else []

    def _refuse(self, unfinished: list[SaveFuture]) -> None:
        if self.on_full == "skip":
            self.skipped += 1
            self._raise_failures()
            return
        raise PendingSaveError(
            f"Cannot save: {len(unfinished)} of {self.max_pending} saves in the background have not ended "
            f"({', '.join(save.name for save in unfinished)}). Save less often, or make the AsyncManager with "
            "on_full='wait' or a larger max_pending."
        )

    def release(self, future: SaveFuture) -> None:
        """Give back what was reserved.

        Parameters
        ----------
        future : SaveFuture
            What :meth:`reserve` gave.
        """
        future.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise ManagerClosedError("Cannot save with a closed AsyncManager. Make a new one.")

    def save_async(self, task: Callable[[], Any] | SaveFuture) -> SaveFuture | None:
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
        save = task if isinstance(task, Save) else Save(task, self._crew)
        try:
            if save.crew is None and self.reserve(save) is None:
                return None
            save.hand_over()
            self.save_future = save
        except BaseException as error:
            save.is_told_by(error)
            raise
        finally:  # no call in here: Ctrl-C could come in its stead
            if save not in line.entries:
                save.is_over = True
        # At the very end nobody comes any more who could be told later.
        self._raise_failures(None if at_exit.has_reported else save)
        return save

    def _raise_failures(self, begun: SaveFuture | None = None) -> None:
        """Raise what nobody was told of; whatever keeps this from being raised leaves it to the next one who asks."""
        token = Token()
        first: BaseException | None = None
        try:
            first = self._failed(token, begun)
            if first is not None:
                raise first  # noqa: TRY301  (what happens on the way is caught below)
        except BaseException as error:
            for failure in failures.present():
                if failure.claim.by[:1] == [token]:
                    if error is first:
                        failure.is_over = True
                    else:
                        failure.claim.give_back()
            raise
        finally:
            del first

    def _failed(self, token: Token, begun: SaveFuture | None) -> BaseException | None:
        """Give the first error that nobody was told of or is about to tell of, with notes on the others."""
        mine: list[Failure] = [
            failure
            for failure in failures.present()
            if isinstance(failure.outcome, Save)
            and failure.outcome.crew is self._crew
            and failure.outcome is not begun
            and failure.claim.take(token)
        ]
        if not mine:
            return None
        first = mine[0].error
        with suppress(Exception):  # an error may have a method of its own that fails
            for failure in mine[1:]:
                first.add_note(
                    f"Besides, the save of {failure.outcome.name} in the background failed: {failure.error!r}"
                )
            if begun is not None:
                first.add_note(f"The save that was asked for now, of {begun.name}, goes on.")
        return first

    def add_barrier(self, barrier: Callable[[], object]) -> None:
        """Call a function before each wait.

        Parameters
        ----------
        barrier : callable
            Of no arguments; it returns when saves that are on their way to this manager have arrived.
        """
        for barriers in (self._barriers, at_exit.barriers):
            if barrier not in barriers:
                barriers.append(barrier)

    def wait_previous_save(self) -> None:
        """Wait until all saves have ended; raise what has failed, once."""
        self._pass_barriers()

    def close(self) -> None:
        """Wait for all saves; then nothing can be saved any more.

        Raises
        ------
        Exception
            What failed in the background, if nobody has seen it yet.
        """
        self._pass_barriers(closes=True)

    def _pass_barriers(self, *, closes: bool = False, tells: bool = True) -> None:
        """Let arrive what is on its way, and wait; if a loop that saves has failed, go on all the same."""
        failed: Exception | None = None
        for barrier in () if self._closed else self._barriers:
            try:
                barrier()
            except Exception as error:  # noqa: BLE001  (raised below)
                failed = failed or error
        try:
            self._closed = self._closed or closes
            wait_until(self._unfinished)
            if tells:
                self._raise_failures()
        except Exception as error:
            if failed is not None:
                error.add_note(f"Besides, a loop that saves has failed: {failed!r}")
            raise
        if failed is not None:
            raise failed
