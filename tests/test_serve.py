"""`motes serve` and `motes key` as commands: a process that listens, is stopped, and says what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx2
import pytest

from motes.cli import main
from motes.gateway.config import Config
from motes.gateway.keys import digest, find_key

MODELS = ["--model", "worlds:language_model", "--reward", "worlds:reward_model", "--task", "arithmetic"]


@contextmanager
def serving(*words: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it listens."""
    command = [sys.executable, "-m", "motes", "serve", "--port", "0", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stderr.readline()
        yield process, re.search(r"http://\S+", line)[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_it_serves_until_it_is_told_to_stop():
    with serving(*MODELS, "-n", "4", "--name", "story") as (process, address):
        body = {
            "model": "story",
            "messages": [{"role": "user", "content": "What is 2 + 2?"}],
            "motes": {"particles": 4},
        }
        headers = {"authorization": "Bearer a-secret"}
        answer = httpx2.post(f"{address}/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.json()["motes"]["particles"] == 4
        line = process.stderr.readline()
        told = json.loads(line)
        assert told["request"] == answer.headers["x-request-id"]
        assert (told["model"], told["status"], told["particles"], told["level"]) == ("story", 200, 4, "info")
        assert "2 + 2" not in line
        assert "a-secret" not in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_traces_go_where_the_environment_says():
    """All that there are, also when it is told to stop at once."""
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *told: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        Thread(target=collector.serve_forever).start()
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_SERVICE_NAME": "answers",
        }
        with serving(*MODELS, "--name", "story", **variables) as (process, address):
            body = {"model": "story", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
            assert httpx2.post(f"{address}/chat/completions", json=body, timeout=60).is_success
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        collector.shutdown()
    ((path, told),) = received
    assert path == "/v1/traces"
    assert all(word in told for word in (b"answers", b"wait for room", b"run", b"round", b"motes.ess"))


def test_a_file_says_what_is_served(tmp_path):
    (tmp_path / "motes.toml").write_text('[models.vote]\nlm = "worlds:language_model"\nmethod = "majority"\n')
    with serving("--config", str(tmp_path / "motes.toml")) as (_, address):
        assert [model["id"] for model in httpx2.get(f"{address}/models").json()["data"]] == ["vote"]


def test_on_a_hangup_the_file_is_read_again(tmp_path):
    """A process that reads the file again goes on; one without a file ends as it does on SIGTERM."""
    file = tmp_path / "motes.toml"
    text = '[models.vote]\nlm = "worlds:language_model"\nmethod = "majority"\n[[keys]]\nname = "a"\nsha256 = "{}"\n'

    def status(address: str, key: str) -> int:
        return httpx2.get(f"{address}/models", headers={"authorization": f"Bearer {key}"}).status_code

    file.write_text(text.format(digest("old")))
    with serving("--config", str(file)) as (process, address):
        assert (status(address, "old"), status(address, "new")) == (200, 401)
        file.write_text(text.format(digest("new")))
        process.send_signal(signal.SIGHUP)
        assert json.loads(process.stderr.readline())["keys"] == ["a"]
        assert (status(address, "old"), status(address, "new")) == (401, 200)
        file.write_text("[[keys]")
        process.send_signal(signal.SIGHUP)
        while (told := json.loads(process.stderr.readline()))["level"] != "error":
            pass  # the file may have been read twice, as it is watched, too
        assert "the configuration stays as it was" in told["message"]
        assert status(address, "new") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with serving(*MODELS) as (process, address):
        assert status(address, "none") == 200
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0


def test_a_key_is_made_for_the_file(tmp_path, capsys):
    assert main(["key", 'team "a"']) == 0
    told = capsys.readouterr().out
    secret = re.search(r"motes-\S+", told)[0]
    config = Config.bundled(keys=tomllib.loads(told)["keys"])
    assert find_key(config.keys, secret).name == 'team "a"'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--config", "x.toml", "--model", "tiny"], "--config says which models there are"),
        (["--reward", "tiny"], "go with --model"),
        (["--model", "tiny"], "needs a reward model"),
        (["--model", "tiny", "--reward", "tiny", "--method", "pff"], "did you mean 'pf'"),
        (["--host", "0.0.0.0"], "there is no key"),
        (["--port", "70000"], "port: "),
        (["--host", "127.0.0.1", "--model", "no:thing", "--reward", "tiny"], "there is no module 'no'"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", "0", *words] if "--port" not in words else ["serve", *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.splitlines()[-1].startswith("motes: ")


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use; try another --port" in capsys.readouterr().err
