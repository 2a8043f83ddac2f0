"""What the local language model and the local reward model share: damaged weights, models that the engine computes
wrongly, threads that fail, queues that starve, memory."""

from __future__ import annotations

import asyncio
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import motes
from checkpoints import FAMILIES, SMALL, local, local_prm, random_language_model, random_prm, save, vocabulary
from motes import Problem, Sampling, Step, Trajectory
from motes.errors import ConfigurationError, EngineError, RewardError
from motes.kv.runner import BACKEND, ROPES, Runner, _parts, _View, attend
from motes.kv.selfcheck import self_check
from motes.kv.worker import Request, Worker
from motes.models.local import LocalLanguageModel
from motes.rewards.prm import LocalPRM

QUESTION = "Ben owns 7 pears. Rosa has 5 more than Ben. How many does Rosa have?"
ROOT = Trajectory(Problem(QUESTION))


def ask(lm: LocalLanguageModel) -> Step:
    (step,) = asyncio.run(lm.extend([ROOT], Sampling(max_step_tokens=4), [0]))
    return step


def read(prm: LocalPRM) -> list[float]:
    ((score,),) = asyncio.run(prm.score([ROOT.extend(Step("7+5=12.", "step"))]))
    return [score]


# Numbers


@pytest.mark.parametrize("damage", [torch.nan, torch.inf, 1e30])  # the last one overflows on the way
@pytest.mark.parametrize(("make", "use", "error"), [(local, ask, EngineError), (local_prm, read, RewardError)])
def test_logits_that_are_no_numbers_are_an_error_that_says_what_to_try(
    damage: float, make: Callable[[], LocalLanguageModel], use: Callable[[object], object], error: type[Exception]
) -> None:
    engine = make()
    sound = use(engine)
    getattr(engine, "forget", lambda: None)()  # of a reward model: texts that it has read
    norm = engine._runner.body.norm.weight
    weights = norm.clone()
    norm.data.mul_(1e30).mul_(damage)
    with pytest.raises(error, match=r"not numbers in float32 on cpu: try dtype=.*device=cpu.*fetch the checkpoint"):
        use(engine)
    norm.data.copy_(weights)
    assert use(engine) == sound  # nothing spoilt is kept
    engine.check_integrity()


def test_a_spoilt_prefix_is_forgotten() -> None:
    engine = local()
    sound = ask(engine)
    engine.tree.clear()
    weight = engine._runner.body.layers[0].self_attn.v_proj.weight
    kept = weight.clone()
    weight.data.fill_(torch.nan)
    with pytest.raises(EngineError, match="not numbers"):
        ask(engine)
    weight.data.copy_(kept)
    assert ask(engine) == sound
    engine.check_integrity()


def test_float16_that_overflows_is_an_error() -> None:
    model = random_language_model()
    model.lm_head.weight.data *= 1e4
    with pytest.raises(EngineError, match="not numbers in float16"):
        ask(LocalLanguageModel(model.half(), vocabulary()))


def test_damaged_weights_are_found_when_opening(tmp_path: Path) -> None:
    model, prm = random_language_model(), random_prm()
    for damaged in (model, prm):
        damaged.model.layers[1].mlp.down_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(EngineError, match=r"language model 'lm' failed: .*not numbers"):
        motes.language_model(f"hf:{save(model, tmp_path / 'lm')}")
    with pytest.raises(RewardError, match=r"reward model 'prm' failed: .*not numbers"):
        motes.reward_model(f"hf:{save(prm, tmp_path / 'prm')}")


# The engine against the model's own code


