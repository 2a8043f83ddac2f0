"""Let a gateway work for minutes before a faulty server, with 250 callers at once and intruders beside them.

    python benchmarks/soak.py --minutes 10

The mixture is that of tests/test_gateway_load.py: the server fails in one of twelve ways at every tenth request, every
tenth caller leaves, and other clients send nothing, or slowly, or too much, or do not read (see crowd.py and
intruders.py). Every half minute it prints a line:

    answers     to callers, so far
    hung        requests without a response within 100 seconds, or with one that breaks off or is no clean error
    wrong       answers that differ from those over a sound server, although the gateway reports no dropped particle
    memory      of the gateway, resident, in MB
    files       that the gateway has open
    particles   in flight; waiting: requests that wait
    p50 …       of the times of /health in this half minute, in ms
    statuses    of all requests so far, by number; 499: the client has left

The clients run in a process of their own, so that /health does not wait for them. At the end all clients leave, and the
verdict says what is left of them. The exit code is 1 if something hung, was wrong or grew.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from crowd import (
    CLEAN,
    MODELS,
    QUESTIONS,
    Ended,
    ask,
    call,
    counted,
    faulty_server,
    gateway_before,
    set_faults,
    settled,
    statuses,
    unexplained,
    watch_health,
)
from intruders import MAY_BE, Seen, intruders
from real_servers import Server

HALF_MINUTE = 30.0
MOST_GROWTH = 0.1
"""Of the memory that the gateway had after a minute: more would be a leak."""
HEADER = "minutes answers hung wrong memory files particles waiting    p50    p95    max  statuses"

Expected = dict[tuple[str, int], str]
Counts = tuple[Counter[str], Seen]


def send_load(port: int, clients: int, seconds: float, expected: Expected, reports: Connection) -> None:
    """All clients, for so many seconds. Sends the counts of answers, and of requests by their statuses, every second
    and at the end."""
    counts, seen = Counter({"answers": 0, "hung": 0, "wrong": 0}), Seen()
    until = time.monotonic() + seconds
    numbers = itertools.takewhile(lambda _: time.monotonic() < until, itertools.count())

    def note(ended: Ended) -> None:
        seen[ended.status] += 1
        counts["answers"] += ended.status == 200
        counts["wrong"] += bool(ended.status == 200 and not ended.own["dropped"]) and ended.text != expected[ended.case]

    async def go_on(client: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A client that begins again after a response that it should not have got."""
        while time.monotonic() < until:
            try:
                await client()
            except Exception as error:
                counts["hung"] += 1
                print(f"{client}: {type(error).__name__}: {error}", file=sys.stderr)

    async def test() -> None:
        others = [asyncio.create_task(go_on(intruder)) for intruder in intruders(port, seen)]
        callers = {asyncio.create_task(go_on(partial(call, port, numbers, note, 10))) for _ in range(clients)}
        while callers:
            _, callers = await asyncio.wait(callers, timeout=1.0)
            reports.send((counts, seen))
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        reports.send((counts, seen))

    asyncio.run(test())


def answers_over_a_sound_server(gateway: Server, upstream: Server) -> Expected:
    """By model and question. tests/test_gateway_load.py compares them with the library's."""
    set_faults(upstream, 0.0)

    async def test() -> list[Ended]:
        return [await ask(gateway.port, number) for number in range(len(MODELS) * QUESTIONS)]

    return {ended.case: ended.text for ended in asyncio.run(test())}


async def watch(gateway: Server, load: SpawnProcess, reports: Connection) -> tuple[list[Counter[str]], Counts]:
    """Print a line every half minute while the load lasts. Returns what the gateway counted then, and the load's own
    counts."""
    waits: list[float] = []
    health = asyncio.create_task(watch_health(gateway.port, waits.append))
    lines, began = [], time.monotonic()
    counts, seen = Counter[str](), Seen()
    print(HEADER, flush=True)
    while load.is_alive():
        until = began + HALF_MINUTE * (len(lines) + 1)
        while (load.is_alive() and time.monotonic() < until) or reports.poll():
            if reports.poll():
                counts, seen = reports.recv()
            await asyncio.sleep(0.1)
        now = await asyncio.to_thread(counted, gateway)
        lines.append(now)
        times, minutes = sorted(waits) or [float("nan")], (time.monotonic() - began) / 60
        waits.clear()
        p50, p95, longest = (1000 * times[int(share * (len(times) - 1))] for share in (0.5, 0.95, 1.0))
        print(
            f"{minutes:7.1f} {counts['answers']:7} {counts['hung']:4} {counts['wrong']:5}"
            f" {now['process_resident_memory_bytes'] / 1e6:6.0f} {now['process_open_fds']:5}"
            f" {now['motes_particles_in_flight']:9} {now['motes_requests_waiting']:7}"
            f" {p50:6.0f} {p95:6.0f} {longest:6.0f}  {dict(sorted(seen.items()))}",
            flush=True,
        )
    assert not health.done(), "/health is not answered"
    health.cancel()
    await asyncio.gather(health, return_exceptions=True)
    return lines, (counts, seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--rate", type=float, default=0.1, help="the share of the server's responses that fail")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        faulty_server() as upstream,
        gateway_before(upstream, Path(folder)) as gateway,
    ):
        expected = answers_over_a_sound_server(gateway, upstream)
        set_faults(upstream, args.rate, 0.02)
        before = counted(gateway)
        reports, sending = multiprocessing.Pipe(duplex=False)
        load = multiprocessing.get_context("spawn").Process(
            target=send_load, args=(gateway.port, args.clients, 60 * args.minutes, expected, sending)
        )
        load.start()
        lines, (counts, seen) = asyncio.run(watch(gateway, load, reports))
        load.join()
        after = settled(gateway, statuses(before).total() + seen.total())
        differences = unexplained(seen, statuses(after) - statuses(before), (*MAY_BE, *CLEAN))
        log_lines = len(gateway.log.read_text().splitlines())
    early, name = lines[min(1, len(lines) - 1)], "process_resident_memory_bytes"
    growth = max(line[name] for line in lines[len(lines) // 2 :]) / early[name] - 1
    print(
        f"{counts['answers']} answers, {counts['wrong']} wrong; {seen.total()} requests, {counts['hung']} hung, "
        f"{differences or 'none'} counted otherwise; {log_lines} lines in the log\n"
        f"memory: {before[name] / 1e6:.0f} MB at the start, {early[name] / 1e6:.0f} after a minute, "
        f"{100 * growth:+.0f} % at most in the second half, {after[name] / 1e6:.0f} MB in the end\n"
        f"open files: {before['process_open_fds']} at the start, {early['process_open_fds']} after a minute, "
        f"{after['process_open_fds']} in the end: those of clients are closed, those to the server stay open"
    )
    is_well = not (counts["hung"] or counts["wrong"] or differences) and growth < MOST_GROWTH
    print("it stands the load" if is_well else "IT DOES NOT STAND THE LOAD")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
