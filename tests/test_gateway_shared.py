"""Counters that gateways share through a real Redis or Valkey server: they count as those of one process do."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys

import pytest

from motes.gateway.keys import Key, digest
from motes.gateway.quotas import DAY, Counter, LocalCounters, Quotas
from motes.gateway.shared_counters import PREFIX, SharedCounters
from redis_server import COUNTER, PATIENCE, Server, needs_server, refusal, run, running


@needs_server
class TestServer:
    @pytest.fixture
    def server(self, tmp_path):
        with running(tmp_path) as server:
            yield server

    def time(self, server: Server, counter: Counter) -> float:
        """The time, by the server's clock, at which a counter was written."""
        with server.client() as client:
            return float(client.hget(f"{PREFIX}{counter.key}:{counter.window}", "time"))

    @pytest.mark.parametrize("seed", range(5))
    def test_it_counts_as_one_process_does(self, server, seed):
        """To the last digit, by the same clock. Times are short here, and so some counters leak fast. The last counter
        of each call has a value, so that the time of the call is known."""
        rng = random.Random(seed)
        leaks = {f"c{number}": rng.choice([0.0, 0.7, 1e3, 1e5, 1e7]) for number in range(8)}
        windows = dict.fromkeys(leaks, 0)
        clock = Counter("clock", 0.0, 0)

        async def test(shared: SharedCounters) -> None:
            alone, seen = LocalCounters(), set()
            for _ in range(400):
                names = rng.sample(sorted(leaks), rng.randrange(1, 5))
                for name in names:
                    windows[name] += leaks[name] == 0.0 and rng.random() < 0.1
                amounts = {
                    Counter(name, leaks[name], windows[name]): rng.choice([0.0, 1.0, 1 / 3, -1.0, -50.0, 7.1, 1e4])
                    for name in names
                }
                values = await shared.add({**amounts, clock: 1.0}, rng.uniform(0, 2e9))
                now = self.time(server, clock)
                assert values == await alone.add({**amounts, clock: 1.0}, now)
                seen |= set(values[:-1])
            assert len(seen) > 300, "the values differ"
            assert 0.0 in seen

        run(server.url, test)

    def test_a_value_between_decreases_and_ends_at_nothing(self, server):
        counter = Counter("a", 50.0, 0)

        async def test(shared: SharedCounters) -> None:
            (first,) = await shared.add({counter: 1000.0}, 0.0)
            began = self.time(server, counter)
            (second,) = await shared.add({counter: 0.0}, 0.0)
            assert second == first - (self.time(server, counter) - began) * 50.0 < first
            (third,) = await shared.add({counter: -2000.0}, 0.0)
            assert third == 0.0

        run(server.url, test)

    def test_the_clocks_of_gateways_may_differ(self, server):
        """By hours: nothing leaks for it. The windows that they see keep their counts."""
        minute = Counter("a/minute", 1 / 60, 0)
        today, tomorrow = COUNTER, Counter(COUNTER.key, 0.0, COUNTER.window + 1)

        async def test(shared: SharedCounters) -> None:
            for now in (1e9, 2e9, 1e9, 2e9, 0.0):
                (value,) = await shared.add({minute: 10.0}, now)
            assert value == pytest.approx(50, abs=1)
            seen = [(await shared.add({window: 1.0}, 0.0))[0] for window in (today, tomorrow, today, tomorrow, today)]
            assert seen == [1, 1, 2, 2, 3]

        run(server.url, test)

    def test_a_server_whose_clock_is_set_back(self, server):
        """As that of the server that takes over may be."""

        async def test(shared: SharedCounters) -> None:
            counter = Counter("a", 1.0, 0)
            await shared.add({counter: 100.0}, 0.0)
            with server.client() as client:
                client.hset(f"{PREFIX}a:0", "time", repr(self.time(server, counter) + 3600))
            assert (await shared.add({counter: 1.0}, 0.0)) == [pytest.approx(101, abs=0.01)]
            assert (await shared.add({counter: 0.0}, 0.0)) == [pytest.approx(101, abs=PATIENCE)]

        run(server.url, test)

    def test_nothing_is_left_behind(self, server):
        async def test(shared: SharedCounters) -> None:
            minute = Counter("a/tokens_per_minute", 10.0, 0)
            await shared.add({minute: 600.0, COUNTER: 3.0, Counter("b", 0.0, 1): 0.0}, 0.0)
            assert server.stored() == [f"{PREFIX}a/particles_per_day:20000", f"{PREFIX}a/tokens_per_minute:0"]
            with server.client() as client:
                day, minutes = (client.pttl(key) / 1000 for key in server.stored())
            assert 60 - PATIENCE < minutes <= 61
            assert minutes > 50, "it is kept until it is empty"
            assert DAY < day <= 2 * DAY
            await shared.add({minute: -600.0, COUNTER: -3.0}, 0.0)
            assert server.stored() == []
            await shared.add({Counter("slow", 1e-300, 0): 1e300, Counter("fast", 1e300, 0): 1e-300}, 0.0)
            with server.client() as client:
                assert all(0 < client.pttl(key) <= 366 * DAY * 1000 for key in server.stored())

        run(server.url, test)

    def test_a_damaged_counter_begins_anew(self, server):
        async def test(shared: SharedCounters) -> None:
            with server.client() as client:
                client.hset(f"{PREFIX}{COUNTER.key}:{COUNTER.window}", mapping={"value": "much", "time": "late"})
            assert await shared.add({COUNTER: 2.0}, 0.0) == [2.0]

        run(server.url, test)

    def test_an_addition_is_one_call_and_many_at_once_are_few(self, server):
        quota = Quotas("a", Key(name="a", sha256=(digest("x"),), requests_per_minute=9, particles_per_day=9).quotas())

        async def test(shared: SharedCounters) -> None:
            quota._counters = shared
            before = server.calls("eval")
            async with quota.reserved(2):
                pass
            assert server.calls("eval") - before == 1
            before = server.calls("eval")
            values = await asyncio.gather(*(shared.add({COUNTER: 1.0}, 0.0) for _ in range(1000)))
            assert sorted(value for (value,) in values) == list(range(1, 1001))
            assert server.calls("eval") - before <= 20
            with server.client() as client:
                assert len(client.client_list()) <= 3, "this one among them"

        run(server.url, test)

    def test_several_processes_lose_no_count(self, server):
        script = (
            "import asyncio\n"
            "from motes.gateway.quotas import Counter\n"
            "from redis_server import COUNTER, run\n"
            "async def test(shared):\n"
            "    for _ in range(20):\n"
            "        await asyncio.gather(*(shared.add({COUNTER: 1.0}, 0.0) for _ in range(20)))\n"
            f"run({server.url!r}, test)\n"
        )
        command = [sys.executable, "-c", script]
        environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
        assert [process.wait(PATIENCE) for process in processes] == [0, 0, 0]

        async def test(shared: SharedCounters) -> None:
            assert await shared.add({COUNTER: 0.0}, 0.0) == [3 * 400]

        run(server.url, test)

    def test_an_addition_that_is_cancelled_adds_nothing(self, server):
        """At whatever moment; and the answers of others stay their own."""
        other = Counter("b/particles_per_day", 0.0, 20_000)
        rng = random.Random(1)

        async def test(shared: SharedCounters) -> None:
            for number in range(1, 201):
                tasks = [asyncio.create_task(shared.add({COUNTER: 1.0}, 0.0)) for _ in range(3)]
                kept = asyncio.create_task(shared.add({other: 1.0}, 0.0))
                end = asyncio.get_running_loop().time() + rng.uniform(0, 0.001)
                while asyncio.get_running_loop().time() < end:
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                done = sum(
                    not isinstance(end, BaseException) for end in await asyncio.gather(*tasks, return_exceptions=True)
                )
                assert await kept == [number]
                assert await shared.add({COUNTER: -float(done)}, 0.0) == [0.0]
                assert shared.is_up

        run(server.url, test)

    def test_at_the_end_everything_is_written(self, server):
        async def test(shared: SharedCounters) -> None:
            async with shared.watched():
                tasks = [asyncio.create_task(shared.add({COUNTER: 1.0}, 0.0)) for _ in range(500)]
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            with server.client() as client:
                assert client.hget(server.stored()[0], "value") == "500"

        run(server.url, test)

    def test_a_socket(self, server):
        async def test(shared: SharedCounters) -> None:
            await shared.add({COUNTER: 1.0}, 0.0)
            assert shared.address.shown == f"unix://{server.socket}"

        run(f"unix://{server.socket}?db=3", test)
        with server.client() as client:
            client.select(3)
            assert client.dbsize() == 1


