"""Models that `solve` is given by name are opened once per process."""

from __future__ import annotations

import os
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import motes
from motes.errors import EngineError
from motes.opening import Opened
from motes.rewards.mapped import score_of_logit
from motes.rewards.mixture import Mixture

LM = motes.TabularLanguageModel({(): {r"\boxed{1}": 1.0}})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was opened, by a module that makes models; its models' names are "mine:lm" and "mine:reward"."""
    names: list[str] = []

    def lm(**options: Any) -> motes.LanguageModel:
        names.append(f"lm {options}" if options else "lm")
        return LM

    def reward() -> motes.RewardModel:
        names.append("reward")
        return motes.TabularReward({})

    module = types.ModuleType("mine")
    vars(module).update(lm=lm, reward=reward)
    monkeypatch.setitem(sys.modules, "mine", module)
    motes.close_models()
    yield names
    motes.close_models()


def solve(**changes: Any) -> motes.core.Result:
    usual: dict[str, Any] = {"lm": "mine:lm", "reward": "mine:reward", "method": motes.ParticleFilter(2)}
    return motes.solve("?", **{**usual, **changes})


def test_once_for_all_calls_and_again_when_closed(opened: list[str]):
    assert [solve(seed=seed).answer for seed in range(3)] == ["1", "1", "1"]
    assert opened == ["lm", "reward"]
    motes.close_models()
    solve()
    assert opened == ["lm", "reward"] * 2


def test_options_make_another_model_whatever_their_order(opened: list[str]):
    for spec in ("mine:lm?a=1&b=x", "mine:lm", "mine:lm?b=x&a=1", "mine:lm?a=2"):
        solve(lm=spec)
    assert opened == ["lm {'a': 1, 'b': 'x'}", "reward", "lm", "lm {'a': 2}"]


def test_models_of_two_kinds_do_not_mix(opened: list[str]):
    solve(outcome_reward="mine:reward")
    assert sorted(opened) == ["lm", "reward"]


@pytest.mark.parametrize("variable", ["MOTES_API_KEY", "OPENAI_API_KEY", "https_proxy", "HF_HOME"])
def test_another_environment_opens_it_anew(opened: list[str], monkeypatch: pytest.MonkeyPatch, variable: str):
    solve()
    monkeypatch.setenv("UNRELATED", "1")
    solve()
    assert opened == ["lm", "reward"]
    monkeypatch.setenv(variable, "other")
    solve()
    assert opened == ["lm", "reward"] * 2


def test_a_variable_of_a_key_that_the_name_names(opened: list[str], monkeypatch: pytest.MonkeyPatch):
    for key in ("a", "a", "b"):
        monkeypatch.setenv("MY_KEY", key)
        solve(lm="mine:lm?api_key_env=MY_KEY")
    assert len(opened) == 2 + 1


def test_a_checkpoint_that_was_written_anew_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names: list[str] = []
    monkeypatch.setattr(motes.api, "language_model", lambda spec: names.append(spec) or LM)
    (tmp_path / "weights").write_bytes(b"a")
    for time in (1, 1, 2):
        os.utime(tmp_path / "weights", (time, time))
        motes.solve("?", lm=f"hf:{tmp_path}", method=motes.Majority(1))
    assert names == [f"hf:{tmp_path}"] * 2


def test_a_calibration_is_read_each_time(opened: list[str], tmp_path: Path):
    file = tmp_path / "c.json"
    for probability in (0.25, 0.75):
        motes.Calibration((0.5,), (probability,), slope=0).save(str(file))
        result = solve(reward=f"mine:reward?calibration={file}")
        assert result.scores.tolist() == [probability] * 2
    assert opened == ["lm", "reward"]


def test_a_mixture_is_read_each_time_and_its_members_are_opened_once(opened: list[str], tmp_path: Path):
    file, scores = str(tmp_path / "both.json"), []
    for bias in (-1.0, 1.0):
        Mixture(("mine:reward", "confidence:"), (1.0, 0.0), bias).save(file)
        scores.append(solve(reward=f"mix:{file}").scores[0])
    assert scores == pytest.approx([score_of_logit(-1.0), score_of_logit(1.0)])
    solve()
    solve(reward="mix:mine:reward,confidence:")
    assert opened == ["lm", "reward"]


def test_a_module_that_was_loaded_anew_is_asked_anew(opened: list[str], monkeypatch: pytest.MonkeyPatch):
    solve()
    monkeypatch.setattr(sys.modules["mine"], "lm", lambda: motes.TabularLanguageModel({(): {r"\boxed{2}": 1.0}}))
    assert solve().answer == "2"


def test_what_cannot_be_opened_is_tried_again(opened: list[str], monkeypatch: pytest.MonkeyPatch):
    works = [False, True]

    def lm() -> motes.LanguageModel:
        if not works.pop(0):
            raise EngineError("not yet: try again")
        return LM

    monkeypatch.setattr(sys.modules["mine"], "lm", lm)
    with pytest.raises(EngineError, match="not yet"):
        solve()
    assert solve().answer == "1"


def test_threads_wait_for_the_first_of_them():
    kept, started, calls = Opened(), threading.Barrier(4), []

    def open_it() -> object:
        calls.append(1)
        return object()

    def ask() -> None:
        started.wait(10)
        found.append(kept.get("a", None, open_it))

    found: list[object] = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1
    assert len({id(one) for one in found}) == 1
    assert len(found) == 4


def test_a_thread_that_waits_gets_the_error_too():
    kept, opening, asked, errors = Opened(), threading.Event(), threading.Event(), []

    def open_it() -> object:
        opening.set()
        assert asked.wait(10)
        raise EngineError("no")

    def ask() -> None:
        try:
            kept.get("a", None, open_it)
        except EngineError as error:
            errors.append(error)

    first = threading.Thread(target=ask)
    first.start()
    assert opening.wait(10)
    second = threading.Thread(target=ask)
    second.start()
    asked.set()
    for thread in (first, second):
        thread.join(10)
    assert len(errors) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_opens_its_own(opened: list[str]):
    solve()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os._exit(len(motes.opening.once._MODELS._futures))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    solve()
    assert opened == ["lm", "reward"]
