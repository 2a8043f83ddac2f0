"""The setting `limits.shared`: addresses, passwords, `motes serve --check`; and which limits a new file changes."""

from __future__ import annotations

import asyncio
import builtins
import sys

import pytest

import gateways
from motes.cli import main
from motes.errors import ConfigurationError, MissingExtraError
from motes.gateway import shared_counters
from motes.gateway.config import Config
from motes.gateway.gateway import Gateway
from motes.gateway.quotas import LocalCounters
from motes.gateway.reloading import ConfigFile
from motes.gateway.shared_address import VARIABLE, Address, shared_address
from redis_server import Mute, needs_server, running

MODEL = "[models.story]\nlm = 'worlds:language_model'\nmethod = 'majority'\nmax_particles = 64\n"


def load(tmp_path, limits: str) -> Config:
    (tmp_path / "motes.toml").write_text(f"{MODEL}[limits]\n{limits}\n")
    return Config.load(tmp_path / "motes.toml")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://host", "redis://host:6379"),
        ("redis://host:7000/3", "redis://host:7000"),
        ("redis://host/?db=3", "redis://host:6379"),
        ("REDIS://Host:1", "redis://host:1"),
        ("rediss://host/0?ssl_ca_certs=/a.pem&ssl_certfile=/b.pem&ssl_keyfile=/c.pem", "rediss://host:6379"),
        ("redis://[::1]:1", "redis://[::1]:1"),
        ("redis://bücher.example", "redis://bücher.example:6379"),
        ("unix:///run/a%20b.sock?db=1", "unix:///run/a b.sock"),
    ],
)
def test_addresses(tmp_path, address, shown):
    limits = load(tmp_path, f"shared = '{address}'").limits
    assert shared_address(limits.shared).shown == shown
    client = shared_counters.connect(Address.parse(address))
    assert client.connection_pool.connection_kwargs["socket_timeout"] == 1.0


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("", "no blanks"),
        ("host:6379", "begins with redis://"),
        ("http://SECRET", "begins with redis://"),
        ("redis:/host", "names a host"),
        ("redis://", "names a host"),
        ("redis://:6379", "names a host"),
        ("redis://host:0", "a port from 1 to 65535"),
        ("redis://host:65536", "a port from 1 to 65535"),
        ("redis://host:port", "a port from 1 to 65535"),
        ("redis://..", "names a host"),
        ("redis://[::1", "malformed"),
        ("redis://host /0", "no blanks"),
        ("redis://host\\n", "no blanks"),
        ("redis://" + "h" * 1000, "at most 1000 characters"),
        ("redis://host/zero", "number of its database"),
        ("redis://host/-1", "number of its database"),
        ("redis://host/0/1", "number of its database"),
        ("redis://host?db=x", "number of its database"),
        ("redis://host?db", "malformed"),
        ("redis://host?db=x&db=1", "an option twice"),
        ("redis://host/0#1", "no \"#\""),
        ("redis://host?socket_timeout=100", "there may be db;"),
        ("redis://host?ssl_ca_certs=a", "there may be db;"),
        ("unix://run/redis.sock", "absolute"),
        ("unix:///run/", "absolute"),
        ("unix://", "absolute"),
        ("redis://:SECRET@host", VARIABLE),
        ("redis://user@host", VARIABLE),
        ("redis://:SEC/RET@host", VARIABLE),
        ("redis://:SEC#RET@host", VARIABLE),
        ("redis://host?password=SECRET", VARIABLE),
        ("unix://user:SECRET@/run/redis.sock", VARIABLE),
    ],
)  # fmt: skip
def test_bad_addresses_are_refused_and_not_quoted(tmp_path, monkeypatch, address, fault):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, f'shared = "{address}"')
    assert str(caught.value).startswith(f"{tmp_path / 'motes.toml'}: limits.shared: ")
    assert fault in str(caught.value)
    assert "SEC" not in str(caught.value)
    if fault != VARIABLE and address:
        monkeypatch.setenv(VARIABLE, address.replace("\\n", "\nx"))
        with pytest.raises(ConfigurationError, match=f"the environment variable {VARIABLE}: ") as caught:
            shared_address(None)
        assert "SEC" not in str(caught.value)


def test_other_types_are_refused(tmp_path):
    for value in ("1", "true", "['redis://host']", "{url = 'redis://host'}"):
        with pytest.raises(ConfigurationError, match=r"limits\.shared: Input should be a valid string"):
            load(tmp_path, f"shared = {value}")


