"""Where steps and answers end: by delimiters, by a pattern, after so many tokens, by stop texts; in text, and in every
engine, however tokens cut the text. Thinking is text like any other."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import engines
import motes
import motes.steps as steps
from checkpoints import END, local, random_language_model, vocabulary
from engines import LlamaCpp, SGLangThatRenders, connect, draw, encode, render
from motes import ParticleFilter, Problem, Sampling, Step, TabularLanguageModel, TabularReward, Trajectory
from motes.conformance import acheck_language_model
from motes.errors import ConfigurationError, ContractError, MotesError
from motes.models.local import LocalLanguageModel
from motes.steps import MATCH_LENGTH, Cut, first_cut, split_at_end
from motes.tasks import BoxedAnswers
from motes.vocabulary import Vocabulary
from mutations import mutant
from test_served import PROMPT, ROOT, WITH_IDS, WITH_TEXT, WITHOUT_SEEDS, server
from test_tokenizers import KINDS, of

HEADERS = re.compile(r"\n\n(?=## Step \d+:)")
SOLUTION = "## Step 1: Add\n7+5=12\n\nSo twelve.\n\n## Step 2: Double\n24\n\n## Step 10: Say\nIt is \\boxed{24}."


def split(text: str, sampling: Sampling) -> list[str]:
    """A whole text as steps; what stands behind a stop text is left out."""
    parts = []
    while (cut := first_cut(text, sampling)) is not None:
        parts.append(text[: cut.end])
        text = "" if cut.is_stop else text[cut.end :]
    return [*parts, text] if text else parts


# ------------------------------------------------------------------------------------------------------------- in text


def test_a_header_begins_a_step():
    parts = split(SOLUTION, Sampling(delimiter=HEADERS))
    assert [part[:10] for part in parts] == ["## Step 1:", "## Step 2:", "## Step 10"]
    assert "".join(parts) == SOLUTION
    assert parts[0].endswith("So twelve.\n\n")


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        (r"\n+", ["a\n", "\n\nb.\n", "c"]),  # as early as possible; a step is never blank
        (r"\n+(?=[^\n])", ["a\n\n\n", "b.\n", "c"]),
        (r"(?<=[.])\n", ["a\n\n\nb.\n", "c"]),
        (r"(?=b)", ["a\n\n\n", "b.\nc"]),
        (r"(?m)^b", ["a\n\n\nb", ".\nc"]),
        (r"(?i)B", ["a\n\n\nb", ".\nc"]),
        (r"x", ["a\n\n\nb.\nc"]),
    ],
)
def test_where_patterns_end_steps(pattern: str, parts: list[str]):
    assert split("a\n\n\nb.\nc", Sampling(delimiter=re.compile(pattern))) == parts


def test_a_match_is_no_longer_than_it_may_be():
    pattern = Sampling(delimiter=re.compile(r"\(.*\)"))
    fits, too_long = (f"So ({'1' * n})" for n in (MATCH_LENGTH - 2, MATCH_LENGTH - 1))
    assert first_cut(fits, pattern) == Cut(len(fits), False)
    assert first_cut(too_long, pattern) is None


def test_what_is_complete_first_counts_and_then_the_stop_text():
    sampling = Sampling(delimiter="b\n", stop=("\n", "stop"))
    assert first_cut("ab\n", sampling) == Cut(2, True)
    assert first_cut("astop b\n", sampling) == Cut(1, True)
    assert first_cut("ab\nstop", Sampling(delimiter="b\n", stop="stop")) == Cut(3, False)
    by_pattern = Sampling(delimiter=re.compile("[.]"), stop=".")
    assert first_cut("a.", by_pattern) == Cut(1, True)
    assert first_cut("a.", by_pattern.replace(stop=";")) == Cut(2, False)


KINDS_OF_ENDS = [
    Sampling(delimiter=("ab", "\n\n", "b.")),
    Sampling(delimiter="b\n", stop=("a#", "\n\n\n")),
    Sampling(delimiter=None, stop="aa"),
    *(
        Sampling(delimiter=re.compile(pattern), stop=stop)
        for pattern in (r"\n\n(?=#)", r"a+", r"[ab][.\n]", r"(?<!a)b", r"\bab\b", r"#(a|ab)\n", r"a$", r"(?=b)")
        for stop in ((), "b#")
    ),
]
TEXTS = st.text(alphabet="ab.#\n ", max_size=24)


def by_definition(text: str, sampling: Sampling) -> Cut | None:
    """Letter by letter."""
    for k in range(1, len(text) + 1):
        seen = text[:k]
        if stops := [k - len(stop) for stop in sampling.stops if seen.endswith(stop)]:
            return Cut(min(stops), True)
        if seen.endswith(sampling.delimiters or ("nothing of the kind",)):
            return Cut(k, False)
        matches = sampling.pattern.finditer(seen) if sampling.pattern else ()
        for match in matches:
            if seen[: match.end()].strip():
                return Cut(match.end(), False)
    return None


@pytest.mark.parametrize("sampling", KINDS_OF_ENDS, ids=lambda s: f"{s.delimiter}-{s.stop}")
@given(text=TEXTS, cuts=st.lists(st.integers(0, 24)))
@example(text="a\n\n\n\n#", cuts=[2, 3, 5])
def test_the_first_cut_is_found_in_whatever_pieces_text_comes(sampling: Sampling, text: str, cuts: list[int]):
    expected = by_definition(text, sampling)
    assert first_cut(text, sampling) == expected
    for before, now in pairwise(sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})):
        if (found := first_cut(text[:now], sampling, before)) is not None:
            assert found == expected
            return
    assert expected is None


ODD_PATTERNS = [
    *(
        r"\n\n(?=#)",
        r"a+",
        r"a+b?",
        r"[ab][.\n]",
        r"(?<!a)b",
        r"#(a|ab)\n",
        r"(?=b)",
        r"(?m)^b",
        r"a.*b",
        r"\s+(?=a)",
        r"(?i)B",
    ),
    *(r"a$", r"\bab\b", r"b\B", r"a\Z", r"(?m)b$", r"a(?!b)", r"a(?!$)", r"(?<!a(?=b))b"),  # which see the end
    *(r"(?>ab|a)b", r"a++b?\.", r"(?=(ab|a))\1#", r"(?=(?P<x>ab|a))(?P=x)b", r"(?:(?=(ab)|a))(?(1)#|a)"),
]


def letter_by_letter(pattern: re.Pattern[str], text: str, start: int, length: int) -> int | None:
    """Where the match ends that is complete first: as the engines looked for it before they spared most searches."""
    blank = len(text) - len(text.lstrip())
    for complete in range(max(start, blank) + 1, len(text) + 1):
        for match in pattern.finditer(text, max(0, complete - length), complete):
            if match.end() > blank:
                return match.end()
    return None


def assert_found_letter_by_letter(pattern: str, text: str, length: int, cuts: Sequence[int] = ()) -> None:
    """Whole and in pieces, where a match is no longer than `length`."""
    compiled = re.compile(pattern)
    sampling = Sampling(delimiter=compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "MATCH_LENGTH", length)
        for before, now in ((0, len(text)), *pairwise(sorted({0, *(min(c, len(text)) for c in cuts), len(text)}))):
            expected = letter_by_letter(compiled, text[:now], before, length)
            assert first_cut(text[:now], sampling, before) == (None if expected is None else (expected, False))


@pytest.mark.parametrize("pattern", ODD_PATTERNS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="ab.#\n ", max_size=40), cuts=st.lists(st.integers(0, 40)), length=st.integers(1, 12))
def test_searches_are_spared_and_nothing_is_missed(pattern: str, text: str, cuts: list[int], length: int):
    assert_found_letter_by_letter(pattern, text, length, cuts)


class Counted:
    """A pattern that counts the characters that searches of it may look at."""

    def __init__(self, pattern: str) -> None:
        self.compiled, self.pattern, self.seen = re.compile(pattern), pattern, 0

    def search(self, text: str, start: int, stop: int) -> re.Match[str] | None:
        self.seen += stop - start
        return self.compiled.search(text, start, stop)

    def finditer(self, text: str, start: int, stop: int) -> Any:
        self.seen += stop - start
        return self.compiled.finditer(text, start, stop)


@pytest.mark.parametrize("pattern", [r"\n\n(?=## Step \d+:)", r"\n+(?=\S)", r"(?<=[.])\n"])
def test_a_pattern_is_looked_for_once_in_what_is_new(pattern: str):
    """Not once a letter: two windows' worth of text a window, and one window a token."""
    text = "  We multiply both sides by three, and then subtract seven from each. " * 60
    whole, by_token = Counted(pattern), Counted(pattern)
    assert steps._end_of_match(whole, text, 0, len(text)) is None
    assert whole.seen <= 2 * len(text)
    for now in range(4, len(text), 4):
        assert steps._end_of_match(by_token, text[:now], now - 4, now) is None
    assert by_token.seen <= (MATCH_LENGTH + 4) * len(text) / 4