def test_models_that_the_engine_computes_wrongly_are_refused() -> None:
    """Attention with sinks, scaled logits, soft caps, keys of another shape: silently wrong, were they not checked."""
    for config_class, model_class, change, what in (
        (GptOssConfig, GptOssForCausalLM, {"num_local_experts": 4}, "GptOss.* its attention .* apart .* family"),
        (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 8.0}, "Granite.* its logits .* apart .* family"),
        (Cohere2Config, Cohere2ForCausalLM, {"pad_token_id": 0}, "Cohere2.* its logits .* apart .* family"),
        (GPTNeoXConfig, GPTNeoXForCausalLM, {}, "cannot run GPTNeoX.* family"),
        (Gemma2Config, Gemma2ForCausalLM, {"pad_token_id": 0}, "attn_logit_softcapping, final_logit_softcapping"),
    ):
        torch.manual_seed(0)
        model = model_class(config_class(**{**SMALL, **change}, initializer_range=0.2)).eval()
        with pytest.raises(ConfigurationError, match=what):
            LocalLanguageModel(model, vocabulary())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_models_that_the_engine_computes_rightly_are_not(dtype: torch.dtype) -> None:
    for family in FAMILIES:
        for seed in range(3):
            LocalLanguageModel(random_language_model(family, seed).to(dtype), vocabulary())
    LocalPRM(random_prm().to(dtype), vocabulary())
    torch.manual_seed(0)
    mixture = MixtralForCausalLM(MixtralConfig(**{**SMALL, "num_local_experts": 4}, initializer_range=0.2))
    LocalLanguageModel(mixture.eval().to(dtype), vocabulary())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "fault",
    [
        lambda options: options.update(scaling=options["scaling"] * 2),
        lambda options: options["view"].mask.zero_(),  # sees the future
        lambda options: options["view"].positions.sub_(options["view"].positions.min()),  # writes over its prefix
    ],
)
def test_any_fault_of_attention_is_found(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[dict[str, Any]], object], dtype: torch.dtype
) -> None:
    def faulty(*args: object, **options: Any) -> object:
        fault(options)
        return attend(*args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, BACKEND, faulty)
    with pytest.raises(ConfigurationError, match="its attention"):
        LocalLanguageModel(random_language_model().to(dtype), vocabulary())
    with pytest.raises(ConfigurationError, match="its attention"):
        LocalPRM(random_prm().to(dtype), vocabulary())


def test_the_check_is_cheap_and_leaves_nothing_behind() -> None:
    model = random_language_model()
    passes: list[int] = []  # the tokens of each
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].numel()))
    self_check(model, model.get_output_embeddings())
    assert len(passes) <= 6
    assert sum(passes) <= 100, "two texts of 16 tokens, read by transformers twice and by the engine once"
    assert model.config._attn_implementation == BACKEND
    assert local().tree.num_tokens == 0


# The thread


class Echo(Worker[Request]):
    """Does nothing, fails as told, notes what happens."""

    busy = False

    def __init__(self) -> None:
        super().__init__("echo")
        self.faults: dict[str, BaseException] = {}
        self.events: list[str] = []
        self.holds = False

    def happen(self, what: str) -> None:
        self.events.append(what)
        if error := self.faults.pop(what, None):
            raise error

    def work(self, arrived: list[Request]) -> None:
        self.happen("work")
        for request in arrived:
            if not self.holds:
                request.resolve("done")

    def abandon(self) -> None:
        self.happen("abandon")

    def failure(self, error: BaseException) -> EngineError:
        self.happen("failure")
        return EngineError(f"failed: {error}")

    async def ask(self, n: int = 1) -> list[object]:
        calls = (self.submit([Told(self)]) for _ in range(n))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)


class Told(Request):
    def __init__(self, echo: Echo) -> None:
        self.echo = echo

    def fail(self, error: BaseException) -> None:
        self.echo.events.append("told")
        super().fail(error)


@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError("broken"), SystemExit("broken")])
def test_those_who_wait_are_told_before_cleaning_up(error: BaseException) -> None:
    worker = Echo()
    worker.faults = {"work": error}
    (failure,) = asyncio.run(worker.ask())
    assert isinstance(failure, EngineError)
    assert failure.__cause__ is error
    assert asyncio.run(worker.ask()) == [["done"]]
    assert worker.events == ["work", "failure", "told", "abandon", "work"]


def test_a_failure_reaches_those_who_came_earlier() -> None:
    worker = Echo()

    async def main() -> list[object]:
        assert await worker.ask() == [["done"]]
        worker.holds = True
        early = asyncio.create_task(worker.ask())
        while worker.events.count("work") < 2:
            await asyncio.sleep(0)
        worker.faults = {"work": ValueError("broken")}
        return [*await worker.ask(), *await early]

    errors = asyncio.run(main())
    assert [str(error) for error in errors] == ["failed: broken"] * 2
    assert errors[0] is not errors[1], "each is raised elsewhere, and collects a traceback of its own"
    assert worker.events.count("told") == 2