@pytest.mark.parametrize(
    "address", ["redis://me:SEC%23RET@host:1/2", "redis://host:1/2?username=me&password=SEC%23RET"]
)
def test_a_password_comes_from_the_environment(monkeypatch, address):
    monkeypatch.setenv(VARIABLE, f" {address}\n")
    for configured in (None, "redis://other"):
        found = shared_address(configured)
        assert found.shown == "redis://host:1"
        assert "SEC" not in repr(found) + str(found)
        settings = shared_counters.connect(found).connection_pool.connection_kwargs
        assert (settings["username"], settings["password"], settings["db"]) == ("me", "SEC#RET", 2)
    monkeypatch.setenv(VARIABLE, " ")
    assert shared_address("redis://other").shown == "redis://other:6379"
    assert shared_address(None) is None


def test_without_an_address_each_process_counts_alone():
    gateway = Gateway(gateways.config(), {})
    assert gateway.shared is None
    assert isinstance(gateway.callers._counters, LocalCounters)
    assert not any(metric.samples for metric in gateway.metrics.shared_limits.collect())


def test_the_client_is_an_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def without_redis(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "redis":
            raise ModuleNotFoundError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_redis)
    assert Gateway(gateways.config(), {}).shared is None
    with pytest.raises(MissingExtraError, match=r"pip install 'motes\[redis\]'"):
        Gateway(gateways.config(limits={"shared": "redis://host"}), {})


class TestCheck:
    """`motes serve --check FILE`."""

    def check(self, tmp_path, capsys, address: str) -> tuple[int, str, str]:
        (tmp_path / "motes.toml").write_text(f"{MODEL}[limits]\nshared = '{address}'\n")
        return main(["serve", "--check", str(tmp_path / "motes.toml")]), *capsys.readouterr()

    @needs_server
    def test_a_server_that_answers(self, tmp_path, capsys, monkeypatch):
        with running(tmp_path) as server:
            code, out, err = self.check(tmp_path, capsys, server.url)
            assert (code, err) == (0, "")
            assert f"limits.shared: redis://127.0.0.1:{server.port} can be used\n" in out
            with server.client() as client:
                client.config_set("requirepass", "SECRET")
            code, out, err = self.check(tmp_path, capsys, server.url)
            assert (code, "no fault" in out) == (1, False)
            assert "which shares the limits, cannot be used (AuthenticationError: " in err
            monkeypatch.setenv(VARIABLE, f"redis://:SECRET@127.0.0.1:{server.port}")
            code, out, err = self.check(tmp_path, capsys, "redis://nowhere")
            assert (code, "SECRET" in out + err) == (0, False)

    def test_a_server_that_does_not(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(shared_counters, "TIMEOUT", 0.1)
        with Mute() as mute:
            code, out, err = self.check(tmp_path, capsys, mute.url)
        assert (code, "no fault" in out) == (1, False)
        place = tmp_path / "motes.toml"
        assert f"{place}: limits.shared: {mute.url}, which shares the limits, does not answer within 0.1 s" in err

    def test_a_bad_address(self, tmp_path, capsys, monkeypatch):
        assert self.check(tmp_path, capsys, "host")[0] == 2
        monkeypatch.setenv(VARIABLE, "host")
        code, _, err = self.check(tmp_path, capsys, "redis://host")
        assert (code, VARIABLE in err) == (2, True)


def test_a_new_file_changes_the_limits_that_can_change(tmp_path, caplog):
    config = load(tmp_path, "drain = 30\nparticles = 100\n")
    gateway = Gateway(config, {}, ConfigFile(tmp_path / "motes.toml"))
    live = {"drain": 1.5, "messages": 2, "choices": 3, "heartbeat": 4.0, "connections": 5, "head": 6.0, "body": 7.0,
            "idle": 8.0}  # fmt: skip
    fixed = {"particles": 200, "waiting": 9, "body_bytes": 10, "upload_bytes": 10, "shared": '"redis://host"'}
    load(tmp_path, "".join(f"{name} = {value}\n" for name, value in {**live, **fixed}.items()))
    asyncio.run(gateway.reloading.reload())
    limits = gateway.config.limits
    assert {name: getattr(limits, name) for name in live} == live
    assert {name: getattr(limits, name) for name in fixed} == {name: getattr(config.limits, name) for name in fixed}
    assert {*live, *fixed} == set(type(limits).model_fields)
    assert gateway.drain.seconds == 1.5
    (message,) = caplog.messages
    assert (
        "need a restart: limits.particles, limits.waiting, limits.body_bytes, limits.upload_bytes, limits.shared"
        in message
    )
    load(tmp_path, "drain = 2.5\nparticles = 100\n")
    asyncio.run(gateway.reloading.reload())
    assert (gateway.drain.seconds, len(caplog.messages)) == (2.5, 1)
    assert gateway.config.limits.messages == config.limits.messages
    (tmp_path / "motes.toml").write_text("[limits]\ndrain = -1\n")
    with pytest.raises(ConfigurationError):
        asyncio.run(gateway.reloading.reload())
    assert gateway.drain.seconds == 2.5