def test_a_stop_text_behind_a_delimiter_ends_the_answer():
    """However tokens cut the text: within one that completes a delimiter as well."""
    sampling = Sampling(delimiter=("\n", ";"), stop=("Human:", "##"))
    assert split_at_end("done.\nHuman: 2", sampling) == ("done.\n", "Human: 2", "eos")
    assert split_at_end("done.\nso Human:##", sampling) == ("done.\nso ", "Human:##", "eos")
    assert split_at_end("done;##Human:", sampling, 3) == ("done;", "##Human:", "eos")
    assert split_at_end("done;#", sampling) == ("done;#", "", "step")
    by_pattern = sampling.replace(delimiter=re.compile(r"\n"))
    text, overrun, end = split_at_end("done.\nHuman: 2", by_pattern)
    assert (text, overrun, end) == ("done.\n", "Human: 2", "step")
    following = steps.step_in_overrun(overrun, by_pattern)
    assert following is not None
    assert (following.text, following.overrun, following.end) == ("", "Human: 2", "eos")


def test_what_stands_behind_an_end():
    assert split_at_end("a\n\nb", Sampling()) == ("a\n\nb", "", "step"), "a token's rest belongs to the step"
    assert split_at_end("a\n\nb", Sampling(delimiter=re.compile("\n\n"))) == ("a\n\n", "b", "step")
    assert split_at_end("a\n\nb stop c", Sampling(delimiter=None, stop="stop")) == ("a\n\nb ", "stop c", "eos")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"delimiter": re.compile("a*")}, "matches empty text"),
        ({"delimiter": re.compile("$")}, "matches empty text"),
        ({"delimiter": re.compile(b"a")}, "not of bytes"),
        ({"stop": ""}, "stop text must not be empty"),
        ({"stop": ("a", "")}, "stop text must not be empty"),
        ({"stop": "\n\nQuestion:"}, "holds the delimiter"),
        ({"stop": "a" * 1025}, "at most 1,024 characters, not 1,025: its beginning will do"),
        ({"delimiter": "a" * 1025}, "at most 1,024 characters"),
        ({"stop": tuple(map(str, range(64)))}, "at most 64 delimiters and stop texts, not 65"),
    ],
)
def test_ends_that_cannot_be_found_are_refused(changes: dict[str, Any], says: str):
    with pytest.raises(ConfigurationError, match=f"Sampling: .*{says}"):
        Sampling(**changes)


