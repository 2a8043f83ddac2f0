"""What a model thinks and what it says, in every shape: tags, harmony, stripped harmony; in pieces; on every engine."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import tracemalloc
from typing import Any

import pytest

import motes
import thinkers
from checkpoints import random_language_model, vocabulary
from engines import connect
from motes import Problem, Sampling, Step, Trajectory
from motes.gateway.thoughts import ThoughtSplitter
from motes.models.local import LocalLanguageModel
from motes.models.served.messages import Writer, pieces_of
from motes.rewards.verdicts import stated_verdict
from motes.steps import opening
from motes.tasks import BoxedAnswers
from motes.thoughts import (
    FINAL,
    HARMONY,
    TAGS,
    ThoughtReading,
    after_thoughts,
    parts_of,
    read,
    restored,
    split,
    without_thoughts,
)
from motes.vocabulary import Vocabulary
from test_reading import num_lines_run

CALL = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
ANALYSIS = "<|channel|>analysis<|message|>"
H = f"{ANALYSIS}Perhaps \\boxed{{1}}."
SHAPES: list[tuple[str, str, str]] = [  # text, thoughts, what is said
    *((f"{opened}Perhaps \\boxed{{1}}{closed}It is \\boxed{{2}}", "Perhaps \\boxed{1}", "It is \\boxed{2}")
      for opened, closed in TAGS.items()),
    *((f"Perhaps{closed}\n\n2", "Perhaps", "2") for closed in TAGS.values()),
    *((f"{opened}\nPerhaps", "Perhaps", "") for opened in TAGS),
    (f"{H}{FINAL}It is \\boxed{{2}}", "Perhaps \\boxed{1}.", "It is \\boxed{2}"),
    (f"{H}{FINAL}It is \\boxed{{2}}<|return|>", "Perhaps \\boxed{1}.", "It is \\boxed{2}"),
    (f"{H}<|end|><|start|>assistant{CALL}", "Perhaps \\boxed{1}.\n\n{}", ""),
    (f"{H}<|end|><|start|>assistant<|channel|>commentary<|message|>I look.{FINAL}2",
     "Perhaps \\boxed{1}.\n\nI look.", "2"),
    (f"{H}<|end|><|start|>assistant{ANALYSIS}No.{FINAL}2", "Perhaps \\boxed{1}.\n\nNo.", "2"),
    (H, "Perhaps \\boxed{1}.", ""),
    ("<|channel|>final<|message|>2<|return|>", "", "2"),
    ("<|start|>assistant<|message|>2<|end|>", "", "2"),
    ("<|start|>assistant to=functions.add<|channel|>commentary json<|message|>1<|call|>", "1", ""),
    ("<|start|>assistant to=functions.add<|message|>1<|call|>", "1", ""),
    ("".join(token + "a" * 128 for token in HARMONY[:3]) + "<|message|>1", "1", ""),  # the longest header
    (f"{ANALYSIS}a <think> b{FINAL}c", "a <think> b", "c"),
    ("analysisWe need 2.assistantfinalIt is \\boxed{2}.", "We need 2.", "It is \\boxed{2}."),
    ("analysiswe need 2.assistantfinalIt is 2.", "we need 2.", "It is 2."),
    ("analysisWe needassistantcommentary to=f{}assistantfinal2", "We needassistantcommentary to=f{}", "2"),
    ("commentaryI look.assistantfinal2", "I look.", "2"),
    ("analysisWe need", "We need", ""),
    ("analysis of 2", "", "analysis of 2"),
    ("analysis", "", "analysis"),
    ("an", "", "an"),
    ("analysis <think>a</think>b", "a", "analysis b"),
    ("the assistantfinal word", "", "the assistantfinal word"),
    ("<|end|> of it", "", "<|end|> of it"),
    ("<think>a</think>b<think>c</think>d", "a\n\nc", "bd"),
    ("a</think>b</think>c", "a\n\nb", "c"),
    ("<think>a[/THINK]b</think>c", "a[/THINK]b", "c"),
    ("a < b, a <thin air", "", "a < b, a <thin air"),
]  # fmt: skip
TEXTS = [text for text, _, _ in SHAPES]


def merged(parts: Any) -> list[tuple[str, str]]:
    groups = itertools.groupby(parts, key=lambda part: part.kind)
    return [(kind, "".join(part.text for part in group)) for kind, group in groups]


@pytest.mark.parametrize(("text", "thoughts", "said"), SHAPES, ids=TEXTS)
class TestShapes:
    def test_thoughts_and_words_are_told_apart(self, text: str, thoughts: str, said: str):
        assert split(text) == (thoughts, said)

    def test_one_rule_for_all(self, text: str, thoughts: str, said: str):
        """The answer rule, a judge's verdict and the gateway read the same words."""
        box = re.search(r"\\boxed\{(\d)\}", said)
        assert BoxedAnswers().answer(text) == (box and box[1])
        assert without_thoughts(text).strip() == said
        if thoughts and said and not text.startswith(("<think>a</think>b", "analysis <")):
            assert after_thoughts(text).strip() == said

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 11])
    def test_in_pieces_as_in_one(self, text: str, thoughts: str, said: str, size: int):
        reading, parts = ThoughtReading(), []
        for start in range(0, len(text), size):
            reading, more = reading.read(text[start : start + size])
            parts += more
            assert "".join(part.text for part in parts) + reading.pending == text[: start + size]
        _, more = reading.read("", is_last=True)
        assert merged([*parts, *more]) == merged(ThoughtReading().read(text, is_last=True)[1])

    @pytest.mark.parametrize("size", [1, 3])
    def test_a_stream_sends_what_is_certain(self, text: str, thoughts: str, said: str, size: int):
        splitter, sent = ThoughtSplitter(), {True: "", False: ""}
        for start in range(0, len(text), size):
            for in_thought, part in splitter.feed(text[start : start + size]):
                sent[in_thought] += part
        for in_thought, part in splitter.feed("", is_last=True):
            sent[in_thought] += part
        if any(part.kind == "unopened" for part in ThoughtReading().read(text, is_last=True)[1]):
            return  # what was sent cannot be called back
        assert sent[False] == said
        assert sent[True] == thoughts.replace("\n\n", "")


