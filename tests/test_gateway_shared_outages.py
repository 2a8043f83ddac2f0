"""Counters that gateways share through a server, without it: then each process counts alone, and waits for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math

import pytest

from motes.gateway import shared_counters
from motes.gateway.shared_counters import SharedCounters
from redis_server import COUNTER, PATIENCE, Mute, Slow, needs_server, refusal, run, running, until


@needs_server
class TestOutages:
    @pytest.fixture
    def server(self, tmp_path):
        with running(tmp_path) as server:
            yield server

    def test_a_server_that_is_killed_and_returns(self, server, monkeypatch, caplog):
        """Counting goes on from what is known, with one warning, and returns to the server."""
        monkeypatch.setattr(shared_counters, "PAUSE", 0.01)
        caplog.set_level(logging.INFO, "motes.gateway")

        async def test(shared: SharedCounters) -> None:
            async with shared.watched():
                for outage in (1, 2):
                    (known,) = await shared.add({COUNTER: 41.0}, 0.0)
                    server.kill()
                    assert await shared.add({COUNTER: 1.0}, 0.0) == [known + 1]
                    values = await asyncio.gather(*(shared.add({COUNTER: 1.0}, 0.0) for _ in range(50)))
                    assert values[-1] == [known + 51]
                    assert not shared.is_up
                    await asyncio.sleep(0.1)  # some checks
                    assert len(caplog.records) == 2 * outage - 1
                    server.start()
                    await until(lambda: shared.is_up)
                    assert await shared.add({COUNTER: 2.0}, 0.0) == [2.0], "this server remembers nothing"
                    assert len(caplog.records) == 2 * outage

        run(server.url, test)
        warning, info = caplog.messages[:2]
        assert warning.startswith(
            f"redis://127.0.0.1:{server.port}, which shares the limits, cannot be used (Connection"
        )
        assert warning.endswith(": until it can be used, this process counts quotas alone")
        assert info == f"redis://127.0.0.1:{server.port} can be used again: the quotas are shared"
        assert "particles_per_day" not in caplog.text

    def test_a_server_that_ends_while_nothing_is_asked(self, server, monkeypatch):
        """Nobody waits for it then. And a connection that the server has closed is no outage."""

        async def test(shared: SharedCounters) -> None:
            await shared.add({COUNTER: 1.0}, 0.0)
            with server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            (connection,) = shared._client.connection_pool._available_connections
            await until(lambda: connection._reader.at_eof())
            assert await shared.add({COUNTER: 1.0}, 0.0) == [2.0]
            assert shared.is_up
            monkeypatch.setattr(shared_counters, "PAUSE", 0.01)
            async with shared.watched():
                assert shared.is_up
                server.kill()
                await until(lambda: not shared.is_up)

        run(server.url, test)

    def test_connections_that_are_lost_are_replaced(self, server, monkeypatch):
        monkeypatch.setattr(shared_counters, "TIMEOUT", 0.2)
        monkeypatch.setattr(shared_counters, "PAUSE", 0.01)

        async def test(shared: SharedCounters) -> None:
            for _ in range(2):
                await shared._client.connection_pool.get_connection()
            await shared.add({COUNTER: 1.0}, 0.0)
            assert not shared.is_up
            async with shared.watched():
                await until(lambda: shared.is_up)

        run(server.url, test)

    def test_a_server_that_is_not_there_at_first(self, server, monkeypatch, caplog):
        monkeypatch.setattr(shared_counters, "PAUSE", 0.01)
        server.kill()

        async def test(shared: SharedCounters) -> None:
            async with shared.watched():
                assert not shared.is_up
                assert await shared.add({COUNTER: 5.0}, 0.0) == [5.0]
                server.start()
                await until(lambda: shared.is_up)
                assert await shared.add({COUNTER: 1.0}, 0.0) == [1.0]

        run(server.url, test)
        assert len(caplog.records) == 1

    def test_a_check_that_does_not_notice_the_end(self, server, monkeypatch):
        monkeypatch.setattr(shared_counters, "PAUSE", 0.0)

        async def test(shared: SharedCounters) -> None:
            async with shared.watched():
                checks = asyncio.Event()

                async def probe() -> None:
                    checks.set()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()

                shared.probe = probe
                await checks.wait()

        run(server.url, test)


class TestNoServer:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        monkeypatch.setattr(shared_counters, "TIMEOUT", 0.2)

    def test_a_server_that_accepts_and_never_answers(self, monkeypatch, caplog):
        monkeypatch.setattr(shared_counters, "PAUSE", math.inf)

        async def test(shared: SharedCounters) -> None:
            values = await asyncio.gather(*(shared.add({COUNTER: 1.0}, 0.0) for _ in range(500)))
            assert values[-1] == [500.0]
            accepted = mute.accepted
            for _ in range(100):
                await shared.add({COUNTER: 1.0}, 0.0)
            assert mute.accepted == accepted == 1, "one attempt, and nobody pays after it"

        with Mute() as mute:
            run(mute.url, test)
        (message,) = caplog.messages
        assert "does not answer within 0.2 s" in message

    def test_a_server_each_of_whose_answers_is_in_time_but_not_all_together(self, monkeypatch):
        """An opening connection has several."""

        async def test(shared: SharedCounters) -> None:
            assert await shared.add({COUNTER: 1.0}, 0.0) == [1.0]
            assert not shared.is_up
            monkeypatch.setattr(shared_counters, "TIMEOUT", PATIENCE)
            await shared.probe()

        monkeypatch.setattr(shared_counters, "TIMEOUT", 1.0)
        with Slow(0.6) as slow:
            run(slow.url, test)

    def test_during_an_outage_only_the_check_asks(self, monkeypatch):
        monkeypatch.setattr(shared_counters, "PAUSE", 0.01)

        async def test(shared: SharedCounters) -> None:
            async with shared.watched():
                await until(lambda: mute.accepted >= 3)
                assert await shared.add({COUNTER: 1.0}, 0.0) == [1.0]

        with Mute() as mute:
            run(mute.url, test)

    @pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-7\r\n", b"*1\r\n:1\r\n", b"\0" * 100])
    def test_another_kind_of_server(self, says):
        with Mute(says) as mute:
            assert "which shares the limits, " in refusal(mute.url)

    def test_nobody_listens(self):
        with Mute() as mute:
            url = mute.url
        assert "cannot be used (ConnectionError: " in refusal(url)
        assert "cannot be used (ConnectionError: " in refusal("unix:///nowhere/socket")
