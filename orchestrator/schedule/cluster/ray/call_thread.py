"""A thread for calls that may never return: Ray's, into a cluster that is no more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeAlias, TypeVar

CHECK_EVERY_S = 0.2

T = TypeVar("T")

# None ends the thread.
_Calls: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"


class CallThread:
    """Makes one call after another in a thread of its own.

    The thread is a daemon: one that hangs in a call is left there, and another takes over. To be
    used by one thread.
    """

    def __init__(self) -> None:
        self._waiting: _Calls | None = None

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """Where the answer of ``function()`` will be."""
        if self._waiting is None:
            self._waiting = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._waiting,), name="ray", daemon=True).start()
        answer: Future[T] = Future()
        self._waiting.put((answer, function))
        return answer

    def call(self, function: Callable[[], T], check: Callable[[], None]) -> T:
        """What ``function()`` returns; given up where ``check()`` raises meanwhile."""
        answer = self.begin(function)
        while not wait((answer,), timeout=CHECK_EVERY_S).done:
            try:
                check()
            except BaseException:
                self.close()
                raise
        return answer.result()

    def close(self) -> None:
        """End the thread, once it is back from its call."""
        if self._waiting is not None:
            self._waiting.put(None)
            self._waiting = None


def _work(calls: _Calls) -> None:
    while (item := calls.get()) is not None:
        answer, function = item
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)
        del answer, function, item