# ---------------------------------------------------------------------------------------------------- the local engine

PATTERNS = [r"[e.\n]", r"a(?=[a-z])", r"(?<=[a-z])(?= )", r"[a-z]+ (?=\S\S)"]
LONG = Sampling(temperature=1.5, max_step_tokens=80, max_tokens=80)


def answers(lm: LocalLanguageModel, sampling: Sampling, n: int = 8) -> list[Trajectory]:
    async def one(seed: int) -> Trajectory:
        node = Trajectory(Problem("How many?"))
        while node.finished is None:
            (step,) = await lm.extend([node], sampling, [1000 * seed + node.depth])
            if not (step.text or step.token_ids):
                break
            node = node.extend(step)
        return node

    async def main() -> list[Trajectory]:
        return await asyncio.gather(*(one(seed) for seed in range(n)))

    return asyncio.run(main())


@pytest.mark.parametrize("kind", [*KINDS, "tiny"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_however_tokens_cut_the_text_a_pattern_ends_steps_in_the_same_places(kind: str, pattern: str):
    words = vocabulary() if kind == "tiny" else of(kind)
    lm = LocalLanguageModel(random_language_model("llama", eos_token_id=END if kind == "tiny" else 2), words)
    sampling = LONG.replace(delimiter=re.compile(pattern))
    longest = 0
    for node in answers(lm, sampling):
        text = node.text + node.step.overrun
        prompt = words.prompt(node.problem)
        assert text == words.decode_more(prompt, [token for step in node.steps for token in step.token_ids])
        assert [part for part in (*(step.text for step in node.steps), node.step.overrun) if part] == split(
            text, sampling
        )
        assert all(step.end == "step" for step in node.steps[:-1])
        longest = max(longest, node.depth)
    assert longest > 2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_changes_no_token(pattern: str):
    """What was drawn ahead is not drawn again: greedy steps are what transformers generates."""
    lm = local()
    prompt = lm.vocabulary.prompt(Problem("How many?"))
    reference = (
        random_language_model()
        .generate(torch.tensor([prompt]), max_new_tokens=80, do_sample=False, pad_token_id=0, eos_token_id=[END])[0]
        .tolist()
    )
    (node,) = answers(lm, LONG.replace(temperature=0.0, delimiter=re.compile(pattern)), n=1)
    assert [token for step in node.steps for token in step.token_ids] == reference[len(prompt) :]
    assert node.depth > 1
    lm.check_integrity()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_step_tokens=12, delimiter=re.compile(r"[en]|\n(?=[^\n])")),
        Sampling(max_step_tokens=5, delimiter=None),
        Sampling(max_step_tokens=12, delimiter="e", stop=("a", "n")),
        Sampling(max_step_tokens=12, delimiter=re.compile(r"e(?=.)"), stop="a"),
    ],
    ids=["pattern", "tokens", "stop", "pattern and stop"],
)
def test_the_local_engine_keeps_the_contract(sampling: Sampling):
    motes.check_language_model(local(), sampling=sampling)


