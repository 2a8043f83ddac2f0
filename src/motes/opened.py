"""A cache of objects that take long to open: each is opened once per process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Opened:
    """Opened objects by name. If several threads request a name at the same time, the first one opens it.

    A forked process starts with an empty cache, because it lacks the threads that work for the opened objects.
    """

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Release all objects. The next request for a name opens it again."""
        self._lock = threading.Lock()
        self._futures: dict[Hashable, tuple[Any, Future[Any]]] = {}

    def get(self, name: Hashable, state: Any, open_it: Callable[[], Any]) -> Any:
        """The object with that name, opened by `open_it` if necessary. A failure is not cached.

        Args:
            state: everything but the name that the opened object depends on. If it has changed, the object is opened
                again.
        """
        with self._lock:
            previous_state, future = self._futures.get(name, (state, None))
            is_mine = future is None or previous_state != state
            if is_mine:
                future = Future()
                self._futures[name] = state, future
        assert future is not None
        if is_mine:
            try:
                future.set_result(open_it())
            except BaseException as error:
                with self._lock:
                    if self._futures.get(name, (None, None))[1] is future:
                        del self._futures[name]
                future.set_exception(error)
        return future.result()
