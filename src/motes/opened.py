"""What takes long to open is opened once per process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Opened:
    """What has been opened, by name. Threads that ask for one name at the same time wait for the first of them.

    A process that is forked opens its own: threads that work for what is open are not in it.
    """

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Let go of everything: each is opened anew when it is next asked for."""
        self._lock = threading.Lock()
        self._futures: dict[Hashable, tuple[Any, Future[Any]]] = {}

    def get(self, name: Hashable, state: Any, open_it: Callable[[], Any]) -> Any:
        """What has that name, which `open_it` opens; one that cannot be opened is tried again by the next who asks.

        Args:
            state: what opening depends on besides the name. Where it is no longer equal, what is open is let go of.
        """
        with self._lock:
            known, future = self._futures.get(name, (state, None))
            is_mine = future is None or known != state
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
