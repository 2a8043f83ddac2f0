"""The bundled language model behind llama.cpp's own server.

`make test-llama-cpp` names this file; a plain `pytest` does not find it.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

import motes
import real_servers
from alike import GREEDY, answers, problems, right, scores
from motes import ParticleFilter, Record, Trajectory, bundled
from motes.lab.measure.statistics import proportion_interval
from motes.methods import Run
from motes.models.fleet import Fleet
from motes.models.served import HTTPLanguageModel
from motes.models.served.probe import probe
from motes.tasks import Arithmetic
from motes.transport import Address, Client
from motes.transport.refusals import limits
from real_servers import Server

READ_AS = f"?format=rlhflow&tokenizer={bundled.path('lm')}"
"""llama.cpp has no classification heads: the language model itself is asked whether "+" or "-" comes next. That means
nothing, but is as good as a reward model of this family to compare scores."""


@pytest.fixture(scope="module")
def lm(llama_cpp: Server) -> motes.LanguageModel:
    return motes.language_model(f"{llama_cpp.root}/v1")


def test_it_is_recognised(lm: HTTPLanguageModel):
    assert lm.capabilities.engine == "llama.cpp"
    assert lm.capabilities.route == "ids"
    assert lm.capabilities.context_length == 1024
    assert lm.capabilities.choices == real_servers.SLOTS


def test_the_contract(lm: motes.LanguageModel):
    motes.check_language_model(lm)


def test_grouped_particles_keep_what_is_left_of_it(llama_cpp: Server):
    motes.check_language_model(motes.language_model(f"{llama_cpp.root}/v1?seeds=group"), sampling=GREEDY)


def test_greedy_answers_are_those_of_the_local_engine(lm: motes.LanguageModel):
    """Token by token: so are the tokens of the prompts."""
    served, local = answers(lm, 20), answers(motes.language_model("tiny"), 20)
    assert [t.step.token_ids for t in served if t.step] == [t.step.token_ids for t in local if t.step]
    assert [t.text for t in served] == [t.text for t in local]


PLAIN = motes.Sampling(temperature=1.0, max_step_tokens=48)


def test_log_probabilities_are_those_of_the_local_engine(lm: HTTPLanguageModel):
    """Of every token of a step: its delimiter's, and the end of sequence, too."""
    drawn = answers(lm, 8, PLAIN)
    local = motes.language_model("tiny")
    for trajectory in drawn:
        for node in trajectory.path:
            assert node.step is not None
            assert node.step.logprob == pytest.approx(local_logprob(local, node), abs=2e-2)  # its cache: half precision
    assert {node.step.end for trajectory in drawn for node in trajectory.path if node.step} >= {"step", "eos"}


def local_logprob(lm: motes.LanguageModel, node: motes.Trajectory) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    global checkpoint
    checkpoint = checkpoint or AutoModelForCausalLM.from_pretrained(bundled.path("lm"), dtype=torch.float32)
    assert node.parent is not None
    assert node.step is not None
    before = [*lm.vocabulary.prompt(node.problem), *(i for step in node.parent.steps for i in step.token_ids)]  # type: ignore[attr-defined]
    ids = torch.tensor([[*before, *node.step.token_ids]])
    with torch.inference_mode():
        logprobs = checkpoint(ids).logits[0].log_softmax(-1)
    return float(sum(logprobs[k - 1, ids[0, k]] for k in range(len(before), ids.shape[1])))


checkpoint: Any = None


def test_the_power_filter_works(lm: motes.LanguageModel):
    result = motes.solve(problems(1)[0], lm=lm, reward=None, method=motes.PowerFilter(8), sampling=PLAIN, seed=0)
    assert result.log_evidence is not None
    assert result.log_evidence < 0
    assert not result.dropped


