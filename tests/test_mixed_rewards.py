"""Several reward models as one, with weights fitted to evaluations of the same answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import motes
from motes import Failure, FunctionReward, Problem, Scores, Step, TabularReward, Trajectory, Usage
from motes.cli import main
from motes.conformance import acheck_reward_model
from motes.core import Reads
from motes.errors import ConfigurationError, RewardError
from motes.lab.measure.mixing import PENALTY, Scored, fit_mixture
from motes.lab.measure.statistics import numbered
from motes.opening import check_spec
from motes.protocols import RewardModelTraits
from motes.rewards.mixture import MixedReward, Mixture

ROOT = Trajectory(Problem("How many?"))
PATH = ROOT.extend(Step("a\n\n", "step")).extend(Step("b", "eos"))
A, B = TabularReward({("a\n\n",): 0.9}, default=0.6), TabularReward({("a\n\n",): 0.2}, default=0.5)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scored(reward: Any, *trajectories: Trajectory) -> list[Any]:
    return list(asyncio.run(reward.score(trajectories)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOTES_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# ----------------------------------------------------------------------------------------------------- the mixture


def test_logits_are_added_with_their_weights():
    mixed = MixedReward([A, B], Mixture(("a", "b"), (2.0, -0.5), 0.3))
    (found,) = scored(mixed, PATH)
    expected = [sigmoid(0.3 + 2 * logit(0.9) - 0.5 * logit(0.2)), sigmoid(0.3 + 2 * logit(0.6) - 0.5 * logit(0.5))]
    assert found == pytest.approx(expected)
    (found,) = scored(MixedReward([A, B]), PATH)
    assert found == pytest.approx([sigmoid((logit(0.9) + logit(0.2)) / 2), sigmoid(logit(0.6) / 2)])


def test_certain_scores_stay_numbers():
    mixture = Mixture(("a", "b"), (500.0, 1.0))
    assert mixture([1.0, 0.5]) == 1.0
    assert mixture([0.0, 0.5]) == 0.0
    assert Mixture(("a", "b"), (1.0, 1.0))([1.0, 0.0]) == pytest.approx(0.5)


class Costly:
    """Scores of one value, with a cost for each step."""

    def __init__(self, tokens: int, num_parameters: int | None = 5, **traits: Any) -> None:
        self.tokens, self.num_parameters = tokens, num_parameters
        self.forgotten = self.watched = 0
        for name, value in traits.items():
            setattr(self, name, value)

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Any]:
        return [
            Failure(RewardError("no"), Usage(reward_tokens=1))
            if trajectory.problem.question == "fails"
            else Scores(
                [0.5] * trajectory.depth,
                Usage(reward_tokens=self.tokens * trajectory.depth),
                Reads(3, tuple(self.tokens * n for n in range(trajectory.depth, -1, -1))),
            )
            for trajectory in trajectories
        ]

    def forget(self) -> None:
        self.forgotten += 1

    def watch_requests(self, observe: Any) -> None:
        self.watched += 1


def test_its_cost_is_that_of_all():
    (found,) = scored(MixedReward([Costly(4), motes.ConfidenceReward(), Costly(10)]), ROOT.extend(Step("a", "step")))
    assert found.usage == Usage(reward_tokens=14)
    assert (found.reads.prompt, found.reads.after) == (6, (14, 0))
    (found,) = scored(MixedReward([Costly(4), A]), PATH)  # A does not know what it reads
    assert found.reads is None


def test_what_one_cannot_score_has_no_score():
    failing = Trajectory(Problem("fails")).extend(Step("a", "eos"))
    found, other = scored(MixedReward([Costly(4), A]), failing, PATH)
    assert isinstance(found, Failure)
    assert found.usage.reward_tokens == 1
    assert len(other) == 2


def test_its_traits_are_those_of_its_members():
    first, second = Costly(1, merges_calls=True), Costly(1, None, outcome=True)
    traits = RewardModelTraits(MixedReward([first, second]))
    assert (traits.merges_calls, traits.outcome, traits.top_logprobs, traits.num_parameters) == (False, False, 0, None)
    with_confidence = RewardModelTraits(MixedReward([first, motes.ConfidenceReward(top_logprobs=7)]))
    assert (with_confidence.top_logprobs, with_confidence.num_parameters) == (7, 5)
    assert with_confidence.merges_calls  # it waits for nobody
    mixed = MixedReward([first, second, A])
    mixed.forget()
    mixed.watch_requests(lambda outcome, seconds: None)
    assert (first.forgotten, second.forgotten, first.watched, second.watched) == (1, 1, 1, 1)
    asyncio.run(mixed.ready())


def test_it_keeps_the_contract():
    lengths = FunctionReward(lambda problem, text: 1 / (1 + len(text)))
    asyncio.run(acheck_reward_model(MixedReward([lengths, A])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mixture(("a",), (1.0,)),
        lambda: Mixture(("a", "b"), (1.0,)),
        lambda: Mixture(("a", "b"), (1.0, math.nan)),
        lambda: Mixture(("a", "b"), (1.0, 2.0), math.inf),
        lambda: MixedReward([A]),
        lambda: MixedReward([A, B, A], Mixture(("a", "b"), (1.0, 1.0))),
    ],
)
def test_faulty_mixtures_are_refused(make: Any):
    with pytest.raises(ConfigurationError):
        make()


# ------------------------------------------------------------------------------------------------------- its file


def test_a_file_keeps_it(home: Path):
    mixture = Mixture(("tiny", "confidence:tail"), (1.5, 0.25), -1.0, {"labels": 12})
    path = mixture.save("mine")
    assert path.is_relative_to(home)
    assert json.loads(path.read_text())["labels"] == 12
    assert Mixture.load("mine") == mixture
    Mixture(("tiny", "confidence:"), (1.0, 1.0)).save("mine")  # a new one replaces it
    reward: Any = motes.reward_model("mix:mine")
    assert reward.mixture == Mixture(("tiny", "confidence:"), (1.0, 1.0))
    assert reward.top_logprobs == 20
    check_spec("prm", "mix:mine")


def test_specs_in_a_list_have_equal_weights():
    reward: Any = motes.reward_model("mix:tiny, confidence:lowest")
    assert reward.mixture.weights == (0.5, 0.5)
    assert [type(member).__name__ for member in reward.rewards] == ["LocalPRM", "ConfidenceReward"]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("mix:nothing", "there is no mixture 'nothing'"),
        ("mix:tiny,confidenc:", "names no model"),
        ("mix:tiny,confidence:?window=3", "option"),
        ("mix:", "cannot name"),
    ],
)
def test_faulty_specs(home: Path, spec: str, fault: str):
    for check in (motes.reward_model, lambda spec: check_spec("prm", spec)):
        with pytest.raises(ConfigurationError, match=fault):
            check(spec)


def test_a_damaged_file_or_another_is_named_and_not_written_over(home: Path, tmp_path: Path):
    path = Mixture(("a", "b"), (1.0, 1.0)).save("mine")
    path.write_text(path.read_text().replace('"weights": [1.0, 1.0]', '"weights": [1.0]'))
    with pytest.raises(ConfigurationError, match="is damaged"):
        Mixture.load("mine")
    with pytest.raises(ConfigurationError, match="is no calibration"):
        motes.Calibration.load("mine")
    other = tmp_path / "mine.json"
    other.write_text('{"mine": 1}')
    with pytest.raises(ConfigurationError, match="choose another name"):
        Mixture(("a", "b"), (1.0, 1.0)).save(str(other))
    assert other.read_text() == '{"mine": 1}'


# ------------------------------------------------------------------------------------------------------- its weights


def synthetic(n: int, weights: Sequence[float], bias: float, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, len(weights))) * [1.0, 3.0][: len(weights)]
    right = rng.random(n) < 1 / (1 + np.exp(-(logits @ np.array(weights) + bias)))
    problems = numbered(range(n // 10)).repeat(10)
    return Scored(("a", "b")[: len(weights)], 1 / (1 + np.exp(-logits)), right, problems, problems, 0)


def test_the_weights_are_those_of_the_regression():
    """Against scipy's minimum of the same objective."""
    data = synthetic(400, [1.2, 0.4], -0.5)
    mixture, _ = fit_mixture(data)
    logits = np.log(data.scores / (1 - data.scores))

    def objective(theta: Any) -> float:
        z = logits @ theta[:2] + theta[2]
        fit = np.mean(np.logaddexp(0, z) - data.right * z)
        return float(fit + PENALTY / 2 * np.sum((theta[:2] * logits.std(axis=0)) ** 2))

    best = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    assert [*mixture.weights, mixture.bias] == pytest.approx(best.tolist(), abs=1e-4)