def test_one_batch_may_hold_every_kind_of_step():
    lm, root = local(), Trajectory(Problem("How many?"))
    kinds = [Sampling(max_step_tokens=20), *(s.replace(max_step_tokens=20) for s in KINDS_OF_ENDS)]

    async def main() -> tuple[list[list[Step]], list[list[Step]]]:
        def calls() -> list[Any]:
            return [lm.extend([root] * 3, sampling, [i, i + 50, i + 90]) for i, sampling in enumerate(kinds)]

        return list(await asyncio.gather(*calls())), [await call for call in calls()]

    together, alone = (
        [[(s.text, s.overrun, s.end, s.token_ids) for s in call] for call in way] for way in asyncio.run(main())
    )
    assert together == alone


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it():
    lm = local()
    whole = answers(lm, LONG.replace(delimiter=None), n=6)
    stopped = answers(lm, LONG.replace(delimiter=None, stop="a"), n=6)
    assert any("a" in node.text for node in whole)
    for before, after in zip(whole, stopped, strict=True):
        assert after.text == before.text.partition("a")[0]
        if "a" in before.text:
            assert after.finished == "eos"
            assert "a" in lm.vocabulary.decode(after.step.token_ids)


def test_a_step_of_so_many_tokens_is_complete():
    """A particle filter on steps of six tokens: each is a step, scored and resampled; only limits cut one."""
    lm = local()
    scored: list[str] = []
    reward = motes.FunctionReward(lambda problem, text: scored.append(text) or 0.5 + len(text) % 2 / 4)
    sampling = Sampling(temperature=1.0, max_step_tokens=6, max_tokens=20, delimiter=None)
    result = motes.solve("How many?", lm=lm, reward=reward, method=ParticleFilter(6), sampling=sampling, seed=1)
    assert len(result.records) == 4
    for node in result.trajectories:
        ends = [(step.num_tokens, step.end) for step in node.steps]
        assert all(end == (6, "step") for end in ends[:-1])
        assert node.finished == "eos" or ends[-1] == (2, "length")
    assert {node.text for record in result.records for node in record.trajectories} <= set(scored)
    motes.check_language_model(lm, sampling=sampling.replace(max_tokens=None))


# --------------------------------------------------------------------------------------------------- every other engine

SERVED = WITH_IDS | WITH_TEXT | WITHOUT_SEEDS
BY_PATTERN = Sampling(temperature=0.9, max_step_tokens=16, delimiter=re.compile(r"\n+(?=\S)|;"))