def test_a_cleanup_that_fails_leaves_nobody_waiting() -> None:
    worker = Echo()
    worker.faults = {"work": ValueError("first"), "abandon": ValueError("second")}

    async def main() -> None:
        assert [str(e) for e in await worker.ask()] == ["failed: first"]
        late = await worker.ask(2)  # while the thread dies, or after
        assert all(str(e) == "failed: second" for e in late) or late == [["done"]] * 2
        assert await worker.ask() == [["done"]]

    asyncio.run(main())


def test_what_arrives_while_cleaning_up_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, late = Echo(), []
    loop: asyncio.AbstractEventLoop

    def abandon() -> None:
        late.append(asyncio.run_coroutine_threadsafe(worker.submit([Told(worker)]), loop))
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)
        raise ValueError("second")

    monkeypatch.setattr(worker, "abandon", abandon)
    worker.faults = {"work": ValueError("first")}

    async def main() -> object:
        nonlocal loop
        loop = asyncio.get_running_loop()
        await worker.ask()
        while not late:
            await asyncio.sleep(0)
        return (await asyncio.wait_for(asyncio.gather(asyncio.wrap_future(late[0]), return_exceptions=True), 20))[0]

    assert str(asyncio.run(main())) == "failed: second"


def test_a_thread_that_cannot_start_its_work_says_so() -> None:
    worker = Echo()
    worker._num_threads = -1
    (failure,) = asyncio.run(worker.ask())
    assert isinstance(failure, EngineError)
    worker._num_threads = 1
    assert asyncio.run(worker.ask()) == [["done"]]


def test_a_worker_that_is_stopped_tells_those_who_wait_and_starts_again() -> None:
    worker = Echo()
    worker.holds = True

    async def main() -> list[object]:
        waiting = asyncio.create_task(worker.ask(2))
        while worker.events.count("work") < 1:
            await asyncio.sleep(0)
        await asyncio.to_thread(worker.stop)
        assert worker._thread is None
        return await waiting

    assert [str(error) for error in asyncio.run(main())] == ["failed: it was stopped"] * 2
    worker.holds = False
    assert asyncio.run(worker.ask()) == [["done"]]


def test_a_program_may_end_while_the_engine_works() -> None:
    """Its thread, found inside torch by Python's end, would abort the process: exit code 134 and a core dump."""
    program = """
import asyncio, motes
lm = motes.language_model("tiny")
decode, begun = lm._decode, []
lm._decode = lambda: (begun.append(1), decode())
root = motes.core.Trajectory(motes.Problem("Ben owns 7 pears."))
async def main():
    asyncio.ensure_future(lm.extend([root] * 64, motes.Sampling(delimiter=None), range(64)))
    while not begun:
        await asyncio.sleep(0)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_request_that_is_in_no_list_of_the_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its way from the queue into the batch."""
    lm = local()
    monkeypatch.setattr(lm.tree, "match", lambda ids: 1 / 0)

    async def main() -> list[object]:
        calls = (lm.extend([ROOT], Sampling(max_step_tokens=4), [i]) for i in range(3))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

    assert [type(error) for error in asyncio.run(main())] == [EngineError] * 3


# Memory


