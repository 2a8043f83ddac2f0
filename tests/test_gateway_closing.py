"""The end of a gateway: what becomes of the requests that wait, are in flight or come late. And SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import gateways
from gateway_process import PATIENCE, error, events, is_closed, question, request, response, serving, until
from motes.gateway.admission import Admission
from motes.gateway.answering import open_models
from motes.gateway.app import application
from motes.gateway.draining import LATE, Drain
from motes.gateway.errors import BusyError
from motes.gateway.server import Server
from virtual_time import timed


class TestEnd:
    def test_everything_in_flight_ends_well(self, tmp_path):
        with contextlib.ExitStack() as stack:
            gateway, pool = stack.enter_context(serving(tmp_path, particles=8, drain=4)), ThreadPoolExecutor(8)
            inside = [
                pool.submit(gateway.ask, question(how, stream=stream))
                for how in ("partly", "never")
                for stream in (False, True)
            ]
            until(lambda: gateway.metric("motes_particles_in_flight") == 8)
            waiting = [pool.submit(gateway.ask, question("now", stream=stream)) for stream in (False, True)]
            until(lambda: gateway.metric("motes_requests_waiting") == 2)
            kept = stack.enter_context(gateway.connect(request("GET", "/health")))
            assert response(kept)[0] == 200
            stack.enter_context(gateway.connect(question("now")[:-5]))
            # 1) at once
            gateway.process.send_signal(signal.SIGTERM)
            for future in waiting:
                status, headers, body = future.result()
                assert (status, error(body)["code"], headers["connection"]) == (503, "busy", "close")
                assert int(headers["retry-after"]) > 0
            # 2) while the others end
            status, headers, body = gateway.get("/ready")
            assert (status, json.loads(body), headers["connection"]) == (
                503,
                {"status": "closing", "missing": {}},
                "close",
            )
            assert gateway.get("/health")[0] == 200
            kept.sendall(question("now"))
            status, headers, _ = response(kept)
            assert (status, headers["connection"], "retry-after" in headers) == (503, "close", True)
            assert not any(future.done() for future in inside), "the drain is not over"
            # 3) at the end
            partly, partly_stream, never, never_stream = (future.result() for future in inside)
            told = json.loads(partly[2])
            assert (partly[0], told["motes"]["answer"], told["motes"]["stopped"]) == (200, "4", "deadline")
            told = events(partly_stream[2])
            assert "".join(one["choices"][0]["delta"].get("content", "") for one in told).endswith("boxed{4}.")
            assert told[-1]["motes"]["stopped"] == "deadline"
            assert (never[0], error(never[2])["code"], int(never[1]["retry-after"]) > 0) == (503, "busy", True)
            assert events(never_stream[2])[-1]["error"]["code"] == "busy"
            assert gateway.process.wait(PATIENCE) == 0
            assert gateway.statuses() == {200: 2, 503: 6}, "the log says what the clients got"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_nothing_in_flight(self, tmp_path, number):
        with serving(tmp_path, drain=3000, idle=600) as gateway, gateway.connect() as silent:
            assert gateway.get("/health")[0] == 200
            assert gateway.end(number) == 0
            assert is_closed(silent)
            assert [line["message"] for line in gateway.lines] == ["closing: requests in flight have 3000 s", "closed"]

    def test_a_body_that_is_still_sent_is_answered(self, tmp_path):
        with serving(tmp_path, drain=1) as gateway, gateway.connect(question("now")[:-5]) as client:
            assert gateway.get("/health")[0] == 200
            gateway.process.send_signal(signal.SIGTERM)
            status, headers, _ = response(client)
            assert (status, int(headers["retry-after"]) > 0, headers["connection"]) == (503, True, "close")
            assert gateway.process.wait(PATIENCE) == 0
            assert gateway.statuses() == {503: 1}

    def test_a_second_signal_ends_it_at_once(self, tmp_path):
        with serving(tmp_path, drain=3000) as gateway, ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(gateway.ask, question(how, stream=stream, motes={"deadline": 50}))
                for how in ("partly", "never")
                for stream in (False, True)
            ]
            until(lambda: gateway.metric("motes_particles_in_flight") == 8)
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: gateway.get("/ready")[0] == 503)
            assert gateway.end() == 0
            partly, partly_stream, never, never_stream = (future.result() for future in asked)
            assert json.loads(partly[2])["motes"]["stopped"] == "deadline"
            assert events(partly_stream[2])[-1]["motes"]["stopped"] == "deadline"
            assert never[0] == 503
            assert events(never_stream[2])[-1]["error"]["code"] == "busy"
            assert gateway.statuses() == {200: 2, 503: 2}

    def test_a_client_that_stopped_reading_is_not_waited_for_for_ever(self, tmp_path):
        with serving(tmp_path, drain=1, idle=600) as gateway:
            with gateway.connect(question("at length"), buffer=4096) as client:
                assert client.recv(4) == b"HTTP"
                assert gateway.end() == 0
            assert gateway.statuses() == {499: 1}
            assert {line["level"] for line in gateway.lines} == {"info"}

    def test_a_run_that_ignores_its_cancellation(self, tmp_path):
        with serving(tmp_path, drain=3000) as gateway, gateway.connect(question("deaf", stream=True)) as client:
            assert client.recv(4) == b"HTTP"
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: gateway.get("/ready")[0] == 503)
            assert gateway.end() == 0
            assert sum(gateway.statuses().values()) == 1
            assert gateway.statuses()[200] == 0, "the stream had begun with that"

    def test_before_it_serves(self, tmp_path):
        """It waits for a server of models that does not answer."""
        with socket.create_server(("127.0.0.1", 0)) as upstream:
            address = f"http://127.0.0.1:{upstream.getsockname()[1]}/v1#model"
            command = [
                sys.executable,
                "-m",
                "motes",
                "serve",
                "--port",
                "0",
                "--method",
                "majority",
                "--model",
                address,
            ]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            upstream.settimeout(PATIENCE)
            with upstream.accept()[0]:
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0


class TestDrain:
    """The end of runs, by a clock of its own."""

    @staticmethod
    async def run(work: Callable[..., Any], drain: Drain, seconds: float = 100.0) -> Any:
        class Request:
            deadline = seconds

            async def run(self, observe, on_progress, limits):
                return await work(limits)

        return await drain.run(Request())

    @pytest.mark.parametrize("begun_before", [True, False])
    def test_a_run_that_does_not_end_is_cancelled(self, begun_before):
        async def deaf(limits):
            await asyncio.sleep(10_000.0)

        async def test() -> None:
            drain = Drain(Admission(8, 8), 30.0)
            if begun_before:
                await drain.begin()
            task = asyncio.create_task(self.run(deaf, drain))
            await asyncio.sleep(0)
            await drain.begin()
            with pytest.raises(BusyError) as caught:
                await task
            assert caught.value.unavailable

        assert timed(test)[1] == 30.0 + LATE

    def test_deadlines_are_shortened_and_never_lengthened(self):
        async def until_deadline(limits) -> float:
            with contextlib.suppress(TimeoutError):
                async with limits.timeout():
                    await asyncio.sleep(10_000.0)
            raise KeyError(asyncio.get_running_loop().time())

        async def test() -> list[float]:
            drain = Drain(Admission(8, 8), 30.0)
            tasks = [asyncio.create_task(self.run(until_deadline, drain, seconds)) for seconds in (10.0, 100.0)]
            await asyncio.sleep(5.0)
            await drain.begin()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            return [error.args[0] for error in ended]

        assert timed(test)[0] == [10.0, 35.0]

    def test_a_timeout_of_the_run_itself_stays_one(self):
        async def fails(limits):
            raise TimeoutError("a model's own")

        async def test() -> None:
            drain = Drain(Admission(8, 8), 30.0)
            with pytest.raises(TimeoutError, match="own"):
                await self.run(fails, drain)

        timed(test)


class TestReload:
    """SIGHUP in this process."""

    @staticmethod
    def serve(reload: Callable[[], Any], test: Callable[[], Any]) -> None:
        """Run a test beside a server, which a SIGTERM ends."""
        config = gateways.config()

        async def run() -> None:
            server = Server(application(config, open_models(config)), reload=reload)
            with socket.create_server(("127.0.0.1", 0)) as listener:
                task = asyncio.create_task(server.serve(sockets=[listener]))
                while not server.started:
                    await asyncio.sleep(0.01)
                await test()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(task, PATIENCE)

        asyncio.run(run())

    def test_one_at_a_time(self):
        begun, at_once, free = [], [], asyncio.Event()

        async def reload() -> None:
            begun.append(1)
            at_once.append(1)
            assert len(at_once) == 1
            await free.wait()
            at_once.pop()

        async def test() -> None:
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0.05)
            assert len(begun) == 1
            free.set()
            while len(begun) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert len(begun) == 2, "four signals during a reload are one"

        self.serve(reload, test)

    def test_a_failure_changes_nothing(self, caplog):
        tried = []

        async def reload() -> None:
            tried.append(1)
            raise ValueError("the file is gone")

        async def test() -> None:
            for number in (1, 2):
                os.kill(os.getpid(), signal.SIGHUP)
                while len(tried) < number:
                    await asyncio.sleep(0.01)

        self.serve(reload, test)
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
            "the configuration stays as it was"
        ] * 2