def chain(lm: Any, sampling: Sampling, seed: int) -> list[Trajectory]:
    async def main() -> list[Trajectory]:
        nodes = [ROOT]
        for t in range(6):
            if nodes[-1].finished is not None:
                break
            (step,) = await lm.extend([nodes[-1]], sampling, [100 * seed + t])
            nodes.append(nodes[-1].extend(step))
        return nodes

    return asyncio.run(main())


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize(
    "sampling",
    [
        BY_PATTERN,
        Sampling(max_step_tokens=3, delimiter=None),
        Sampling(max_step_tokens=16, stop=("one", "3")),
        Sampling(max_step_tokens=16, delimiter=("\n\n", ";", ". "), stop=("one", "3")),
        BY_PATTERN.replace(stop="two"),
    ],
    ids=["pattern", "tokens", "stop", "many texts", "pattern and stop"],
)
def test_served_models_keep_the_contract(name: str, sampling: Sampling):
    heat = 0.0 if name in WITHOUT_SEEDS else 0.9

    async def main() -> None:
        await acheck_language_model(await SERVED[name](), sampling=sampling.replace(temperature=heat))

    asyncio.run(main())


@pytest.mark.parametrize("name", SERVED)
def test_served_steps_end_where_the_text_says(name: str):
    for seed in range(12):
        lm = asyncio.run(SERVED[name](seeds="particle"))
        nodes = chain(lm, BY_PATTERN.replace(max_step_tokens=60), seed)
        last = nodes[-1].step
        if any(node.step.end == "length" for node in nodes[1:]):
            continue
        text = nodes[-1].text + last.overrun
        parts = [part for part in (*(node.step.text for node in nodes[1:]), last.overrun) if part]
        if last.overrun:  # as much of the next step as was drawn
            parts[-1:] = split(last.overrun, BY_PATTERN)
        assert parts == split(text, BY_PATTERN)


@pytest.mark.parametrize("name", WITH_IDS)
def test_a_served_pattern_changes_no_token(name: str):
    lm = asyncio.run(WITH_IDS[name]())
    for seed in range(6):
        prompt = PROMPT[:]
        for before, after in pairwise(chain(lm, BY_PATTERN, seed)):
            if not after.step.token_ids:  # drawn with the last step
                assert before.step.overrun == after.step.text + after.step.overrun
                continue
            drawn = draw(prompt, limit=16, stops=[], temperature=0.9, seed=100 * seed + before.depth)
            assert list(after.step.token_ids) == drawn.ids[: len(after.step.token_ids)]
            prompt += after.step.token_ids
    assert any(body.get("stream") for body in server(lm).asked)


@pytest.mark.parametrize("name", WITH_TEXT | {"unknown, chat": WITHOUT_SEEDS["unknown, chat"]})
def test_what_is_drawn_ahead_is_told_to_servers_of_text(name: str):
    lm = asyncio.run((WITH_TEXT | WITHOUT_SEEDS)[name]())
    written = ROOT.extend(Step("so 3\n\n", "step", overrun="one "))
    (step,) = asyncio.run(lm.extend([written], BY_PATTERN, [3]))
    assert step.text.startswith("one ")
    (body,) = server(lm).asked
    sent = body.get("prompt") or body.get("inputs") or body["messages"][-1]["content"]
    assert sent.endswith("so 3\n\none ")


def test_a_step_that_was_drawn_whole_with_the_last_one_costs_nothing():
    written = ROOT.extend(Step("so;", "step", (6, 13), overrun="3 ;one"))
    for name in ("vllm", "tgi"):
        lm = asyncio.run((WITH_IDS | WITH_TEXT)[name]())
        (step,) = asyncio.run(lm.extend([written], BY_PATTERN, [3]))
        assert (step.text, step.overrun, step.end, step.token_ids) == ("3 ;", "one", "step", ())
        assert step.num_tokens == 0
        assert server(lm).asked == []
        assert [node.added for node in written.extend(step).path] == ["so;3 ;one", ""]
    (step,) = asyncio.run(local().extend([written], BY_PATTERN, [3]))
    assert (step.text, step.overrun, step.token_ids, step.logprob) == ("3 ;", "one", (), 0.0)


def test_text_made_elsewhere_is_sent_once():
    """Also where a step of it was drawn ahead by an engine that tells no ids."""
    written = ROOT.extend(Step("so;", "step", overrun="3 ")).extend(Step("3 one;", "step"))
    lm = asyncio.run(WITH_IDS["vllm"]())
    asyncio.run(lm.extend([written], BY_PATTERN, [3]))
    assert server(lm).asked[0]["prompt"] == PROMPT + encode("so;3 ") + encode("one;")