def test_odd_requests_are_answered_as_the_scripted_server_does(lm: HTTPLanguageModel):
    """What a scripted server assumes is asked of the real one: refusals, and texts that JSON and streams trip over."""
    sampling = motes.Sampling(max_step_tokens=4)

    def extended(question: str, sampling: motes.Sampling = sampling) -> Any:
        return asyncio.run(lm.extend([Trajectory(motes.Problem(question))], sampling, [1]))[0]

    with pytest.raises(motes.errors.ContextLengthError):
        extended("many words " * 2000)
    odd = 'a\u2028b\u2029c\u0085d \ud83d \0 😀 <|im_end|> \x1b[2J data: [DONE]\n\n{"a"'
    assert isinstance(extended(odd), motes.Step)
    assert isinstance(extended(odd, sampling.replace(delimiter=re.compile("x"))), motes.Step)

    async def refused(path: str, body: dict[str, Any]) -> None:
        with pytest.raises(motes.errors.MotesError) as caught:
            await lm.client.post(f"{lm.address.root}/{path}", body, attempts=1)
        refusals.append(str(caught.value))

    async def main() -> None:
        await refused("completion", {"prompt": list(range(3, 103)) * 20, "n_predict": 1})
        await refused("v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]})
        await refused("completion", {"prompt": [10**6], "n_predict": 1})
        await refused("completion", {"n_predict": 1})
        await refused("no/such/route", {})

    refusals: list[str] = []
    asyncio.run(main())
    print("\n".join(refusals))
    for message in refusals[:2]:
        told = limits(message)
        assert told.context == 1024
        assert told.prompt is not None
        assert told.prompt > 1024


def test_the_beginning_of_a_prompt_is_not_doubled(lm: HTTPLanguageModel):
    prompt = asyncio.run(lm._renderer.prompt(problems(1)[0]))
    assert prompt.ids is not None
    assert list(prompt.ids) == motes.language_model("tiny").vocabulary.prompt(problems(1)[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [READ_AS, "?format=rlhflow"])
def test_scores_are_those_of_the_local_engine(llama_cpp: Server, lm: motes.LanguageModel, options: str):
    """With a tokenizer of this side, and with that of the file that the server has loaded."""
    served = motes.reward_model(f"{llama_cpp.root}{options}")
    local = motes.reward_model(f"hf:{bundled.path('lm')}?format=rlhflow")
    motes.check_reward_model(served, tolerance=1e-3)
    written = answers(lm, 20)
    assert scores(served, written) == pytest.approx(scores(local, written), abs=1e-3)


def test_a_filter_answers_as_well_as_over_the_local_engine(lm: motes.LanguageModel):
    reward, method = motes.reward_model("tiny"), ParticleFilter(8)
    local = right(motes.language_model("tiny"), reward, method, 20)
    interval = proportion_interval({str(i): [correct] for i, correct in enumerate(local)})
    served = right(lm, reward, method, 20)
    assert interval.low <= sum(served) / 20 <= interval.high


def test_a_server_that_is_killed_and_returns_in_the_middle_of_runs(gguf: Path):
    """Four filters; when one of them has finished its second round, the requests of the others are in flight. It
    returns when somebody is about to try again."""
    tries = 0

    def kill(_: Run, record: Record) -> None:
        if record.trajectories[0].depth == 2 and not tries:
            server.stop()

    async def return_(_: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            server.start()
        await asyncio.to_thread(server.wait)

    async def main() -> list[motes.Result]:
        address = Address.parse(f"{server.root}/v1")
        client = Client(address.base, sleep=return_)
        lm = HTTPLanguageModel(client, address, await probe(client, address))
        return await asyncio.gather(
            *(
                motes.asolve(
                    problem,
                    lm=lm,
                    reward=motes.FunctionReward(lambda _, text: (len(text) % 7 + 1) / 9),
                    method=ParticleFilter(16),
                    task=Arithmetic(),
                    seed=0,
                    observe=kill,
                )
                for problem in problems(4)
            )
        )

    with real_servers.llama_cpp(gguf) as server:
        results = asyncio.run(main())
    assert tries >= 16, "requests broke off, and were made again"
    for result in results:
        assert not any(record.failures for record in result.records)
        assert all(trajectory.finished in ("eos", "length") for trajectory in result.trajectories)
        assert sum(result.posterior.values()) == pytest.approx(1)


def test_two_servers_as_one_of_which_one_is_killed(llama_cpp: Server, gguf: Path):
    """`kill -9` in the middle of a run, with steps in flight on it: the run goes on on the other server, no particle is
    lost, and the run's texts are those of one server, for seeds give the same tokens on both."""
    problem = Arithmetic().problems("long", limit=1)[0]
    reward = motes.FunctionReward(lambda problem, text: 0.5)
    killed: list[str] = []

    def solve(lm: motes.LanguageModel, observe: Any = None) -> motes.Result:
        options: dict[str, Any] = {"sampling": motes.Sampling(max_steps=8), "task": Arithmetic(), "seed": 5}
        return motes.solve(problem, lm=lm, reward=reward, method=ParticleFilter(8), observe=observe, **options)

    with real_servers.llama_cpp(gguf) as other:
        fleet = motes.language_model([f"{other.root}/v1?attempts=1", f"{llama_cpp.root}/v1"])
        assert isinstance(fleet, Fleet)
        home = fleet.members[0]

        async def kill_at_work() -> None:
            while not home.in_flight:
                await asyncio.sleep(0)
            killed.append(home.name)
            other.stop()

        def observe(run: Run, record: Record) -> None:
            if len(run.records) == 2:
                asyncio.get_running_loop().create_task(kill_at_work())

        through_death = solve(fleet, observe)
    assert killed
    assert fleet.members[0].is_ejected
    assert not through_death.dropped
    alone = solve(motes.language_model(f"{llama_cpp.root}/v1"))
    assert [t.text for t in through_death.trajectories] == [t.text for t in alone.trajectories]
