"""Stragglers: attempts of requests that take too long, if the request has a deadline.

A server that leaves one request in twenty without a response must not cost most runs their whole deadline. An attempt
that takes much longer than the latest requests of its kind is a straggler: it is given up, and its request is sent
again at once. Giving up must neither make a slow server slower nor lose a response that would have arrived:

1. An attempt has FACTOR times the 95th percentile of the latest durations, at least FLOOR seconds. If this ends after
   half of the request's time, or fewer than FEWEST durations are known, it has until then, unless that is less than the
   longest duration (FACTOR times the longest of few). After each straggler of the same request, all durations count
   double. As long as none is known, no attempt is given up: nothing says that it is slow.
2. The second half of the request's time belongs to one attempt, which is not given up: a response that takes less than
   half of the time arrives.
3. A server gets at most SHARE of its requests again, plus MOST_CREDIT. If all requests become slow, hardly any is sent
   twice, and the durations of those that succeed raise the first limit.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Kind = tuple[str, int]
"""A path, and the order of magnitude of the number of tokens: requests with similar durations."""

FACTOR = 3.0
FLOOR = 1.0
"""Seconds. Shorter pauses can be this side's own."""
FEWEST, LATEST = 8, 256
"""How many durations of a kind have to be known, and how many are."""
SHARE, MOST_CREDIT = 0.2, 10.0
TICK = 1.0
"""Seconds after which an attempt is looked at again, as other requests end meanwhile."""
EPSILON = 1e-6


@dataclass(eq=False)
class Stragglers:
    """The durations of the requests to one server, and the number of requests that may be sent to it again."""

    _durations: dict[Kind, deque[float]] = field(default_factory=dict)
    _credit: float = MOST_CREDIT

    def note(self, kind: Kind, seconds: float) -> None:
        """Remember a successful attempt."""
        self._durations.setdefault(kind, deque(maxlen=LATEST)).append(seconds)
        self._credit = min(MOST_CREDIT, self._credit + SHARE)

    @contextmanager
    def watch(self, timeout: asyncio.Timeout, kind: Kind, half: float, num_stragglers: int) -> Iterator[None]:
        """Let the timeout of an attempt expire when the attempt has become a straggler.

        Args:
            half: the time on the event loop's clock at which half of the request's time is over.
            num_stragglers: earlier attempts of the same request that were given up.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer: asyncio.Handle

        def look() -> None:
            nonlocal timer
            now, latest_end = loop.time() + EPSILON, self._latest_end(kind, began, half, num_stragglers)
            if latest_end <= now and self._credit >= 1:
                self._credit -= 1
                timeout.reschedule(loop.time())
            elif now < half:  # look again: other requests end meanwhile
                timer = loop.call_at(min(latest_end if now < latest_end else math.inf, now + TICK, half), look)

        timer = loop.call_soon(look)
        try:
            yield
        finally:
            timer.cancel()

    def _latest_end(self, kind: Kind, began: float, half: float, num_stragglers: int) -> float:
        """The time at which an attempt becomes a straggler; infinite: it does not."""
        durations = sorted(self._durations.get(kind, ()))
        if not durations:
            return math.inf
        is_known = len(durations) >= FEWEST
        usual = max(FLOOR, FACTOR * durations[int(0.95 * len(durations))])
        longest = max(FLOOR, durations[-1] if is_known else FACTOR * durations[-1])
        if is_known and began + usual * 2.0**num_stragglers <= half:
            return began + usual * 2.0**num_stragglers
        return half if began + longest * 2.0**num_stragglers <= half else math.inf