@pytest.mark.parametrize("incremental", [False, True])
def test_sglang_streams_all_so_far_or_what_is_added(incremental: bool):
    engine = SGLangThatRenders()
    engine.incremental = incremental
    lm = asyncio.run(connect(engine, logprobs=True))
    for seed in range(8):
        (step,) = asyncio.run(lm.extend([ROOT], BY_PATTERN, [seed]))
        drawn = draw(PROMPT, limit=16, stops=[], temperature=0.9, seed=seed)
        n = len(step.token_ids)
        assert list(step.token_ids) == drawn.ids[:n]
        assert step.text + step.overrun == engines.decode(drawn.ids[:n])
        assert step.logprob == pytest.approx(sum(drawn.logprobs[:n]))
        assert step.usage.prefill_tokens_cached == 2


def test_a_stream_that_is_cut_carries_one_prompt():
    """Otherwise a server would go on with those that have ended until the last one has."""
    lm = asyncio.run(WITH_IDS["vllm"](seeds="none"))
    forks = [ROOT.extend(Step(f"{i} ", "step", tuple(encode(f"{i} ")))) for i in range(3)]
    steps = asyncio.run(lm.extend([node for node in forks for _ in range(4)], BY_PATTERN, range(12)))
    assert [(len(body["prompt"]) > 3, body["n"]) for body in server(lm).asked] == [(True, 4)] * 3
    usage = [step.usage for step in steps]
    assert sum(one.prefill_tokens for one in usage) == 3 * (len(PROMPT) + 2)
    assert len({step.text for step in steps}) > 6


@pytest.mark.parametrize("name", ["vllm", "llama.cpp", "sglang"])
def test_a_prompt_is_counted_once_however_many_streams_are_cut(name: str):
    lm = asyncio.run(WITH_IDS[name](seeds="none"))
    steps = asyncio.run(lm.extend([ROOT] * 8, BY_PATTERN, range(8)))
    assert len(server(lm).asked) == 1
    assert sum(step.usage.prefill_tokens + step.usage.prefill_tokens_cached for step in steps) == len(PROMPT)


def test_ids_that_a_stream_leaves_out_are_not_made_up():
    unsaid = encode("so ")[0]
    lm = asyncio.run(connect(LlamaCpp(unsaid=(unsaid,))))
    with_all, without = 0, 0
    for seed in range(20):
        (step,) = asyncio.run(lm.extend([ROOT], BY_PATTERN, [seed]))
        n = step.num_tokens
        drawn = draw(PROMPT, limit=16, stops=[], temperature=0.9, seed=seed).ids[:n]
        assert step.text + step.overrun == engines.decode(drawn)
        assert list(step.token_ids) == ([] if unsaid in drawn else drawn)
        with_all, without = with_all + (unsaid not in drawn), without + (unsaid in drawn)
    assert with_all
    assert without


def test_a_table_refuses_ends_that_it_cannot_look_for():
    lm = TabularLanguageModel({(): {"a": 1.0}})
    for sampling in (Sampling(delimiter=HEADERS), Sampling(stop="a")):
        with pytest.raises(ConfigurationError, match="its steps are the table's own"):
            motes.solve("?", lm=lm, reward=TabularReward({}), sampling=sampling)
    assert (
        motes.solve("?", lm=lm, reward=TabularReward({}), sampling=Sampling(delimiter=None)).trajectories[0].text == "a"
    )


class Sloppy(TabularLanguageModel):
    """Ends steps by a pattern, not quite."""

    def __init__(self, *texts: str, overrun: str = "") -> None:
        super().__init__({(): dict.fromkeys(texts, 1 / len(texts))})
        self.overrun = overrun

    async def extend(self, trajectories: Any, sampling: Sampling, seeds: Any) -> list[Step]:
        roots = [Trajectory(trajectory.problem) for trajectory in trajectories]
        drawn = await super().extend(roots, Sampling(temperature=sampling.temperature), seeds)
        end = "step" if sampling.pattern or sampling.max_step_tokens == 2 else "eos"
        return [Step(step.text, end, step.token_ids, overrun=self.overrun) for step in drawn]


