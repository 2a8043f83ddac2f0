"""Models that are opened once, and kept for later calls."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from motes.opening.models import read_mixture, reward_model
from motes.opening.specs import attribute, names_attribute, parse_spec
from motes.rewards.calibration import CalibratedReward, Calibration
from motes.rewards.mixture import MixedReward


class Opened:
    """Objects that take long to open, by name: each is opened once per process. If several threads request a name at
    the same time, the first one opens it.

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
        """The object with that name. `open_it` opens it in the first call, and again when `state` has changed, which is
        everything else that the object depends on. A failure is not cached."""
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


_MODELS = Opened()


def close_models() -> None:
    """Release the models that `solve` opened by name and keeps for later calls.

    A run in progress keeps its models until it ends.
    """
    _MODELS.forget()


def open_once(open_model: Callable[..., Any], spec: str) -> Any:
    """The model with that spec, which the first call opens. Calibrations and the weights of mixtures are read each
    time, because they are small and `motes calibrate` may have changed them."""
    name, options = parse_spec(spec, {})
    calibration = options.pop("calibration", None) if open_model is reward_model else None
    loaded = None if calibration is None else Calibration.load(str(calibration))
    if open_model is reward_model and name.startswith("mix:"):
        members, mixture = read_mixture(name, options)
        model: Any = MixedReward([open_once(reward_model, member) for member in members], mixture)
    else:
        key = open_model, name, tuple(sorted(options.items()))
        model = _MODELS.get(key, _opening_state(name, options), lambda: open_model(name, **options))
    return model if loaded is None else CalibratedReward(model, loaded)


SETTINGS = re.compile(r"(MOTES|OPENAI|HF|CUDA|SSL)_\w+|\w+_PROXY", re.IGNORECASE)
"""Environment variables on which the opening of a model depends: keys, proxies, folders, devices."""


def _opening_state(name: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Everything on which the opening of a model depends, except its name: the environment, the files of a checkpoint,
    and a module's attribute, because the module may have been reloaded."""
    variables = {key: value for key, value in os.environ.items() if SETTINGS.fullmatch(key)}
    if (variable := options.get("api_key_env")) is not None:
        variables[str(variable)] = os.environ.get(str(variable), "")
    files: list[tuple[str, int]] = []
    with contextlib.suppress(OSError):
        path = Path(os.path.expanduser(name.removeprefix("judge:").removeprefix("hf:"))).absolute()
        found = [path] if path.is_file() else sorted(path.iterdir())
        files = [(str(file), file.stat().st_mtime_ns) for file in found]
    return variables, files, attribute(name) if names_attribute(name) else None