def test_a_mixture_of_two_kinds_of_evidence_is_better_than_either():
    """By far more than chance: 4,000 answers, of which each score sees half of the evidence."""
    data = synthetic(4000, [1.0, 0.33], 0.0)
    mixture, held_out = fit_mixture(data)
    assert mixture.weights == pytest.approx((1.0, 0.33), rel=0.2)
    assert held_out.mixture.value > max(member.value for member in held_out.members) + 0.03
    assert held_out.ece < 0.05


def test_a_reward_that_separates_all_has_finite_weights():
    data = synthetic(200, [1.0, 0.3], 0.0)
    data.scores[:, 0] = np.where(data.right, 0.9, 0.1)
    mixture, _ = fit_mixture(data)
    assert all(math.isfinite(weight) and abs(weight) < 100 for weight in mixture.weights)


def test_a_constant_reward_has_no_weight():
    data = synthetic(200, [1.0, 0.3], 0.0)
    data.scores[:, 1] = 0.5
    mixture, _ = fit_mixture(data)
    assert mixture.weights[1] == pytest.approx(0, abs=1e-9)


def test_too_few_answers_are_refused():
    with pytest.raises(ConfigurationError, match="at least 10 right and 10 wrong"):
        fit_mixture(synthetic(10, [1.0, 0.3], 0.0))
    with pytest.raises(ConfigurationError, match="two reward models or more"):
        fit_mixture(synthetic(100, [1.0], 0.0))