@pytest.mark.parametrize(
    ("max_tokens", "max_pairs", "most"), [(10**9, 600, 26), (24, 10**9, 11), (24, 600, 26), (10**9, 7, 182)]
)
def test_passes_over_many_tokens_are_bounded(
    monkeypatch: pytest.MonkeyPatch, max_tokens: int, max_pairs: int, most: int
) -> None:
    """Many long rows, which begin unequally far: the mask never exceeds its bound, and the result does not change."""
    runner = local()._runner
    rng = random.Random(0)
    texts = [[rng.randrange(512) for _ in range(length)] for length in (70, 3, 40, 40, 41, 0, 64, 1)]
    cuts = [(text[:n], text[n:]) for text, n in zip(texts, (30, 0, 39, 7, 0, 0, 1, 0), strict=True)]
    passes: list[tuple[int, int]] = []  # tokens, entries of the mask

    class Seen(_View):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            passes.append((self.positions.numel(), self.mask.numel()))

    def read() -> list[torch.Tensor]:
        runner.workspace.clear()
        found: list[list[torch.Tensor]] = [[] for _ in texts]
        runner.workspace.append([torch.empty(0, dtype=torch.long)] * len(texts))
        for part in (0, 1):
            passes.clear()
            for i, _, hidden in runner.feed(0, [cut[part] for cut in cuts]):
                found[i].append(hidden)
        return [torch.cat(pieces) if pieces else torch.empty(0) for pieces in found]

    monkeypatch.setattr("motes.kv.runner._View", Seen)
    with torch.inference_mode():
        expected = read()
        assert len(passes) == 1
        monkeypatch.setattr("motes.kv.runner.PASS_TOKENS", max_tokens)
        monkeypatch.setattr("motes.kv.runner.PASS_PAIRS", max_pairs)
        for mine, theirs in zip(read(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    assert all(tokens == 1 or (tokens <= max_tokens and pairs <= max_pairs) for tokens, pairs in passes)
    assert len(passes) <= most
    assert [len(hidden) for hidden in expected] == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("ends", "parts"),
    [
        ([5, 5, 5, 5, 5], [(5, 5)]),
        ([9, 9, 8, 8, 8], [(5, 9)]),  # spares too little
        ([5, 5, 90, 5, 5], [(2, 5), (2, 90), (1, 5)]),
        ([7], [(1, 7)]),
    ],
)
def test_a_long_row_does_not_make_all_rows_long(
    ends: list[int], parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motes.kv.runner.PART_ROWS", 2)
    assert [(len(ends[rows]), length) for rows, length in _parts(ends)] == parts


def test_rows_that_attend_in_parts_see_what_they_saw_together(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = local()._runner
    rng = random.Random(0)
    texts = [[rng.randrange(512) for _ in range(length)] for length in (3, 5, 60, 4, 2)]

    def read(part_rows: int) -> torch.Tensor:
        monkeypatch.setattr("motes.kv.runner.PART_ROWS", part_rows)
        runner.workspace.clear()
        runner.workspace.append([torch.empty(0, dtype=torch.long)] * len(texts))
        for _ in runner.feed(0, texts):
            pass
        return runner.forward(0, [[7]] * len(texts))

    with torch.inference_mode():
        torch.testing.assert_close(read(2), read(10**9), atol=1e-4, rtol=1e-3)


ROPE_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "factor": 4.0,
        "original_max_position_embeddings": 48,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "proportional": {"factor": 2.0},
}


def rope(kind: str) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, **ROPE_SETTINGS[kind]}


END_AT_64 = SMALL | {"max_position_embeddings": 64, "pad_token_id": 0}


def phi() -> PreTrainedModel:
    factors = {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6}
    sizes = END_AT_64 | {"head_dim": 12}
    config = Phi3Config(**sizes, original_max_position_embeddings=48, rope_parameters=rope("longrope") | factors)
    return Phi3ForCausalLM(config)


def opt() -> PreTrainedModel:
    """Learned positions: there are none beyond the context."""
    sizes = {name: value for name, value in END_AT_64.items() if name not in ("num_key_value_heads", "head_dim")}
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=96, word_embed_proj_dim=48, init_std=0.2))


def gemma(kind: str) -> PreTrainedModel:
    """Rotary embeddings of two kinds in one model."""
    ropes = {"full_attention": rope(kind), "sliding_attention": rope("default")}
    layers = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64, "query_pre_attn_scalar": 16}
    config = Gemma3TextConfig(**END_AT_64, **layers, rope_parameters=ropes)
    return Gemma3ForCausalLM(config)


AT_THE_END: dict[str, Callable[[], PreTrainedModel]] = {
    **{
        kind: lambda kind=kind: random_language_model("llama", max_position_embeddings=64, rope_parameters=rope(kind))
        for kind in ROPE_SETTINGS
    },
    "Phi's": phi,
    "learned": opt,
    "a window": lambda: random_language_model("mistral", sliding_window=64),
    "Gemma's, dynamic": lambda: gemma("dynamic"),
    "Gemma's, longrope": lambda: gemma("longrope"),
}


def test_every_rope_type_of_transformers_is_tried_or_refused() -> None:
    assert ROPE_SETTINGS.keys() == ROPES
    assert {"default", *ROPE_INIT_FUNCTIONS} == ROPES