@pytest.mark.parametrize(
    ("lm", "sampling", "law"),
    [
        (Sloppy("a", "b"), Sampling(delimiter=re.compile(";")), "a step ends where its pattern first matches"),
        (Sloppy("a; ", "b; "), Sampling(delimiter=re.compile(";")), "a step ends where its pattern first matches"),
        (Sloppy("a;b;", "c;"), Sampling(delimiter=re.compile(";")), "a step ends where its pattern first matches"),
        (Sloppy("a", "b"), Sampling(delimiter=None, max_step_tokens=2), "a step of so many tokens has them all"),
        (Sloppy("a", "b"), Sampling(stop="b"), "an answer ends before a stop text"),
    ],
)
def test_the_contract_says_where_steps_end(lm: Any, sampling: Sampling, law: str):
    with pytest.raises(ContractError, match=f"^{law}: "):
        motes.check_language_model(lm, sampling=sampling)


def test_the_contract_accepts_what_looks_ahead():
    motes.check_language_model(Sloppy("a;", "b;", overrun=" "), sampling=Sampling(delimiter=re.compile(";(?= )")))


# ------------------------------------------------------------------------------------------------------------ thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>so \\boxed{1}", None),
        ("<think>so \\boxed{1}</think>", None),
        ("<think>so \\boxed{1}</think> It is \\boxed{2}.", "2"),
        ("so \\boxed{1}</think> It is \\boxed{2}.", "2"),  # where the chat template opened it
        ("so \\boxed{1}</think> It is", None),
        ("<think>a</think>\\boxed{1}<think>\\boxed{2}</think>", "1"),
        ("<think>a</think>\\boxed{1}<think>\\boxed{2}", "1"),
        ("so \\boxed{1}", "1"),
        ("<thinking>so \\boxed{1}", "1"),
    ],
)
def test_what_is_thought_is_no_answer(text: str, answer: str | None):
    assert BoxedAnswers().answer(text) == answer


def test_a_run_goes_on_while_its_particles_think():
    """Drafts are boxed in steps of their own; the text that led to them says that they are thought."""
    thought = ("<think>Perhaps\n\n", "\\boxed{1}? No.\n\n", "Enough.</think>\n\n")
    table = {thought[:t]: {thought[t]: 1.0} for t in range(3)} | {thought: {"\\boxed{2}": 1.0}}
    result = motes.solve("?", lm=TabularLanguageModel(table), reward=TabularReward({}), method=ParticleFilter(3))
    assert result.answer == "2"
    assert result.text == "".join(thought) + "\\boxed{2}"
    assert {node.depth for node in result.trajectories} == {4}


def thinking(*, opened: bool) -> Vocabulary:
    words = vocabulary()
    words.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    if opened:
        words.tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    return Vocabulary(words.tokenizer)


def test_thinking_tags_are_text_even_where_they_are_special():
    words = thinking(opened=False)
    ids = words.encode("<think>\nSo 12.</think>\n\n12")
    assert words.decode(ids) == "<think>\nSo 12.</think>\n\n12"
    assert words.pieces[words.encode("</think>")[0]] == b"</think>"
    assert words.opening(Problem("?")) == ""


def test_what_a_template_opens_belongs_to_the_text():
    words = thinking(opened=True)
    lm = LocalLanguageModel(random_language_model(vocab_size=576), words)
    problem = Problem("How many?")
    prompt = words.prompt(problem)
    for sampling in (LONG, LONG.replace(delimiter=re.compile(r"[a-z](?=[a-z])")), LONG.replace(delimiter=None)):
        for node in answers(lm, sampling.replace(max_step_tokens=7, max_tokens=30), n=4):
            drawn = [token for step in node.steps for token in step.token_ids]
            assert node.text + node.step.overrun == "<think>\n" + words.decode_more(prompt, drawn)
    motes.check_language_model(lm, sampling=Sampling(max_step_tokens=12, delimiter=re.compile(r"[aeiou](?=[a-z])")))
    (step,) = asyncio.run(lm.extend([Trajectory(problem)], Sampling(delimiter=re.compile(">")), [1]))
    assert (step.text, step.overrun, step.token_ids) == ("<think>", "\n", ())
    written = Trajectory(problem).extend(Step("<think>\nSo 12.\n\n", "step"))
    greedy = Sampling(temperature=0.0, max_step_tokens=1)
    (step,) = asyncio.run(lm.extend([written], greedy, [0]))
    logits = random_language_model(vocab_size=576)(torch.tensor([prompt + words.encode("So 12.\n\n")])).logits
    assert logits[0, -1].argmax() == step.token_ids[0]


