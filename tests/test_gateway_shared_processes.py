"""Gateways as processes of their own that share the quotas of keys through a real server, which is killed meanwhile."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gateway_process
from gateway_process import Gateway, question, until
from motes.gateway.keys import digest
from redis_server import Mute, needs_server, running

KEYS = "".join(
    f'[[keys]]\nname = "{name}"\nsha256 = "{digest(name)}"\nparticles_per_day = {2 * amount}\n'
    for name, amount in {"alice": 30, "bob": 10}.items()
)


@contextlib.contextmanager
def serving(folder: Path, address: str) -> Iterator[Gateway]:
    folder.mkdir()
    with gateway_process.serving(folder, more=KEYS, shared=f'"{address}"') as gateway:
        yield gateway


def ask(gateway: Gateway, key: str, times: int) -> Counter[int]:
    """The statuses of so many requests, one after the other."""
    return Counter(gateway.ask(question("2 + 2?", key))[0] for _ in range(times))


def is_up(gateway: Gateway, address: str) -> bool:
    return gateway.metric(rf'motes_shared_limits_up\{{server="{address.removesuffix("/0")}"\}}') == 1.0


def outages(gateway: Gateway) -> list[str]:
    return [line["message"] for line in gateway.lines if "shares the limits" in line["message"]]


@needs_server
def test_two_gateways_share_quotas_and_outlive_their_server(tmp_path):
    with (
        running(tmp_path) as server,
        serving(tmp_path / "a", server.url) as one,
        serving(tmp_path / "b", server.url) as other,
    ):
        both = (one, other)
        assert [is_up(gateway, server.url) for gateway in both] == [True, True]
        # 1) both together answer as many requests as the quota has
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, gateway, "alice", 6) for _ in range(4) for gateway in both]
        statuses = sum((each.result() for each in asked), Counter())
        statuses += ask(one, "alice", 3) + ask(other, "alice", 3)
        assert statuses == {200: 30, 429: 24}
        assert ask(one, "bob", 4) == {200: 4}
        # 2) without the server each goes on from what it knows
        server.kill()
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, gateway, "alice", 5) for _ in range(4) for gateway in both]
        assert sum((each.result() for each in asked), Counter()) == {429: 40}
        assert ask(one, "bob", 8) == {200: 6, 429: 2}
        assert ask(other, "bob", 12) == {200: 10, 429: 2}, "it has not heard of bob yet"
        assert [is_up(gateway, server.url) for gateway in both] == [False, False]
        file = tmp_path / "a" / "motes.toml"
        file.write_text(file.read_text().replace("[limits]", "[limits]\ndrain = 9"))
        one.process.send_signal(signal.SIGHUP)
        until(lambda: any("are those of the file now" in line["message"] for line in one.lines))
        assert ask(one, "alice", 1) == {429: 1}
        # 3) the server returns, empty, and they share again
        server.start()
        until(lambda: all(is_up(gateway, server.url) for gateway in both))
        assert ask(one, "bob", 7) + ask(other, "bob", 7) == {200: 10, 429: 4}
        assert ask(one, "bob", 1) == {429: 1}
        for gateway in both:
            (message,) = outages(gateway)
            assert message.startswith(f"{server.url.removesuffix('/0')}, which shares the limits, ")
            assert "alice" not in message
            assert gateway.end() == 0


def test_a_server_that_never_answers_delays_the_start_by_a_second_and_no_request(tmp_path):
    with Mute() as mute, serving(tmp_path / "a", mute.url) as gateway:
        assert ask(gateway, "alice", 31) == {200: 30, 429: 1}
        assert not is_up(gateway, mute.url)
        assert gateway.end() == 0
        assert len(outages(gateway)) == 1
        assert sum(line.get("seconds", 0.0) for line in gateway.lines) < 31, "not each of them waits for a second"


@pytest.mark.parametrize("address", ["redis://:SECRET@127.0.0.1:1", "redis://127.0.0.1:1?password=SECRET"])
def test_a_password_in_the_environment_is_shown_nowhere(tmp_path, monkeypatch, address):
    monkeypatch.setenv("MOTES_SHARED_LIMITS", address)
    with serving(tmp_path / "a", "redis://elsewhere") as gateway:
        assert ask(gateway, "bob", 1) == {200: 1}
        assert not is_up(gateway, "redis://127.0.0.1:1")
        metrics = gateway.get("/metrics")[2].decode()
        assert gateway.end() == 0
        assert len(outages(gateway)) == 1
        assert "SECRET" not in gateway.log.read_text() + metrics
