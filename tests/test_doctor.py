"""Served models on the command line, over real connections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engines import TGI, VLLM, Closed, Draw, LlamaCpp, OpenAICompatible, on_a_socket
from motes.cli import main

QUESTION = ["solve", "How many?", "--reward", "none", "--method", "majority", "-n", "8", "--json"]


def motes(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = main(words)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("engine", [VLLM(), LlamaCpp(), TGI()], ids=lambda engine: type(engine).__name__)
def test_doctor_says_what_was_found_and_that_the_contract_is_kept(capsys: Any, engine: Any):
    with on_a_socket(engine) as url:
        code, out, err = motes(capsys, "doctor", f"{url}#tiny")
    assert (code, err) == (0, "")
    assert {"VLLM": "vllm 0.33.0", "LlamaCpp": "llama.cpp b11549-abc", "TGI": "tgi 3.3.6"}[type(engine).__name__] in out
    assert "context  4096 tokens" in out
    assert "yes  continues an answer step by step" in out
    assert out.rstrip().endswith("keeps the contract of a language model")


def test_doctor_says_what_is_lost(capsys: Any):
    with on_a_socket(OpenAICompatible()) as url:
        code, out, _ = motes(capsys, "doctor", url)
        assert (code, "at temperature 0, as steps are not drawn by their own seeds" in out) == (0, True)
        assert "no   draws by the seed of a request\n     runs cannot be repeated" in out
        assert "no   takes token ids as prompts\n     every step's text is tokenised anew" in out
    with on_a_socket(Closed()) as url:
        code, out, _ = motes(capsys, "doctor", url)
        assert (code, "whole answers only, at temperature 0" in out) == (0, True)
        assert "only methods that draw whole answers work: greedy, majority, asc, bon, wbon, refine, pdr" in out


def test_doctor_finds_a_server_that_breaks_the_contract(capsys: Any):
    class Deaf(VLLM):
        def seed(self, seed: int | None) -> int:
            return self.random.getrandbits(60)

    class Blurred(VLLM):
        """Says "stop" for whatever ended an answer."""

        def choice(self, one: Draw, body: dict[str, Any]) -> dict[str, Any]:
            return {**super().choice(one, body), "stop_reason": "\n\n", "finish_reason": "stop"}

    for engine, law in ((Deaf(), "same seed = same tokens"), (Blurred(), "a step contains its delimiter")):
        with on_a_socket(engine) as url:
            code, out, err = motes(capsys, "doctor", url)
            assert code == 1
            assert "yes  draws by the seed of a request" in out, "what its profile says"
            assert f"the contract of a language model does not hold: {law}" in err
            assert motes(capsys, "doctor", url, "--no-contract")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("doctor", "tiny"), 2, "is no server"),
        (("doctor", "URL#tini"), 2, "did you mean 'tiny'"),
        (("doctor", "URL?sed=1"), 2, "did you mean 'seeds'"),
        (("doctor", "http://127.0.0.1:1/v1?attempts=1"), 1, "nothing answers at http://127.0.0.1:1/v1/models"),
        ((*QUESTION, "--model", "URL#tini"), 2, "known are tiny"),
        ((*QUESTION, "--model", "URL", "--top-k", "3", "--min-p", "0.1"), 0, ""),
    ],
)
def test_one_clear_line(capsys: Any, words: tuple[str, ...], code: int, says: str):
    with on_a_socket(VLLM()) as url:
        got, _, err = motes(capsys, *(word.replace("URL", url) for word in words))
    assert got == code
    assert says in err
    assert err.count("\n") == (code > 0)


def test_a_key_that_is_missing(capsys: Any):
    engine = VLLM()
    engine.fails = lambda path, body: httpx2.Response(401)
    with on_a_socket(engine) as url:
        code, _, err = motes(capsys, "doctor", url)
    assert (code, "put a key into MOTES_API_KEY" in err) == (2, True)


def test_a_problem_is_solved_and_the_same_seed_gives_the_same(capsys: Any):
    with on_a_socket(LlamaCpp()) as url:
        runs = [json.loads(motes(capsys, *QUESTION, "--seed", "3", "--model", url)[1]) for _ in range(2)]
    assert runs[0]["answer"] in ("1", "2")
    assert {**runs[0], "seconds": 0} == {**runs[1], "seconds": 0}


def test_what_was_dropped_is_said(capsys: Any):
    engine = VLLM()
    engine.fails = lambda path, body: httpx2.Response(400, text="ill") if body.get("seed", 1) % 3 == 0 else None
    words = ["solve", "How many?", "--reward", "none", "--method", "majority", "-n", "12"]
    with on_a_socket(engine) as url:
        code, out, _ = motes(capsys, *words, "--model", url)
        told = json.loads(motes(capsys, *words, "--model", url, "--json")[1])
    assert code == 0
    assert f"dropped {len(told['dropped'])} that could not be extended or scored; {url}" in " ".join(out.split())
    assert [t["finished"] for t in told["trajectories"]].count("failed") == len(told["dropped"]) > 0
    assert told["rounds"][0]["dropped"] == len(told["dropped"])


def test_a_method_that_needs_steps_is_refused(capsys: Any):
    with on_a_socket(engine := Closed()) as url:
        code, _, err = motes(capsys, "solve", "How many?", "--model", url, "--reward", "none", "--method", "power")
        assert (code, "writes whole answers only" in err) == (2, True)
        drawn = [body for body in engine.asked if body.get("max_tokens") != 8]
        assert drawn == []
        assert motes(capsys, *QUESTION, "--model", url)[0] == 0


def test_an_evaluation_over_http(capsys: Any, tmp_path: Path):
    with on_a_socket(VLLM()) as url:
        words = ("--methods", "majority,greedy", "--budgets", "1,4", "--limit", "3", "--reward", "none")
        code, out, err = motes(capsys, "eval", "--out", str(tmp_path / "out"), *words, "--model", f"{url}#tiny")
    assert (code, "motes: " in err) == (0, False)
    assert "9 runs" in out
