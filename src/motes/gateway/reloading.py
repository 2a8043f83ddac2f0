"""Reads `motes.toml` again while the gateway runs, and replaces the keys, and the limits that can change.

Other settings need a restart: models would have to be opened, and the host and the port belong to a socket.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motes.errors import ConfigurationError, MotesError
from motes.gateway.callers import Callers
from motes.gateway.config import Config, Limits
from motes.gateway.tables import place

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between two checks whether the file has changed."""
FIXED_LIMITS = ("particles", "waiting", "body_bytes", "upload_bytes", "shared")
"""Limits that need a restart. The admission of requests, the entrance and the counters are made with them."""


@dataclass(frozen=True)
class ConfigFile:
    """The file of a configuration.

    Attributes:
        changes: settings of the command line, which override the file's.
    """

    path: Path
    changes: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Config:
        """See `Config.load`."""
        return Config.load(self.path, **self.changes)

    def stamp(self) -> tuple[int, ...] | None:
        """A value that changes with the file; None if there is no file to read again, as behind `<(command)`."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else None


class Reloading:
    """Keeps callers and limits in step with their file.

    Args:
        running: the configuration with which the gateway has started.
        set_limits: replaces the gateway's limits.
    """

    def __init__(
        self, file: ConfigFile, running: Config, callers: Callers, set_limits: Callable[[Limits], None]
    ) -> None:
        self._file, self._running, self._callers, self._set_limits = file, running, callers, set_limits
        self._latest = running
        self._stamp: tuple[int, ...] | None = None  # unknown: the file may have changed while the models were opened
        self._lock = asyncio.Lock()

    async def watch(self) -> None:
        """Reload the file whenever it has changed, until this is cancelled. A file with a fault is logged once."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.check()
            except MotesError as error:
                log.error("the configuration stays as it was: %s", error)
            except Exception:
                log.exception("the configuration stays as it was")

    async def check(self) -> None:
        """Reload the file if it has changed since the latest check. Raises the errors of `reload`."""
        stamp = await asyncio.to_thread(self._file.stamp)
        if stamp != self._stamp:
            self._stamp = stamp
            await self._read()

    async def reload(self) -> None:
        """Read the file, and replace the keys and the limits.

        Raises:
            ConfigurationError: the file has a fault, or no keys any more; everything stays as it was.
        """
        if not await self._read():
            log.info("%s has the same settings as before", self._file.path)

    async def _read(self) -> bool:
        """See `reload`. Returns whether its settings have changed."""
        async with self._lock:
            if await asyncio.to_thread(self._file.stamp) is None:
                raise ConfigurationError(f"{self._file.path} is no file that can be read")
            config = await asyncio.to_thread(self._file.load)
            if self._callers.keys and not config.keys:
                raise ConfigurationError(
                    f"{self._file.path}: keys: there are none any more, and everybody would have access: keep one, or "
                    "restart the gateway"
                )
            if config == self._latest:
                return False
            self._latest = config
            self._callers.replace(config.keys)
            fixed = {name: getattr(self._running.limits, name) for name in FIXED_LIMITS}
            limits = config.limits.model_copy(update=fixed)
            self._running = self._running.model_copy(update={"limits": limits})
            self._set_limits(limits)
        names = {"fields": {"keys": [key.name for key in config.keys]}}
        log.info("%s: the keys and the limits are those of the file now", self._file.path, extra=names)
        if waiting := list(changes_between(self._running, config)):
            log.warning("%s: these changes need a restart: %s", self._file.path, ", ".join(waiting))
        return True


def changes_between(old: Config, new: Config) -> Iterator[str]:
    """The places of settings that differ, except those of keys. Of the limits and models it names each."""
    for name in Config.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name == "keys" or before == after:
            continue
        if name in ("models", "limits"):
            before, after = dict(before), dict(after)
            yield from (place(name, part) for part in {**before, **after} if before.get(part) != after.get(part))
        else:
            yield name