@pytest.mark.parametrize("kind", AT_THE_END)
def test_no_row_is_changed_by_another_at_the_end_of_its_context(kind: str) -> None:
    """Against transformers' own code, which reads each text alone. Padding stands at no position of its own: one beyond
    the context does not exist, or changes the angles of all rows."""
    model = AT_THE_END[kind]().eval()
    body = model.get_decoder()
    context = 48 if "longrope" in kind or kind == "Phi's" else 64
    assert Runner.context_length(body.config) == context
    rng = random.Random(0)
    texts = [[rng.randrange(512) for _ in range(length)] for length in (context, context - 3, 40, 1)]
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    with torch.inference_mode():
        body.set_attn_implementation("eager")
        expected = [body(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0] for text in texts]
        runner = Runner(body, Runner.pool_for(body.config, 8, model.dtype, model.device))
        runner.workspace.append([torch.empty(0, dtype=torch.long)] * len(texts))
        ends = [(0, 0, 0, 0), (context - 1, 7, 0, 0), (context, context - 3, 33, 0), (context, context - 3, 40, 1)]
        for before, after in pairwise(ends):
            pieces = [text[start:stop] for text, start, stop in zip(texts, before, after, strict=True)]
            for i, _, hidden in runner.feed(0, pieces):
                found[i].append(hidden)
    for mine, theirs in zip(found, expected, strict=True):
        error = (torch.cat(mine) - theirs).norm() / theirs.norm()
        assert error < 1e-5


def test_a_full_context_takes_nobody_down() -> None:
    """Where there are no positions beyond it, one row at the end of its context failed all that were in flight."""
    torch.manual_seed(0)
    lm = LocalLanguageModel(opt().eval(), vocabulary())
    lm.vocabulary.tokenizer.chat_template = None
    sampling = Sampling(temperature=1.0, max_step_tokens=4, delimiter=None)
    long, short = Trajectory(Problem("Ben owns 7 pears. " * 9)), Trajectory(Problem("Rosa has 5. " * 4))
    assert 54 <= len(lm.vocabulary.prompt(long.problem)) <= 56
    assert len(lm.vocabulary.prompt(short.problem)) > 16

    def extended(*nodes: Trajectory) -> list[Step]:
        return asyncio.run(lm.extend(nodes, sampling, [1] * len(nodes)))

    alone = extended(short)
    lm.tree.clear()
    extended(long)  # whose prompt is stored: it needs few tokens now, the other one all of its own
    beside, _ = extended(short, long.extend(Step("1234", "step")))
    assert beside.token_ids == alone[0].token_ids
    again = extended(short)  # from what was stored then
    assert again[0].token_ids == alone[0].token_ids


def test_rotary_embeddings_that_nobody_tried_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motes.kv.runner.ROPES", ROPES - {"yarn"})
    model = AT_THE_END["yarn"]()
    with pytest.raises(ConfigurationError, match="rope_type 'yarn': the local engine cannot run it"):
        LocalLanguageModel(model, vocabulary())
    with pytest.raises(ConfigurationError, match="rope_type 'yarn'"):
        Runner(gemma("yarn").get_decoder(), local()._runner.workspace.pool)


def test_the_context_ends_where_all_angles_would_change() -> None:
    """LongRoPE turns every key by other angles as soon as one text in the batch is long."""
    model = random_language_model("llama", rope_parameters=rope("longrope"))
    assert LocalLanguageModel(model, vocabulary()).context_length == 48
    assert local("llama").context_length == 512


# The benchmark


def test_the_naive_way_runs_in_the_engines_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(random_language_model(), tmp_path / "lm")
    lm = LocalLanguageModel.open(path, dtype="bfloat16")
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "engine.py"))
    models: list[torch.nn.Module] = []
    monkeypatch.setattr("transformers.Qwen2ForCausalLM.eval", lambda model: models.append(model) or model)
    assert benchmark["naive_speed"](lm, path, [], 0) == 0
    assert {(model.dtype, model.device) for model in models} == {(torch.bfloat16, lm._runner.device)}


def test_parameters_that_are_multiplied_are_counted() -> None:
    config = random_language_model().config
    embedding = config.vocab_size * config.hidden_size

    def count(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    for tied in (True, False):
        model = random_language_model(tie_word_embeddings=tied)
        assert LocalLanguageModel(model, vocabulary()).num_parameters == count(model) - (0 if tied else embedding)
    prm = random_prm()
    assert LocalPRM(prm, vocabulary()).num_parameters == count(prm) - prm.config.vocab_size * prm.config.hidden_size
