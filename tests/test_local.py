"""The local language model against transformers' own code, and its promises: sharing, order, memory, failure."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import motes
from checkpoints import END, FAMILIES, local, random_language_model, random_prm, save, vocabulary
from motes import Problem, Sampling, Step, Trajectory
from motes.errors import ConfigurationError, ContextLengthError, EngineError
from motes.kv.worker import Outbox, Request
from motes.models import sampler
from motes.models.local import LocalLanguageModel
from motes.models.sampler import Sampler, uniforms
from motes.vocabulary import TextEnds
from mutations import mutant

QUESTION = "Some friends collect pears. Ben owns 7. Rosa has 5 more than Ben. How many does Rosa have?"
GREEDY = Sampling(temperature=0.0, max_step_tokens=12, delimiter="e")


def extend(lm: LocalLanguageModel, trajectories: list[Trajectory], sampling: Sampling, seeds: list[int]) -> list[Step]:
    return asyncio.run(lm.extend(trajectories, sampling, seeds))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_steps_are_what_transformers_generates(family: str) -> None:
    lm = local(family)
    trajectory = Trajectory(Problem(QUESTION))
    prompt = lm.vocabulary.prompt(trajectory.problem)
    reference = (
        random_language_model(family)
        .generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False, pad_token_id=0, eos_token_id=[END])[
            0, len(prompt) :
        ]
        .tolist()
    )
    drawn: list[int] = []
    while trajectory.finished is None and len(drawn) < 60:
        (step,) = extend(lm, [trajectory], GREEDY, [0])
        trajectory = trajectory.extend(step)
        drawn += step.token_ids
        assert step.text == lm.vocabulary.decode(drawn)[-len(step.text) :]
    assert drawn[:60] == reference[: len(drawn)]
    assert trajectory.depth > 1
    lm.check_integrity()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_contract(family: str) -> None:
    motes.check_language_model(local(family), sampling=Sampling(max_step_tokens=12, delimiter=("e", "\n")))


def test_logprob_is_the_models_at_temperature_one() -> None:
    lm, model = local(), random_language_model()
    root = Trajectory(Problem(QUESTION))
    (step,) = extend(lm, [root], Sampling(temperature=0.5, top_p=0.9, max_step_tokens=9, delimiter=None), [3])
    prompt = lm.vocabulary.prompt(root.problem)
    logits = model(torch.tensor([prompt + list(step.token_ids)])).logits[0].log_softmax(-1)
    expected = sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(step.token_ids))
    assert step.logprob == pytest.approx(expected, abs=1e-3)


def test_proposal_logprob_is_that_of_the_draw() -> None:
    lm, model = local(), random_language_model()
    root = Trajectory(Problem(QUESTION))
    (step,) = extend(lm, [root], Sampling(temperature=0.7, top_k=6, max_step_tokens=9, delimiter=None), [3])
    prompt = lm.vocabulary.prompt(root.problem)
    logits = model(torch.tensor([prompt + list(step.token_ids)])).logits[0, len(prompt) - 1 : -1] / 0.7
    kept = logits.topk(6)
    ranks = [row.tolist().index(token) for row, token in zip(kept.indices, step.token_ids, strict=True)]
    expected = sum(row.log_softmax(-1)[rank].item() for row, rank in zip(kept.values, ranks, strict=True))
    assert step.proposal_logprob == pytest.approx(expected, abs=1e-3)


def test_the_power_filter_runs_on_the_engine_at_any_temperature() -> None:
    sampling = Sampling(temperature=0.6, top_k=20, max_step_tokens=6, max_steps=3, delimiter="e")
    result = motes.solve(QUESTION, lm=local(), reward=None, method=motes.PowerFilter(4), sampling=sampling)
    assert np.isfinite(result.log_evidence)


def test_first_tokens_follow_the_models_distribution() -> None:
    """χ² over the likely tokens and a rest, 4,000 draws, seeds 0 … 3999; false-alarm rate 1e-6."""
    lm, model, n = local(), random_language_model(), 4000
    root = Trajectory(Problem(QUESTION))
    sampling = Sampling(temperature=0.7, max_step_tokens=1)
    steps = extend(lm, [root] * n, sampling, list(range(n)))
    logits = model(torch.tensor([lm.vocabulary.prompt(root.problem)])).logits[0, -1]
    expected = (logits.detach() / 0.7).softmax(-1).double().numpy() * n
    counts = np.bincount([step.token_ids[0] for step in steps], minlength=len(expected))
    likely = expected >= 8
    observed = [*counts[likely], counts[~likely].sum()]
    wanted = [*expected[likely], expected[~likely].sum()]
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    assert len(observed) > 10
    assert statistic < chi2.isf(1e-6, len(observed) - 1)


@pytest.mark.parametrize(
    ("sampling", "warper"),
    [
        (Sampling(temperature=1.3, top_k=5), TopKLogitsWarper(5)),
        (Sampling(temperature=1.3, top_p=0.6), TopPLogitsWarper(0.6)),
        (Sampling(temperature=1.3, min_p=0.2), MinPLogitsWarper(0.2)),
    ],
)
def test_filters_keep_the_tokens_that_transformers_keeps(sampling: Sampling, warper: object) -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2
    kept = LogitsProcessorList([warper])(torch.zeros(1, 1, dtype=torch.long), logits / 1.3).softmax(-1)[0]
    n = 3000
    drawn, _, _ = Sampler([sampling], torch.device("cpu"))(
        logits.expand(n, -1), uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64))
    )
    assert set(drawn.tolist()) <= set(torch.nonzero(kept).flatten().tolist())
    frequencies = torch.bincount(drawn, minlength=40) / n
    assert (frequencies - kept).abs().max() < 6 * 0.5 / n**0.5  # six standard deviations


FILTERS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in itertools.product((0.6, 1.0, 1.7), (0, 6), (1.0, 0.85), (0.0, 0.15))
]


def proposal(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """What a token is drawn from, by definition: the temperature, then the k likeliest, then the fewest whose mass is
    top_p, then those that are min_p times as likely as the likeliest."""
    powers = [math.exp(logit / sampling.temperature) for logit in logits]
    kept = sorted(range(len(logits)), key=lambda token: -powers[token])[: sampling.top_k or None]
    total, mass, nucleus = sum(powers[token] for token in kept), 0.0, []
    for token in kept:
        if mass < sampling.top_p * total:
            nucleus.append(token)
        mass += powers[token]
    likely = [token for token in nucleus if powers[token] >= sampling.min_p * powers[kept[0]]]
    return {token: powers[token] / sum(powers[other] for other in likely) for token in likely}


def check_proposals(kind: type[Sampler]) -> None:
    """Every token that can be drawn, each filter with each other; all in one batch as well as apart."""
    logits = 2 * torch.randn(24, generator=torch.Generator().manual_seed(1))
    grid = (np.arange(400) + 0.5) / 400
    cpu, rows = torch.device("cpu"), []
    for sampling in FILTERS:
        expected = proposal(logits.tolist(), sampling)
        tokens, _, logprobs = kind([sampling], cpu)(logits.expand(400, -1), grid)
        counts = torch.bincount(tokens, minlength=24)
        for token, probability in expected.items():
            assert abs(counts[token].item() - 400 * probability) < 1.001
        assert logprobs.tolist() == pytest.approx([math.log(expected[t]) for t in tokens.tolist()], abs=1e-6)
        rows.append(expected)
    for u in (0.001, 0.4, 0.999):
        tokens, _, logprobs = kind(FILTERS, cpu)(logits.expand(len(FILTERS), -1), np.full(len(FILTERS), u))
        wanted = [math.log(row[token]) for row, token in zip(rows, tokens.tolist(), strict=True)]
        assert logprobs.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
def test_next_to_nothing_is_a_temperature(temperature: float):
    """Logits divided by less than a float32 holds would be infinite, and every probability no number."""
    logits = torch.tensor([[3.0, 50.0, -20.0], [-1.0, -2.0, -3.0]])
    tokens, _, proposals = Sampler([Sampling(temperature=temperature)] * 2, torch.device("cpu"))(
        logits, np.array([0.0, 0.999])
    )
    assert (tokens.tolist(), proposals.tolist()) == ([1, 0], [0.0, 0.0])


def test_proposal_logprobs_hold_every_filter() -> None:
    check_proposals(Sampler)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.any_min_p = any(s.min_p for s in samplings)", "self.any_min_p = False"),
        ("self.top_k = torch.tensor([s.top_k for", "self.top_k = torch.tensor([0 for"),
        ("self.top_p = column([s.top_p for", "self.top_p = column([1.0 for"),
        ("column([max(t, COLDEST) if t else 1.0 for", "column([1.0 for"),
        ("self.min_p * probabilities.amax(-1, keepdim=True)", "self.min_p"),
        ("proposals.log()", "scaled.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)"),
    ],
)
def test_a_proposal_without_a_filter_is_found(old: str, new: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_proposals(mutant(sampler, old, new).Sampler)


def test_the_engine_says_what_its_filters_made_of_each_draw() -> None:
    lm, model = local(), random_language_model()
    root = Trajectory(Problem(QUESTION))
    prompt = lm.vocabulary.prompt(root.problem)
    sampling = Sampling(temperature=1.4, top_k=12, top_p=0.9, min_p=0.1, max_step_tokens=9, delimiter=None)
    for step in extend(lm, [root] * 4, sampling, [1, 2, 3, 4]):
        logits = model(torch.tensor([prompt + list(step.token_ids)])).logits[0, len(prompt) - 1 : -1].tolist()
        draws = zip(logits, step.token_ids, strict=True)
        expected = sum(math.log(proposal(row, sampling)[token]) for row, token in draws)
        assert step.proposal_logprob == pytest.approx(expected, abs=1e-3)


def test_a_batch_may_mix_ways_of_sampling() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    mixed = [Sampling(temperature=0.0), Sampling(top_k=1), Sampling(temperature=0.3, top_p=1e-6)]
    tokens, _, proposals = Sampler(mixed, torch.device("cpu"))(logits, np.array([0.99, 0.99, 0.99]))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert proposals.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)  # each had one token to choose from


def test_uniforms_are_uniform_and_never_one() -> None:
    """Kolmogorov–Smirnov over 50,000 seeds and, separately, positions; 1.36/√n is its 5 % point, 3/√n its 1e-7."""
    n = 50_000
    for u in (
        uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64)),
        uniforms(np.zeros(n, dtype=np.uint64), np.arange(n)),
    ):
        assert u.min() >= 0
        assert u.max() < 1
        assert np.abs(np.sort(u) - (np.arange(n) + 0.5) / n).max() < 3 / n**0.5
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 6 / n**0.5


def test_forks_share_everything_before_them() -> None:
    lm = local()
    root = Trajectory(Problem(QUESTION))
    prompt = len(lm.vocabulary.prompt(root.problem))
    sampling = Sampling(temperature=1.5, max_step_tokens=6, delimiter=None)
    steps = extend(lm, [root] * 8, sampling, list(range(8)))
    assert sum(step.usage.prefill_tokens for step in steps) == prompt - 1  # the last token is fed when drawing
    children = [root.extend(step) for step in steps if step.end != "eos"]
    assert children
    again = extend(lm, children * 3, sampling, list(range(3 * len(children))))
    assert sum(step.usage.prefill_tokens for step in again) == 0
    lm.check_integrity()


@pytest.mark.parametrize("options", [{"max_cached_tokens": 40}, {"max_batch_tokens": 150}, {"max_batch_size": 2}])
def test_bounds_change_cost_not_results(options: dict[str, int]) -> None:
    sampling = Sampling(temperature=1.2, max_step_tokens=8, delimiter="e")
    questions = [QUESTION, "What is 2+2?", "Some friends collect coins. Mia owns 3. How many does Mia have?"]

    def rounds(lm: LocalLanguageModel) -> list[str]:
        population = [Trajectory(Problem(question)) for question in questions for _ in range(3)]
        for t in range(3):
            seeds = [100 * t + i for i in range(len(population))]
            steps = extend(lm, population, sampling, seeds)
            lm.check_integrity()
            population = [p.extend(s) for p, s in zip(population, steps, strict=True) if s.end != "eos"]
        return [trajectory.text for trajectory in population]

    bounded = local(**options)
    assert rounds(bounded) == rounds(local())
    assert bounded.tree.num_tokens <= bounded.tree.pool.capacity


def test_text_made_elsewhere_can_be_continued() -> None:
    lm = local()
    written = Trajectory(Problem(QUESTION)).extend(Step("So Rosa owns 12.\n\n", "step"))
    (step,) = extend(lm, [written], GREEDY, [0])
    ids = lm.vocabulary.prompt(written.problem) + lm.vocabulary.encode(written.text)
    assert random_language_model()(torch.tensor([ids])).logits[0, -1].argmax() == step.token_ids[0]


def test_special_tokens_in_text_made_elsewhere_are_text() -> None:
    lm = local()
    end = lm.vocabulary.tokenizer.eos_token
    root = Trajectory(Problem(QUESTION))
    ids, num_answer = lm._ids(root.extend(Step(f"First{end}\n\n", "step")).extend(Step(f"{end}then", "step")))
    written = ids[len(ids) - num_answer :]
    assert lm.vocabulary.tokenizer.eos_token_id not in written
    assert lm.vocabulary.decode(written) == f"First{end}\n\n{end}then"


def test_limits_on_tokens() -> None:
    lm = local()
    root = Trajectory(Problem(QUESTION))
    few = Sampling(temperature=1.0, max_step_tokens=5, max_tokens=7, delimiter=None)
    (first,) = extend(lm, [root], few, [1])
    assert (len(first.token_ids), first.end) == (5, "step")  # a step is five tokens
    (second,) = extend(lm, [root.extend(first)], few, [2])
    assert (len(second.token_ids), second.end) == (2, "length")
    (third,) = extend(lm, [root.extend(first).extend(second)], few, [3])
    assert (third.text, third.end, third.token_ids) == ("", "length", ())


@pytest.mark.parametrize("place", ["generation_config", "config", "both"])
def test_the_end_token_is_no_part_of_the_text(place: str) -> None:
    """Whatever names it, and whether or not the tokenizer calls it special."""
    root = Trajectory(Problem(QUESTION))
    sampling = Sampling(temperature=0.0, max_step_tokens=12, delimiter=None)
    (whole,) = extend(local(), [root], sampling, [0])
    words = vocabulary()
    n, token = next((n, t) for n, t in enumerate(whole.token_ids) if words.decode([t]) and t not in whole.token_ids[:n])
    model = random_language_model()
    model.generation_config.eos_token_id = {"generation_config": [END, token], "config": None, "both": token}[place]
    model.config.eos_token_id = {"generation_config": END, "config": [token], "both": END}[place]
    (step,) = extend(LocalLanguageModel(model, words), [root], sampling, [0])
    assert (step.end, step.token_ids) == ("eos", whole.token_ids[: n + 1])
    assert step.text == words.decode(whole.token_ids[:n])


def test_an_end_token_of_number_zero_is_one() -> None:
    model = random_language_model()
    model.generation_config.eos_token_id, model.config.eos_token_id = 0, None
    assert LocalLanguageModel(model, vocabulary())._is_eos[0]


def test_texts_to_look_for_are_made_ready_once_and_beside_the_thread_that_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, made = local(), []
    make = lm.vocabulary.text_ends

    def noted(texts: tuple[str, ...], num_tokens: int) -> TextEnds:
        made.append((texts, threading.current_thread()))
        return make(texts, num_tokens)

    monkeypatch.setattr(lm.vocabulary, "text_ends", noted)
    root, one = (
        Trajectory(Problem(QUESTION)),
        Sampling(max_step_tokens=3, stop=("Human:", *(8 * letter for letter in "abcdefgh"))),
    )

    async def main() -> None:
        await asyncio.gather(*(lm.extend([root], one, [seed]) for seed in range(5)))
        for i in range(70):
            await lm.extend([root], one.replace(max_step_tokens=1, stop=f"stop {i}"), [0])
        await lm.extend([root], one, [7])

    asyncio.run(main())
    assert [texts for texts, _ in made].count((*one.delimiters, *one.stops)) == 2, "once, and again when forgotten"
    assert len(lm._text_ends) <= 64
    assert lm._thread not in {thread for _, thread in made}
    assert threading.main_thread() not in {thread for texts, thread in made if len(texts) > 8}


def test_the_context_is_the_end() -> None:
    lm = LocalLanguageModel(random_language_model(max_position_embeddings=64), vocabulary())
    root = Trajectory(Problem(QUESTION))
    room = 64 - len(lm.vocabulary.prompt(root.problem))
    (step,) = extend(lm, [root], Sampling(temperature=0.0, delimiter=None), [0])
    assert (len(step.token_ids), step.end) == (room, "length")
    with pytest.raises(ContextLengthError, match="shorten the question"):
        extend(lm, [Trajectory(Problem(QUESTION * 4))], GREEDY, [0])


def test_mistrals_window_bounds_the_context() -> None:
    lm = LocalLanguageModel(random_language_model("mistral", sliding_window=96), vocabulary())
    assert lm.context_length == 96


def test_concurrent_runs_do_not_change_each_other() -> None:
    lm = local()
    reward = motes.FunctionReward(lambda problem, text: (sum(map(ord, text)) % 97 + 1) / 99)
    sampling = Sampling(temperature=1.0, max_step_tokens=8, max_steps=4, delimiter="e")

    def run(i: int):
        return motes.asolve(
            f"{QUESTION} {i}", lm=lm, reward=reward, method=motes.ParticleFilter(4), sampling=sampling, seed=i
        )

    async def together() -> list[motes.Result]:
        return await asyncio.gather(*(run(i) for i in range(6)))

    merged = asyncio.run(together())
    alone = [asyncio.run(run(i)) for i in range(6)]
    for a, b in zip(merged, alone, strict=True):
        assert [t.text for t in a.trajectories] == [t.text for t in b.trajectories]
        assert a.usage.generated_tokens == b.usage.generated_tokens


def test_a_cancelled_call_leaves_the_batch() -> None:
    lm = local()
    endless = Sampling(temperature=1.0, max_step_tokens=400, delimiter=None)

    async def main() -> Step:
        task = asyncio.create_task(lm.extend([Trajectory(Problem(QUESTION))] * 3, endless, [1, 2, 3]))
        (step,) = await lm.extend([Trajectory(Problem(QUESTION))], GREEDY, [0])  # by then the others decode
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lm.extend([Trajectory(Problem(QUESTION))], GREEDY, [0])  # one more round, which sees the cancellation
        return step

    assert asyncio.run(main()).token_ids
    assert not lm.busy
    lm.check_integrity()


def test_a_failure_reaches_the_callers_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = local()
    root = Trajectory(Problem(QUESTION))
    before = extend(lm, [root], GREEDY, [0])
    with monkeypatch.context() as patch:
        patch.setattr(lm, "_head", lambda hidden: 1 / 0)
        with pytest.raises(EngineError, match="division by zero") as caught:
            extend(lm, [root] * 2, GREEDY, [0, 1])
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert extend(lm, [root], GREEDY, [0]) == before
    lm.check_integrity()


def test_a_failure_on_the_way_into_the_batch_reaches_those_who_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = local(max_batch_size=1)
    append, calls = lm._runner.workspace.append, iter(range(9))

    def second_fails(stored: list[torch.Tensor]) -> None:
        if next(calls) == 1:
            raise MemoryError("no room")
        append(stored)

    monkeypatch.setattr(lm._runner.workspace, "append", second_fails)

    async def main() -> list[object]:
        calls = (lm.extend([Trajectory(Problem(QUESTION))], GREEDY, [i]) for i in range(3))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

    done, *failed = asyncio.run(main())
    assert isinstance(done, list)
    assert [type(error) for error in failed] == [EngineError] * 2
    lm.check_integrity()


def test_one_long_sequence_after_many_short_ones_stays_within_the_batch() -> None:
    lm = local(max_batch_tokens=2000)
    short, long = Sampling(temperature=1.0, max_step_tokens=4), Sampling(temperature=1.0, max_step_tokens=300)
    extend(lm, [Trajectory(Problem("Hi"))] * 32, short, list(range(32)))
    assert lm._runner.workspace.data.shape[2] > 8
    extend(lm, [Trajectory(Problem(QUESTION))], long.replace(delimiter=None), [4])
    rows, length = lm._runner.workspace.data.shape[2], lm._runner.workspace.data.shape[4]
    assert rows * length <= 2000


def test_a_long_sequence_lengthens_no_rows_that_nobody_uses() -> None:
    workspace = local()._runner.workspace
    workspace.reserve(64, 8)
    workspace.append([torch.empty(0, dtype=torch.long)])
    workspace.reserve(1, 100)
    assert workspace.data.shape[2] == 2
    assert workspace.data.shape[4] >= 100


def test_a_dead_thread_is_replaced() -> None:
    lm = local()
    lm._thread = threading.Thread()  # as a forked process sees it
    lm._round.acquire()  # where it was forked while the thread worked
    assert extend(lm, [Trajectory(Problem(QUESTION))], GREEDY, [0])


def test_a_loop_that_closes_meanwhile_does_not_disturb() -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("Event loop is closed")

    outbox, request = Outbox(), Request()
    request.loop = Mock(is_closed=lambda: False, call_soon_threadsafe=closed)  # open when looked at
    request.outbox = outbox
    request.resolve(1)
    outbox.deliver()


def test_checkpoints_open_by_path_and_wrong_ones_are_refused(tmp_path) -> None:
    path = save(random_language_model("llama"), tmp_path / "lm")
    lm = motes.language_model(f"hf:{path}")
    assert len(extend(lm, [Trajectory(Problem(QUESTION))], GREEDY, [0])) == 1
    with pytest.raises(ConfigurationError, match="nowhere"):
        motes.language_model(f"hf:{tmp_path}/nowhere")
    with pytest.raises(ConfigurationError, match="dtype"):
        motes.language_model(f"hf:{path}", dtype="float12")
    prm = save(random_prm(), tmp_path / "prm")
    with pytest.raises(ConfigurationError):
        motes.language_model(f"hf:{prm}")
