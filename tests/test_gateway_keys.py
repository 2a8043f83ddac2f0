"""Keys: several for a caller, keys that expire, and a file that changes while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import gateways
from motes.errors import ConfigurationError
from motes.gateway import reloading
from motes.gateway.callers import Callers
from motes.gateway.config import Config, Limits
from motes.gateway.errors import RefusedError
from motes.gateway.keys import Key, digest
from motes.gateway.reloading import ConfigFile, Reloading

MODELS = """
[models.story]
lm = "worlds:language_model"
reward = "worlds:reward_model"
task = "arithmetic"
"""


def entry(name: str, *secrets: str, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = {[digest(secret) for secret in secrets]}\n{more}\n'


def load(tmp_path: Path, text: str) -> Config:
    (tmp_path / "motes.toml").write_text(MODELS + text)
    return Config.load(tmp_path / "motes.toml")


def refusal(callers: Callers, authorization: str) -> str:
    with pytest.raises(RefusedError) as caught:
        callers.identify(authorization)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    return str(caught.value)


class TestFile:
    def test_a_digest_or_several(self, tmp_path):
        text = entry("a", "one", "two") + f'[[keys]]\nname = "b"\nsha256 = "{digest("three")}"\n'
        callers = Callers(load(tmp_path, text).keys)
        assert [callers.identify(f"Bearer {key}")[0].name for key in ("one", "two", "three")] == ["a", "a", "b"]
        assert "not known" in refusal(callers, "Bearer four")

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("sha256 = []", "sha256: .*at least 1 item"),
            (f"sha256 = {[digest('x')] * 2}", "sha256: has the same digest twice"),
            (f"sha256 = {[digest('x'), 'motes-SECRET']}", "sha256: must be the SHA-256 of a key"),
            (f"sha256 = '{digest('x').upper()}'", "sha256: must be the SHA-256 of a key"),
            ("sha256 = 5", "sha256: Input should be a list"),
            ("sha256 = [5]", "sha256.0: Input should be a valid string"),
            (f"sha256 = '{digest('x')}'\nexpires = '2026-12-31'", "expires: write a date or a time without quotes"),
            (f"sha256 = '{digest('x')}'\nexpires = 2026-12-31T12:00:00", "expires: add the offset from UTC, or Z"),
            (f"sha256 = '{digest('x')}'\nexpires = 12:00:00", "expires: write a date"),
            (f"sha256 = '{digest('x')}'\nexpires = 1798718400", "expires: write a date"),
            (f"sha256 = '{digest('x')}'\nexpires = true", "expires: write a date"),
        ],
    )
    def test_what_an_entry_cannot_say(self, tmp_path, line, fault):
        with pytest.raises(ConfigurationError, match=rf"motes.toml: keys\.0\.{fault}") as caught:
            load(tmp_path, f"[[keys]]\nname = 'a'\n{line}\n")
        assert "SECRET" not in str(caught.value)

    def test_two_callers_cannot_share_one_of_their_keys(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"keys\.1\.sha256: 'a' has the same key"):
            load(tmp_path, entry("a", "one", "two") + entry("b", "three", "two"))

    @pytest.mark.parametrize(
        ("expires", "last", "first"),
        [
            ("2026-12-31T12:00:00Z", "2026-12-31T12:00:00+00:00", "2026-12-31T12:00:00.000001+00:00"),
            ("2026-12-31T12:00:00+02:00", "2026-12-31T10:00:00+00:00", "2026-12-31T10:00:01+00:00"),
            ("2026-12-31", "2026-12-31T23:59:59+00:00", "2027-01-01T00:00:00+00:00"),
            ("9999-12-31", "9999-12-31T00:00:00+00:00", None),
        ],
    )
    def test_a_key_expires(self, tmp_path, expires, last, first):
        now = datetime(2026, 1, 1, tzinfo=UTC)
        keys = load(tmp_path, entry("a", "one", more=f"expires = {expires}") + entry("b", "two")).keys
        callers = Callers(keys, lambda: now.timestamp())
        assert callers.identify("Bearer one")[0].name == "a"
        now = datetime.fromisoformat(last)
        assert callers.identify("Bearer one")[0].name == "a"
        if first is not None:
            now = datetime.fromisoformat(first)
            assert refusal(callers, "Bearer one") == "this API key has expired"
        assert callers.identify("Bearer two")[0].name == "b"


def test_headers_without_a_key():
    callers = Callers([Key(name="a", sha256=(digest("one"),))])
    assert "send it as" in refusal(callers, "")
    assert "send it as" in refusal(callers, "Bearer")
    assert "not known" in refusal(callers, "Basic one")
    assert callers.identify("bearer  one ")[0].name == "a"


def test_a_caller_that_stays_keeps_its_state():
    one, two = Key(name="a", sha256=(digest("one"),), requests_per_minute=60), Key(name="b", sha256=(digest("two"),))
    callers = Callers([one, two], clock=lambda: 0.0)
    caller, _ = callers.identify("Bearer one")
    caller.present = 3

    async def take(number: int) -> str:
        for _ in range(number):
            async with caller.quotas.reserved(1):
                pass
        return (await caller.quotas.headers())["x-ratelimit-remaining-requests"]

    assert asyncio.run(take(20)) == "40"
    new = Key(name="a", sha256=(digest("new"),), requests_per_minute=30, concurrency=2)
    callers.replace([new])
    assert callers.identify("Bearer new") == (caller, new)
    assert (caller.present, caller.concurrency) == (3, 2)
    assert asyncio.run(take(1)) == "9"
    assert "not known" in refusal(callers, "Bearer one")
    assert "not known" in refusal(callers, "Bearer two")


class Watched:
    """A file, the callers that follow it, and what was logged."""

    def __init__(self, tmp_path: Path, text: str, **changes: object) -> None:
        self.path = tmp_path / "motes.toml"
        self.path.write_text(MODELS + text)
        file = ConfigFile(self.path, changes)
        running = file.load()
        self.callers = Callers(running.keys)
        self.limits: list[Limits] = []  # that were set
        self.reloading = Reloading(file, running, self.callers, self.limits.append)
        self.check()

    def write(self, text: str, models: str = MODELS) -> None:
        self.path.write_text(text + models if text.startswith("host") else models + text)

    def check(self) -> None:
        asyncio.run(self.reloading.check())

    def names(self, *secrets: str) -> list[str]:
        return [self.callers.identify(f"Bearer {secret}")[0].name for secret in secrets]


class TestReloading:
    @pytest.fixture(autouse=True)
    def _log(self, caplog):
        caplog.set_level(logging.INFO, "motes.gateway.reloading")

    def test_a_changed_file_is_read(self, tmp_path, caplog):
        watched = Watched(tmp_path, entry("a", "one"))
        watched.check()
        assert caplog.messages == []
        watched.write(entry("a", "one", "two") + entry("b", "three"))
        watched.check()
        assert watched.names("one", "two", "three") == ["a", "a", "b"]
        (record,) = caplog.records
        assert record.fields == {"keys": ["a", "b"]}
        assert "the keys and the limits are those of the file now" in record.getMessage()
        watched.check()
        assert len(caplog.records) == 1

    def test_a_file_that_says_the_same_changes_nothing(self, tmp_path, caplog):
        watched = Watched(tmp_path, entry("a", "one"))
        os.utime(watched.path, (1, 1))
        watched.check()
        watched.write("# a comment\n" + entry("a", "one"))
        watched.check()
        assert caplog.messages == []
        asyncio.run(watched.reloading.reload())
        assert caplog.messages == [f"{watched.path} has the same settings as before"]

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            (entry("a", "two", more="requests_per_minute = true"), r"keys\.0\.requests_per_minute"),
            (entry("a", "two", more="models = ['none']"), r"'none', which is no model"),
            ("[[keys]", "is not TOML"),
            ("", "keys: there are none any more"),
        ],
    )
    def test_a_file_with_a_fault_changes_nothing(self, tmp_path, text, fault, caplog):
        watched = Watched(tmp_path, entry("a", "one"))
        watched.write(text)
        with pytest.raises(ConfigurationError, match=fault):
            watched.check()
        watched.check()  # it says so once
        assert watched.names("one") == ["a"]
        with pytest.raises(ConfigurationError, match=fault):
            asyncio.run(watched.reloading.reload())
        watched.write(entry("a", "two"))
        watched.check()
        assert watched.names("two") == ["a"]

    def test_a_file_that_is_gone(self, tmp_path):
        watched = Watched(tmp_path, entry("a", "one"))
        watched.path.unlink()
        with pytest.raises(ConfigurationError, match="is no file that can be read"):
            watched.check()
        watched.check()
        assert watched.names("one") == ["a"]
        watched.write(entry("a", "two"))
        watched.check()
        assert watched.names("two") == ["a"]

    def test_a_pipe_is_not_read_again(self, tmp_path):
        watched = Watched(tmp_path, entry("a", "one"))
        watched.path.unlink()
        os.mkfifo(watched.path)
        with pytest.raises(ConfigurationError, match="is no file that can be read"):
            asyncio.run(watched.reloading.reload())

    def test_a_file_that_changed_while_models_were_opened(self, tmp_path):
        path = tmp_path / "motes.toml"
        path.write_text(MODELS + entry("a", "one"))
        file = ConfigFile(path)
        running = file.load()
        path.write_text(MODELS + entry("a", "two"))
        callers = Callers(running.keys)
        asyncio.run(Reloading(file, running, callers, print).check())
        assert callers.identify("Bearer two")[0].name == "a"

    def test_what_needs_a_restart_is_said(self, tmp_path, caplog):
        watched = Watched(tmp_path, entry("a", "one"), port=9)
        other = MODELS.replace("story", '"other tale"')
        watched.write('host = "0.0.0.0"\nport = 7\n', MODELS + other + "particles = 2\n" + entry("a", "two"))
        watched.check()
        assert watched.names("two") == ["a"]
        assert caplog.messages[-1] == f'{watched.path}: these changes need a restart: host, models."other tale"'

    def test_the_first_keys_close_the_door(self, tmp_path):
        watched = Watched(tmp_path, "")
        assert watched.callers.keys == ()
        watched.write(entry("a", "one"))
        watched.check()
        assert watched.names("one") == ["a"]

    def test_a_watch_logs_faults_and_goes_on(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(reloading, "INTERVAL", 0.001)
        watched = Watched(tmp_path, entry("a", "one"))
        watched.write("[[keys]")

        async def main() -> None:
            task = asyncio.create_task(watched.reloading.watch())
            while not caplog.records:
                await asyncio.sleep(0.001)
            watched.write(entry("a", "two"))
            while len(caplog.records) < 2:
                await asyncio.sleep(0.001)
            task.cancel()

        asyncio.run(asyncio.wait_for(main(), 60))
        assert caplog.messages[0].startswith(f"the configuration stays as it was: {watched.path} is not TOML")
        assert watched.names("two") == ["a"]


def test_a_gateway_follows_its_file_and_disturbs_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr(reloading, "INTERVAL", 0.01)
    config = load(tmp_path, entry("a", "one"))
    file = ConfigFile(tmp_path / "motes.toml")
    lm = gateways.Stepwise()
    with gateways.over(lm, config, file) as client:
        body = {"model": "story", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "stream": True}
        with client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"Authorization": "Bearer one"}
        ) as answer:
            assert answer.status_code == 200
            assert lm.waits.wait(10)
            load(tmp_path, entry("a", "two"))
            deadline = time.monotonic() + 60
            while client.get("/v1/models", headers={"Authorization": "Bearer two"}).status_code != 200:
                assert time.monotonic() < deadline
            assert client.get("/v1/models", headers={"Authorization": "Bearer one"}).status_code == 401
            lm.let_go()
            assert "[DONE]" in answer.read().decode()
            assert "error" not in answer.text