@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "<|channel|>", "<|start|>", "<", "<|", f"{H}<|end|>", "analysisW", "so "]
)
def test_the_cost_grows_with_the_text(unit: str):
    whole = [num_lines_run(lambda n=n: parts_of(unit * n)) for n in (200, 400)]
    assert whole[1] <= 2.2 * whole[0]

    def in_steps(n: int) -> None:
        reading = ThoughtReading()
        for _ in range(n):
            reading, _ = reading.read(unit)
            assert len(reading.pending) <= 512

    steps = [num_lines_run(lambda n=n: in_steps(n)) for n in (200, 400)]
    assert steps[1] <= 2.2 * steps[0]


def test_blank_text_that_is_held_back_is_not_copied_with_each_piece():
    """A model may write empty lines without end."""
    splitter = ThoughtSplitter()
    splitter.feed("<think>a")
    assert splitter.feed("\n" * 1_000_000) == []
    tracemalloc.start()
    try:
        assert splitter.feed("\n") == []
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert splitter.feed("b") == [(True, "\n" * 1_000_001 + "b")]


def test_random_mixtures_are_read_in_pieces_as_in_one():
    chance = random.Random(0)
    marks = [*TAGS, *TAGS.values(), *HARMONY, "analysis", "final", "assistant", "\n", "a", "<", "[", "◁"]
    for _ in range(400):
        text = "".join(chance.choices(marks, k=chance.randint(1, 12)))
        reading, parts = ThoughtReading(), []
        for character in text:
            reading, more = reading.read(character)
            parts += more
        parts += reading.read("", is_last=True)[1]
        assert merged(parts) == merged(ThoughtReading().read(text, is_last=True)[1]), text


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("<think>Hm", "\n</think>\n\n"), ("<think>Hm\n", "</think>\n\n"), ("<think>Hm</thi", "nk>\n\n"),
        ("[THINK]Hm", "\n[/THINK]\n\n"), ("<|channel>thought\nHm", "<channel|>"), ("<think>a</think>b", ""), ("b", ""),
        (f"{ANALYSIS}Hm", FINAL), (f"{ANALYSIS}Hm<|end|>", FINAL.removeprefix("<|end|>")),
        (f"{ANALYSIS}Hm<|end|><|start|>assis", "tant<|channel|>final<|message|>"),
        (f"{ANALYSIS}Hm<|end|><|start|>assistant<|channel|>", "final<|message|>"),
        (f"{ANALYSIS}Hm<|en", "d|>" + FINAL.removeprefix("<|end|>")),
        ("analysisWe", FINAL), (f"{H}{FINAL}2", ""),
    ],
)  # fmt: skip
def test_the_end_of_a_thought_in_its_usual_form(text: str, ending: str):
    assert read(text).ending(text) == ending
    assert split(f"{text}{ending}4")[1].endswith("4")
    if ending:
        assert split(f"{text}{ending}4")[1] == "4"