@needs_server
class TestAccess:
    def test_a_password(self, tmp_path):
        with running(tmp_path, requirepass="secret/of@all") as server:
            place = server.url.removeprefix("redis://")
            assert "(AuthenticationError: " in refusal(server.url)
            wrong = refusal(f"redis://:guessed@{place}")
            assert "(AuthenticationError: " in wrong
            assert "guessed" not in wrong
            for url in (f"redis://:secret%2Fof%40all@{place}", f"unix://{server.socket}?password=secret%2Fof%40all"):
                run(url, lambda shared: shared.probe())

    def test_tls(self, tmp_path):
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run([*made, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
        files = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "cert.pem"}
        settings = {name: str(tmp_path / file) for name, file in files.items()}
        with running(tmp_path, **settings, **{"tls-port": "0", "tls-auth-clients": "no"}) as server:
            with server.client() as client:
                client.config_set("port", "0")
                client.config_set("tls-port", str(server.port))
            url = server.url.replace("redis:", "rediss:")
            assert "CERTIFICATE_VERIFY_FAILED" in refusal(url)
            run(f"{url}?ssl_ca_certs={tmp_path / 'cert.pem'}", lambda shared: shared.probe())

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"replicaof": "127.0.0.1 1", "replica-read-only": "yes"}, "read only replica"),
            ({"maxmemory": "1"}, "maxmemory"),
            ({"user": "default on nopass ~* +@all -eval"}, "NoPermissionError: "),
            ({"user": "default on nopass ~own:* +@all"}, "no permission|NoPermissionError"),
            ({"cluster-enabled": "yes"}, "CLUSTERDOWN|Hash slot not served"),
        ],
    )
    def test_a_server_that_refuses_what_counting_needs(self, tmp_path, settings, reason):
        with running(tmp_path, **settings) as server:
            told = refusal(server.url)
        assert any(each in told for each in reason.split("|")), told
        assert COUNTER.key not in told
