"""AsyncManager: saves that are written while the program goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from .warn import warn


class AsyncManager:
    """Writes checkpoints in the background, one after the other.

    Pass it as ``async_manager=`` to :func:`msgpack_save`. The values are those of the moment of the call; what fails
    in the background is raised once, at the next save, at :meth:`wait_previous_save` or at :meth:`close`.

    Parameters
    ----------
    max_workers : int, default 1
        Size of the thread pool. Saves are written one after the other whatever it is.

    Attributes
    ----------
    save_future : concurrent.futures.Future or None
        The last save.

    Examples
    --------
    >>> import tempfile, os, numpy as np
    >>> from braintools_ckpt import AsyncManager, msgpack_load, msgpack_save
    >>> path = os.path.join(tempfile.mkdtemp(), "state.msgpack")
    >>> with AsyncManager() as manager:
    ...     _ = msgpack_save(path, {"w": np.ones(2)}, async_manager=manager)
    >>> msgpack_load(path)
    {'w': array([1., 1.])}
    """

    def __init__(self, max_workers: int = 1) -> None:
        self.save_future: Future[Any] | None = None
        self.executor = ThreadPoolExecutor(max_workers=max_workers, thread_name_prefix="braintools_ckpt")
        self._reported: Future[Any] | None = None
        self._closed = False
        self._lock = threading.RLock()

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
            error.add_note(f"Besides, the last background save failed: {failed!r}")

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        try:
            self.close()
        except Exception as error:  # noqa: BLE001  (a destructor cannot raise)
            warn(f"A background save failed: {error!r}", RuntimeWarning)

    def save_async(self, task: Callable[[], Any]) -> None:
        """Run a task in the background, after the previous one has ended.

        Parameters
        ----------
        task : callable
            A function of no arguments.

        Raises
        ------
        RuntimeError
            If the manager is closed.
        Exception
            What the previous task raised, if nobody has seen it yet.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("Cannot save with a closed AsyncManager. Make a new one.")
            self.wait_previous_save()
            self.save_future = self.executor.submit(task)

    def wait_previous_save(self) -> None:
        """Wait until the last save has ended; raise what it raised, once."""
        future = self.save_future
        if future is None:
            return
        error = future.exception()
        with self._lock:
            if error is None or self._reported is future:
                return
            self._reported = future
        raise error

    def close(self) -> None:
        """Wait for the last save and end the threads; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.wait_previous_save()
        finally:
            self.executor.shutdown(wait=True)