def opens(engine: engines.Engine, monkeypatch: pytest.MonkeyPatch) -> engines.Engine:
    """The engine with a chat template that opens a thought."""
    monkeypatch.setattr(engines, "render", lambda messages, generate=True: render(messages, generate) + "<think>\n")
    return engine


@pytest.mark.parametrize("name", [*WITH_IDS, *WITH_TEXT])
def test_what_a_servers_template_opens_belongs_to_the_text(name: str, monkeypatch: pytest.MonkeyPatch):
    lm = asyncio.run((WITH_IDS | WITH_TEXT)[name]())
    opens(server(lm), monkeypatch)
    for sampling in (BY_PATTERN, Sampling(temperature=0.9)):
        nodes = chain(lm, sampling, 3)
        assert nodes[1].text.startswith("<think>\n")
        assert nodes[-1].text.count("<think>") == 1
        sent = [body.get("prompt") or body.get("input_ids") or body.get("inputs") for body in server(lm).asked]
        texts = ["".join(engines.VOCABULARY[i] for i in ids) if isinstance(ids, list) else ids for ids in sent]
        assert {text.count("<think>") for text in texts} == {1}


# ----------------------------------------------------------------------------------------------------------- mutations

MUTATIONS = {
    "only what is new is looked at": ("max(0, start - len(target) + 1)", "start"),
    "a blank step is one": ("if match.end() > blank:", "if match.end():"),
    "the leftmost match counts, blank or not": (
        "if match.end() > blank:",
        "return match.end() or None\n            if 1:",
    ),
    "the whole text at once": ("range(_first_possible(pattern, text, before, behind), behind + 1)", "(behind,)"),
    "a delimiter comes before a stop text": (
        "cuts.append((complete, not is_stop,",
        "cuts.append((complete, is_stop,",
    ),
    "a stop text belongs to the answer": ("Cut(at if is_stop else complete, is_stop)", "Cut(complete, is_stop)"),
    "a pattern comes before a stop text": ("first[0] - 1", "first[0]"),
    "a match may be of any length": ("max(0, complete - MATCH_LENGTH)", "0"),
    "no pattern sees the end": ("if _sees_the_end(pattern):", "if False:"),
    "a match begins in what is new": ("max(0, before + 1 - MATCH_LENGTH)", "before"),
    "a match that is there is complete": (
        "pattern.search(text, start, n) is not",
        "pattern.search(text, start, n - 1) is not",
    ),
    "behind a delimiter nothing is looked for": ("sampling = sampling.replace(delimiter=None)", "pass"),
    "a match is within one window": ("range(max(start, blank), stop, MATCH_LENGTH)", "[max(start, blank)]"),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    module = mutant(steps, *MUTATIONS[mistake])
    monkeypatch.setitem(globals(), "first_cut", module.first_cut)
    monkeypatch.setitem(globals(), "Cut", module.Cut)
    monkeypatch.setitem(globals(), "split_at_end", module.split_at_end)
    monkeypatch.setitem(globals(), "steps", module)
    with pytest.raises((AssertionError, MotesError)):
        every_check()


def every_check() -> None:
    test_a_header_begins_a_step()
    test_where_patterns_end_steps(r"\n+", ["a\n", "\n\nb.\n", "c"])
    test_where_patterns_end_steps(r"(?=b)", ["a\n\n\n", "b.\nc"])
    test_a_match_is_no_longer_than_it_may_be()
    test_what_is_complete_first_counts_and_then_the_stop_text()
    assert first_cut("ab", Sampling(delimiter="ab"), 1) == Cut(2, False)
    test_a_stop_text_behind_a_delimiter_ends_the_answer()
    rng = random.Random(0)
    for pattern in ODD_PATTERNS:
        for _ in range(20):
            assert_found_letter_by_letter(pattern, "".join(rng.choices("ab.#\n ", k=rng.randrange(40))), 7)


def test_without_a_mistake_nothing_is_found():
    every_check()