def test_what_a_template_opens():
    for tag in TAGS:
        assert opening(f"<user>Why?<assistant>{tag}\n") == f"{tag}\n"
    assert opening(f"<|start|>assistant{ANALYSIS}") == ANALYSIS
    assert opening("<|start|>assistant") == opening("<think>hm") == ""


def test_a_stripped_text_gets_its_tokens_back():
    assert restored("analysisWe need 2.assistantfinal2") == f"{ANALYSIS}We need 2.{FINAL}2"
    assert restored("analysisWe need") == f"{ANALYSIS}We need"
    assert restored("analysiswe need 2.assistantfinal2") == f"{ANALYSIS}we need 2.{FINAL}2"
    for text in (H, f"{H}{FINAL}analysis", "<think>a</think>analysis", "The analysisassistantfinal", ""):
        assert restored(text) == text


def test_what_is_said_after_the_last_thought():
    assert after_thoughts("a<think>b</think>c<think>d</think>e") == "e"
    assert after_thoughts("a<think>b</think>c<think>d") == "c"
    assert after_thoughts("a<think>b</think>") == after_thoughts("a</think>") == ""
    assert after_thoughts("a") == "a"


def test_a_judge_that_writes_harmony_states_its_verdict():
    assert stated_verdict(f"{ANALYSIS}Verdict: Yes?{FINAL}Verdict: No", "Verdict:", ("Yes", "No")) == "No"
    assert stated_verdict(f"{ANALYSIS}Verdict: Yes", "Verdict:", ("Yes", "No")) is None


# ------------------------------------------------------------------------------------------------- messages of servers


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"reasoning_content": "a"}, {"reasoning_content": "b"}, {"content": "c"}], "<think>ab</think>c"),
        (
            [{"reasoning": "a"}, {"content": "b"}, {"reasoning": "c"}, {"content": "d"}],
            "<think>a</think>b<think>c</think>d",
        ),
        ([{"thinking": "a", "content": "b"}], "<think>a</think>b"),
        ([{"reasoning_details": [{"type": "reasoning.text", "text": "a"}]}, {"content": "b"}], "<think>a</think>b"),
        ([{"reasoning_details": [{"type": "reasoning.encrypted", "data": "xyz"}], "content": "b"}], "b"),
        ([{"content": [{"type": "reasoning", "text": "a"}]}, {"content": [{"type": "text", "text": "b"}]}],
         "<think>a</think>b"),
        ([{"content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]}], "<think>a</think>b"),
    ],
)  # fmt: skip
def test_deltas_of_a_stream(messages: list[Any], text: str):
    writer = Writer()
    assert "".join(writer.write(pieces_of(message)) for message in messages) + writer.close() == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>a", "b</think>c"),
        ("[THINK]a", "b[/THINK]c"),
        (f"{ANALYSIS}a", f"b{FINAL}c"),
        ("<think>a</think>", "<think>b</think>c"),
    ],
)
def test_an_open_thought_is_closed_by_its_own_tag(before: str, after: str):
    writer = Writer(before)
    assert writer.write(pieces_of({"reasoning": "b", "content": "c"})) + writer.close() == after


# ---------------------------------------------------------------------------------------------- harmony on every engine


def harmony(name: str, **settings: Any) -> thinkers.Thinker:
    engine = thinkers.SERVERS[name]()
    engine.mind = thinkers.Mind(opening=HARMONY[1], **settings)
    return engine


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(delimiter=re.compile(r"\n\n")), Sampling().whole()],
    ids=["text", "pattern", "whole"],
)
@pytest.mark.parametrize("name", thinkers.SERVERS)
def test_a_served_model_goes_on_from_what_it_wrote(name: str, sampling: Sampling):
    """Steps within the channels: the ids are those of one uninterrupted text, its marks included."""
    thought = "I count 2.\n\nOr \\boxed{1}?"
    engine = harmony(
        name, thinks=lambda text: thought[len(text)] if len(text) < len(thought) else None, answer="So\n\n\\boxed{4}"
    )

    async def main() -> motes.Result:
        lm = await connect(engine)
        return await motes.asolve("1 + 3?", lm=lm, reward=None, method=motes.Majority(2), sampling=sampling)

    result = asyncio.run(main())
    text = f"{ANALYSIS}{thought}{FINAL}So\n\n\\boxed{{4}}"
    assert (result.answer, result.text) == ("4", text)
    prompt = engine.mind.prompt([{"content": "1 + 3?"}])
    for body in engine.asked:
        ids = body.get("prompt") or body["input_ids"]
        for one in ids if isinstance(ids[0], list) else [ids]:
            assert (prompt + text).startswith(thinkers.decode(one, special=True))
    for trajectory in result.trajectories:
        ids = [token for step in trajectory.steps for token in step.token_ids]
        assert thinkers.decode(ids, special=True).removesuffix("<|return|>") == text
        assert {step.end for step in trajectory.steps[:-1]} <= {"step"}