# ---------------------------------------------------------------------------------------------- from two evaluations


def evaluate(out: Path, reward: str, *options: str, method: str = "wbon") -> None:
    words = ["eval", "--split", "validation", "--limit", "12", "--budgets", "4", "--no-traces", "--methods"]
    assert main([*words, method, "--reward", reward, "--out", str(out), *options]) == 0


def test_from_two_evaluations_to_a_mixed_reward(home: Path, tmp_path: Path, capsys: Any):
    evaluate(tmp_path / "a", "tiny")
    evaluate(tmp_path / "b", "confidence:entropy")
    capsys.readouterr()
    assert main(["calibrate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", "both"]) == 0
    out = capsys.readouterr()
    assert "confidence:entropy" in out.out
    assert "--reward 'mix:both'" in out.out + out.err
    mixture = Mixture.load("both")
    assert mixture.rewards == ("tiny", "confidence:entropy")
    assert mixture.provenance["questions"] == 12
    evaluate(tmp_path / "c", "mix:both")
    assert (
        main(["solve", "Ben owns 7. Rosa has 5 more than Ben. How many does Rosa have?", "--reward", "mix:both"]) == 0
    )
    # One evaluation alone calibrates its reward model, also one that cannot score a text again.
    capsys.readouterr()
    assert main(["calibrate", str(tmp_path / "b"), "--out", "sure"]) == 0
    assert motes.Calibration.load("sure").provenance["reward"] == "confidence:entropy"


def test_methods_without_scores_take_no_place_of_those_with_some(tmp_path: Path):
    """Whichever of them ended first."""
    evaluate(tmp_path / "a", "tiny", method="wbon,majority")
    records = tmp_path / "a" / "records.jsonl"
    lines = sorted(records.read_text().splitlines(), key=lambda line: json.loads(line).get("method") == "majority")
    records.write_text("\n".join(lines) + "\n")
    scored = Scored.read([tmp_path / "a"])
    assert scored.dropped == 0
    assert len(set(scored.problems.tolist())) == 12


def test_evaluations_with_other_answers_are_refused(home: Path, tmp_path: Path, capsys: Any):
    evaluate(tmp_path / "a", "tiny")
    evaluate(tmp_path / "b", "confidence:", "--seeds", "3")
    capsys.readouterr()
    assert main(["calibrate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", "both"]) == 2
    assert "have no answers in common" in capsys.readouterr().err
    evaluate(tmp_path / "c", "none", method="majority")
    assert main(["calibrate", str(tmp_path / "a"), str(tmp_path / "c"), "--out", "both"]) == 2
    assert "has no reward model" in capsys.readouterr().err


def test_critiques_are_those_of_the_models_that_have_some():
    class Critic(TabularReward):
        def critique(self, trajectory: Trajectory) -> str | None:
            return self.words

        def __init__(self, words: str | None) -> None:
            super().__init__({})
            self.words = words

    for rewards, told in (
        ([Critic("It is 3."), A, Critic("Is it?")], "It is 3.\n\nIs it?"),
        ([A, Critic(None)], None),
        ([A, B], None),
    ):
        assert RewardModelTraits(MixedReward(rewards)).critique(PATH) == told