def test_a_server_that_strips_special_tokens_from_texts():
    """Prompts of text: what is sent back has the special tokens again."""
    engine = harmony("vllm", answer="\\boxed{4}")

    class Tokenizer:
        class tokenizer:  # noqa: N801
            @staticmethod
            def decode(ids: list[int]) -> str:
                return thinkers.decode(ids, special=True)

            @staticmethod
            def encode(text: str, **options: Any) -> list[int]:
                return thinkers.encode(text)

        async def prepare(self, problem: Any) -> None: ...

        def prompt(self, problem: Any) -> list[int]:
            return thinkers.encode(engine.mind.prompt(problem.messages))

        def encode(self, text: str, *, special: bool = True) -> list[int]:
            return thinkers.encode(text, special=special)

        def decode(self, ids: list[int]) -> str:
            return thinkers.decode(ids, special=True)

    prompts = []

    class Strips(thinkers.Thinker):
        owned_by = "someone"

        def v1_completions(self, body: dict[str, Any]) -> Any:
            prompts.append(body["prompt"])
            ids = thinkers.encode(body["prompt"])
            written, end, _ = self.mind.write(ids, body["max_tokens"], [], special=False)
            reason = "length" if end == "length" else "stop"
            choice = {"index": 0, "text": thinkers.decode(written, special=False), "finish_reason": reason}
            return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": len(written)}}

    server = Strips()
    server.mind = engine.mind
    sampling = Sampling(delimiter=None, max_step_tokens=12)

    async def main() -> motes.Result:
        lm = await connect(server, vocabulary=Tokenizer())
        prompts.clear()
        return await motes.asolve("1 + 3?", lm=lm, reward=None, method=motes.Greedy(), sampling=sampling)

    result = asyncio.run(main())
    whole = engine.mind.prompt([{"content": "1 + 3?"}])
    while (token := engine.mind.next(engine.mind.answer_in(whole))) != "<|return|>":
        whole += token
    assert result.answer == "4"
    assert len(prompts) > 3
    assert [prompt for prompt in prompts if not whole.startswith(prompt)] == []


def in_harmony() -> Vocabulary:
    """The bundled tokenizer with harmony's special tokens and its form of a prompt."""
    words = vocabulary()
    words.tokenizer.add_special_tokens({"additional_special_tokens": list(HARMONY)})
    words.tokenizer.chat_template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    return Vocabulary(words.tokenizer)


def test_a_local_tokenizer_with_harmonys_tokens():
    words = in_harmony()
    text = f"{ANALYSIS}Say 12.{FINAL}12"
    ids = words.encode_answer(text)
    assert words.decode(ids) == text
    assert sum(words.tokenizer.convert_ids_to_tokens(i) in HARMONY for i in ids) == 6
    assert words.encode("<|end|>", special=False) != words.encode_answer("<|end|>") == words.encode("<|end|>")
    prompt = words.prompt(Problem("A <|end|> of it"))  # a user's text ends no message
    assert words.decode(prompt) == "<|start|>user<|message|>A <|end|> of it<|end|><|start|>assistant"
    assert prompt.count(words.encode("<|end|>")[0]) == 1
    others = vocabulary()  # a vocabulary that has one of these tokens for another purpose
    others.tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    others = Vocabulary(others.tokenizer)
    assert others.decode(others.encode("a<|end|>b")) == "ab"


def test_a_local_model_reads_texts_of_harmony_as_its_tokens():
    words = in_harmony()
    model = random_language_model(vocab_size=600)
    lm = LocalLanguageModel(model, words)
    problem = Problem("How many?")
    greedy = Sampling(temperature=0.0, max_step_tokens=5, delimiter=None)
    text = f"{ANALYSIS}So 12.{FINAL}"
    written = Trajectory(problem).extend(Step(text, "step"))
    drawn = Trajectory(problem).extend(Step(text, "step", tuple(words.encode_answer(text))))
    first, second = asyncio.run(lm.extend([written, drawn], greedy, [0, 0]))
    assert first.token_ids == second.token_ids
