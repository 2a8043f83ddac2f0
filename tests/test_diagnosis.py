"""`motes doctor MODEL --task FILE`: what a few answers show about an evaluation, and what it says to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

import motes
from engines import Closed, LlamaCpp, OpenAICompatible, on_a_socket
from motes import Problem, Sampling, Step, Trajectory, Usage
from motes.cli import main
from motes.core import SamplingOptions
from motes.errors import ConfigurationError, ContextLengthError, EngineError, UnauthorizedError
from motes.lab import Diagnosis, Evaluation, diagnose
from motes.lab.measure.findings import missing_part
from motes.steps import first_cut, split_at_end
from motes.tasks import Arithmetic, patterns


class Scripted:
    """Writes a fixed text in answer to every question, in tokens of four characters, and obeys the sampling.

    Args:
        text: of the answers; a function of the question's number ("Question 3?") if they differ.
        whole: whether it writes whole answers only.
        prompt: the text that it says it reads of a problem.
        fails: raised, if anything is returned, for a question's number.
    """

    merges_calls = True

    def __init__(
        self,
        text: str | Callable[[int], str],
        *,
        whole: bool = False,
        prompt: Callable[[Problem], str] | None = None,
        fails: Callable[[int], Exception | None] = lambda number: None,
    ) -> None:
        self._text = text
        self._fails = fails
        self.continues_prefixes = not whole
        self.questions: list[str] = []
        if prompt is not None:

            async def prompt_text(problem: Problem) -> str:
                return prompt(problem)

            self.prompt_text = prompt_text

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        await asyncio.sleep(0)
        return [self._step(trajectory, sampling) for trajectory in trajectories]

    def _step(self, trajectory: Trajectory, sampling: Sampling) -> Step:
        question = trajectory.problem.question
        self.questions.append(question)
        number = int("".join(filter(str.isdigit, question)) or 0)
        if (error := self._fails(number)) is not None:
            raise error
        text = self._text if isinstance(self._text, str) else self._text(number)
        rest = text[len(trajectory.text) :]
        limit = sampling.max_step_tokens
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens - trajectory.num_tokens)
        tokens = [rest[i : i + 4] for i in range(0, len(rest), 4)][:limit]
        for n in range(1, len(tokens) + 1):
            if first_cut("".join(tokens[:n]), sampling) is not None:
                piece, overrun, end = split_at_end("".join(tokens[:n]), sampling)
                return Step(piece, end, tuple(range(n)), usage=Usage(generated_tokens=n), overrun=overrun)
        end = "eos" if len(tokens) * 4 >= len(rest) else "step" if sampling.delimiter is None else "length"
        return Step("".join(tokens), end, tuple(range(len(tokens))), usage=Usage(generated_tokens=len(tokens)))  # type: ignore[arg-type]


class Scores:
    """Scores by the number of steps, or one for all."""

    def __init__(self, same: float | None = None, *, fails: bool = False) -> None:
        self.same, self.fails = same, fails

    async def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        if self.fails:
            raise ContextLengthError("the answer is longer than the reward model's context")
        return [[self.same or (i + 1) / 50 for i in range(t.depth)] for t in trajectories]


STEPS = "".join(f"{when} we add one thing to another thing.\n\n" for when in ("First", "Then", "Next"))
LONG = "We add one thing to another thing, and then we go on. " * 12
NUM_PROBLEMS = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return questions(tmp_path, *["12"] * NUM_PROBLEMS)


def questions(folder: Path, *answers: str) -> Path:
    file = folder / "p.jsonl"
    rows = [{"question": f"Question {i}?", "answer": answer, "id": f"q{i}"} for i, answer in enumerate(answers)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def diagnosis(
    path: Path | str, lm: Any, reward: Any = None, *, deadline: float | None = 60.0, **settings: Any
) -> Diagnosis:
    fields = {"limit": 5, "methods": ("majority",), "budgets": (1,), "reward": None, **settings}
    return asyncio.run(diagnose(Evaluation(task=str(path), **fields), lm=lm, reward=reward, deadline=deadline))


def about(found: Diagnosis, topic: str) -> list[tuple[str, str, str]]:
    return [(f.level, f.text, f.remedy) for f in found.findings if f.topic == topic]


def only(found: Diagnosis, topic: str) -> tuple[str, str, str]:
    (finding,) = about(found, topic)
    return finding


class TestAnswers:
    def test_all_is_well(self, path):
        found = diagnosis(path, Scripted(STEPS + "So it is \\boxed{12}."), Scores())
        assert not found.is_broken
        assert {finding.level for finding in found.findings} == {"fine"}
        assert all(finding.remedy == "" for finding in found.findings)
        assert about(found, "answers") == [
            ("fine", "found in 5 of 5 texts by the task's rule", ""), ("fine", "right: 5 of 5", "")
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("end", "rule"),
        [
            ("So the answer is 12.", "answer-is"), ("So she has 12 apples left.", "last-number"),
            ("#### 12", "answer-is"), ("**Answer**: 12", "answer-is"),
            ("She has 3 bags, which makes 12", "last-number"),
        ],
    )  # fmt: skip
    def test_the_rule_that_finds_them_is_named(self, path, end, rule):
        found = diagnosis(path, Scripted(STEPS + end))
        assert found.is_broken
        level, text, remedy = about(found, "answers")[0]
        assert (level, text) == ("broken", "found in 0 of 5 texts by the task's rule")
        assert f"by another rule: --rule {rule} finds one in 5 of 5 (5 right)" in remedy
        assert "--prompt boxed" in remedy
        again = diagnosis(f"{path}?rule={rule}", Scripted(STEPS + end))
        assert not again.is_broken, "the remedy helps"

    def test_a_letter_is_looked_for_where_the_references_are_letters(self, tmp_path):
        path = questions(tmp_path, *"BBBBB")
        remedy = about(diagnosis(f"boxed:{path}", Scripted(STEPS + "The correct option is B")), "answers")[0][2]
        assert "--rule answer-is finds one in 5 of 5 (5 right), --rule multiple-choice finds one in 5 of 5" in remedy
        path = questions(tmp_path, *["12"] * 5)
        remedy = about(diagnosis(f"boxed:{path}", Scripted(STEPS + "The correct option is B")), "answers")[0][2]
        assert "multiple-choice" not in remedy

    def test_that_are_all_wrong(self, path):
        """The references may have another form, or the task may be too hard."""
        found = diagnosis(path, Scripted(STEPS + "\\boxed{13}"))
        assert not found.is_broken
        level, text, remedy = about(found, "answers")[1]
        assert (level, text) == ("warning", "right: 0 of 5; an answer is '13', where the reference is '12'")
        assert "another --rule" in remedy

    def test_the_last_line_is_offered_only_where_it_is_right(self, tmp_path):
        path = questions(tmp_path, *["Bonn"] * 5)
        remedy = about(diagnosis(f"exact-match:{path}", Scripted("It lies on the Rhine.\n\nBonn")), "answers")[0][2]
        assert "--rule last-line finds one in 5 of 5 (5 right)" in remedy
        remedy = about(diagnosis(f"exact-match:{path}", Scripted("It lies on the Rhine.\n\nI hope so")), "answers")[0][
            2
        ]
        assert "--rule" not in remedy
        assert "--prompt" in remedy

    def test_answers_that_are_never_stated(self, path):
        found = diagnosis(path, Scripted("Let us think about it.\n\nIt is hard.\n\nWho knows."))
        level, _, remedy = about(found, "answers")[0]
        assert (level, found.is_broken) == ("broken", True)
        assert remedy == "ask for a box: --prompt boxed, or a prompt of your own, --prompt FILE.toml"
        with_prompt = diagnosis(path, Scripted("Who knows."), prompt=motes.prompt("boxed"))
        assert "the prompt 'boxed' does not make the model box its answer" in about(with_prompt, "answers")[0][2]

    def test_the_form_that_the_rule_reads_is_asked_for(self, path):
        for rule, form in (("last-line?", ""), ("regex:{}?pattern=A: (.+)", "the form that the rule reads")):
            if form:
                assert form in about(diagnosis(rule.format(path), Scripted("Who knows.")), "answers")[0][2]
        remedy = about(diagnosis(f"{path}?rule=regex&pattern=swer is (.)", Scripted("Who knows.")), "answers")[0][2]
        assert "ask for “The answer is …”" in remedy

    def test_some_of_them(self, path):
        found = diagnosis(path, Scripted(lambda n: "It is \\boxed{12}" if n % 2 else "The answer is 12"))
        assert not found.is_broken
        assert about(found, "answers")[0][:2] == ("warning", "found in 2 of 5 texts by the task's rule")
        assert about(found, "answers")[1][:2] == ("fine", "right: 2 of 5")

    def test_a_rule_that_finds_wrong_ones_only(self, path):
        found = diagnosis(f"{path}?rule=last-number", Scripted("The answer is 12.\n\nThis took 3 steps."))
        level, text, remedy = about(found, "answers")[1]
        assert (level, text) == ("warning", "right: 0 of 5")
        assert remedy == "another rule may fit better: --rule answer-is finds one in 5 of 5 (5 right)"

    def test_problems_without_references(self, tmp_path):
        found = diagnosis("worlds:Evens?rule=boxed", Scripted("The answer is 4"), limit=1)
        remedy = about(found, "answers")[0][2]
        assert "--rule answer-is finds one in 1 of 1, --rule last-number" in remedy
        assert "right)" not in remedy

        found = diagnosis("worlds:Evens?rule=answer-is", Scripted("The answer is 3"), limit=1)
        assert [text for _, text, _ in about(found, "answers")] == ["found in 1 of 1 texts by the task's rule"]

    def test_references_that_the_grader_refuses(self):
        class Strict(Arithmetic):
            def grade(self, problem: Problem, answer: str) -> bool:
                return False

        evaluation = Evaluation(task="arithmetic", limit=2, methods=("majority",), budgets=(1,), reward=None)
        object.__setattr__(evaluation, "opened", Strict())
        found = asyncio.run(diagnose(evaluation, lm=Scripted("\\boxed{12}")))
        level, text, remedy = only(found, "references")
        assert (level, found.is_broken) == ("broken", True)
        assert "finds 2 of 2 reference answers wrong" in text
        assert "exact-match:FILE.jsonl" in remedy


class TestEnds:
    @pytest.mark.parametrize("text", ["", " \n", "<think>So 12.</think>", "<think>\n\n</think>\n\n"])
    def test_texts_that_say_nothing(self, path, text):
        found = diagnosis(path, Scripted(lambda number: text if number < 2 else "\\boxed{12}"))
        assert about(found, "ends")[1][:2] == (
            "warning",
            "2 of 5 texts end before they say anything outside of thoughts",
        )
        level, _, remedy = about(diagnosis(path, Scripted(text)), "ends")[1]
        assert (level, "--json" in remedy) == ("broken", True)

    def test_texts_that_never_end(self, path):
        lm = Scripted(LONG * 100)
        found = diagnosis(path, lm, sampling=Sampling(max_tokens=200))
        assert found.is_broken
        assert only(found, "thoughts")[0] == "fine"
        (level, text, remedy), loops = about(found, "ends")
        assert (level, text) == ("broken", "5 of 5 texts are cut off at the limit of 200 tokens")
        assert remedy == "allow more: --max-tokens 400"
        assert loops[1] == "5 of 5 texts repeat themselves until they are cut off"
        assert about(found, "answers")[0][2] == "5 of the 5 others were cut off before they ended: see `ends`"

    def test_one_limit_that_helps(self, path):
        text = STEPS * 3 + "It is \\boxed{12}"
        assert about(diagnosis(path, Scripted(text), sampling=Sampling(max_tokens=30)), "ends")[0][0] == "broken"
        assert about(diagnosis(path, Scripted(text), sampling=Sampling(max_tokens=120)), "ends")[0][0] == "fine"

    def test_a_text_that_is_cut_off_in_its_first_step_says_nothing_of_steps(self, path):
        found = diagnosis(path, Scripted(STEPS + "It is \\boxed{12}"), sampling=Sampling(max_tokens=5))
        assert only(found, "steps")[0] == "fine"

    def test_too_many_steps(self, path):
        found = diagnosis(path, Scripted(STEPS * 40))
        level, text, remedy = about(found, "ends")[0]
        assert (level, text) == ("broken", "5 of 5 texts are cut off after 40 steps")
        assert "--max-steps 80" in remedy

    def test_whole_answers_that_are_cut_off(self, path):
        found = diagnosis(path, Scripted(LONG * 10, whole=True), sampling=Sampling(max_tokens=100))
        assert about(found, "ends")[0][1:] == (
            "5 of 5 texts are cut off at the limit of 100 tokens", "allow more: --max-tokens 200"
        )  # fmt: skip
        found = diagnosis(path, Scripted(LONG * 10, whole=True), sampling=Sampling(max_steps=2, max_step_tokens=50))
        assert about(found, "ends")[0][1:] == (
            "5 of 5 texts are cut off at the limit of 100 tokens", "allow more: --max-tokens 200"
        )  # fmt: skip

    def test_the_context_is_full(self, path):
        class Full(Scripted):
            def _step(self, trajectory: Trajectory, sampling: Sampling) -> Step:
                return Step("", "length") if trajectory.depth == 2 else super()._step(trajectory, sampling)

        level, text, remedy = about(diagnosis(path, Full(STEPS + "\\boxed{1}")), "ends")[0]
        assert (level, text) == (
            "broken",
            "5 of 5 texts are cut off after 21 tokens, where the model's context, or the server's limit, ends",
        )
        assert "larger context" in remedy
        found = diagnosis(path, Full(STEPS + "\\boxed{1}"), sampling=Sampling(max_tokens=500))
        assert about(found, "ends")[0][1:] == (text, remedy), "which is not the limit that was set"

    def test_a_text_that_ends_in_blanks_is_no_loop(self, path):
        found = diagnosis(path, Scripted("It is hard" + " " * 400), sampling=Sampling(max_tokens=50))
        assert len(about(found, "ends")) == 1

    def test_a_deadline(self, path):
        class Slow(Scripted):
            async def extend(self, *arguments: Any) -> list[Step]:
                await asyncio.Event().wait()
                raise AssertionError

        found = diagnosis(path, Slow(STEPS), deadline=0.05)
        assert about(found, "ends")[0][:2] == ("broken", "5 of 5 answers were not complete at the deadline")

    def test_a_deadline_ends_no_thoughts(self, path, monkeypatch):
        """An evaluation has none: its thoughts go on."""
        shares = []
        solve = motes.api.asolve

        async def recorded(*arguments: Any, limits: Any, **options: Any) -> Any:
            shares.append((limits.answer_share, limits.deadline is None))
            return await solve(*arguments, limits=limits, **options)

        monkeypatch.setattr(motes.api, "asolve", recorded)
        diagnosis(path, Scripted("\\boxed{12}"), limit=1)
        diagnosis(path, Scripted("\\boxed{12}"), limit=1, deadline=None)
        assert shares == [(0.0, False), (0.0, True)]

    @pytest.mark.parametrize(
        ("text", "mark"),
        [
            ("It is \\boxed 12.\nQuestion: What is 3+3?\nIt is 6.", "Question:"),
            ("It is 12<|im_end|>\n<|im_start|>user", "<|im_end|>"), ("It is 12.</s> And", "</s>"),
            ("It is 12.\n\n### Instruction:\nDo", "Instruction:"), ("It is 12.\nQ: x", "Q:"),
        ],
    )  # fmt: skip
    def test_texts_that_go_on_with_another_turn(self, path, text, mark):
        found = diagnosis(path, Scripted(text))
        finding = next(each for each in about(found, "ends") if each[0] == "warning")
        assert finding[1] == f"5 of 5 texts go on after {mark!r}, the mark of another turn"
        options = SamplingOptions(stop=[mark])
        again = diagnosis(path, Scripted(text), sampling=options.apply(Sampling()))
        assert [each[0] for each in about(again, "ends")] == ["fine"], "the remedy helps"

    @pytest.mark.parametrize(
        "text",
        [
            "<|channel|>analysis<|message|>Q: 5?<|end|><|start|>assistant<|channel|>final<|message|>It is \\boxed 12",
            "<|START_THINKING|>\nQ: 5?<|END_THINKING|>It is \\boxed{12}",
        ],
    )
    def test_the_marks_of_thoughts_are_none(self, path, text):
        found = diagnosis(path, Scripted(text))
        assert [each[0] for each in about(found, "ends")] == ["fine"]
        assert only(found, "thoughts")[0] == "fine"

    def test_ordinary_texts_have_no_such_marks(self, path):
        found = diagnosis(path, Scripted("Question: what is it?\nThe question is: \\boxed{12}"))
        assert [each[0] for each in about(found, "ends")] == ["fine"]


class TestThoughts:
    def test_closed(self, path):
        found = diagnosis(path, Scripted("<think>\nIs it 5? \\boxed{5}\n</think>\n\nIt is \\boxed{12}"))
        level, text, _ = only(found, "thoughts")
        assert (level, text) == (
            "fine",
            "in 5 of 5 texts, of 8 tokens, 57 % of all; all are closed, and no answer is read in them",
        )
        assert about(found, "answers")[1][1] == "right: 5 of 5"

    def test_never_closed(self, path):
        found = diagnosis(path, Scripted("<think>\n" + LONG * 100), sampling=Sampling(max_tokens=100))
        level, text, remedy = only(found, "thoughts")
        assert (level, found.is_broken) == ("broken", True)
        assert text == "in 5 of 5 texts, of 100 tokens, 100 % of all; 5 of 5 thoughts are never closed"
        assert remedy == "end thoughts early enough for an answer, --max-thinking-tokens 50, or allow more tokens"

    def test_a_budget_helps(self, path):
        class Obedient(Scripted):
            def _step(self, trajectory: Trajectory, sampling: Sampling) -> Step:
                if "</think>" in trajectory.text:
                    return Step("It is \\boxed{12}.", "eos", tuple(range(5)), usage=Usage(generated_tokens=5))
                return super()._step(trajectory, sampling)

        sampling = Sampling(max_tokens=100)
        assert diagnosis(path, Obedient("<think>\n" + LONG * 100), sampling=sampling).is_broken
        found = diagnosis(path, Obedient("<think>\n" + LONG * 100), sampling=sampling.replace(max_thinking_tokens=50))
        assert only(found, "thoughts")[0] == "fine"
        assert about(found, "answers")[1][1] == "right: 5 of 5"

    def test_a_model_of_whole_answers_takes_no_budget(self, path):
        found = diagnosis(path, Scripted("<think>\n" + LONG * 100, whole=True), sampling=Sampling(max_tokens=100))
        assert only(found, "thoughts")[2].startswith("allow more tokens")

    def test_ended_within(self, path):
        found = diagnosis(path, Scripted("<think>\nIt is \\boxed{12}."))
        assert "special token" in only(found, "thoughts")[2]
        assert "5 of the 5 others state one within the thought only" in about(found, "answers")[0][2]

    def test_opened_by_the_template(self, path):
        found = diagnosis(path, Scripted("It is \\boxed{5}, no.</think>It is \\boxed{12}."))
        assert only(found, "thoughts")[0] == "fine"
        assert about(found, "answers")[1][1] == "right: 5 of 5"


class TestSteps:
    def test_by_the_delimiter(self, path):
        level, text, _ = only(diagnosis(path, Scripted(STEPS + "\\boxed{12}")), "steps")
        assert level == "fine"
        assert text.startswith("4 in an answer, of 3 to 11 tokens (10 in the middle)")
        assert text.endswith("they end 15 at the end of a step, 5 with the answer")

    @pytest.mark.parametrize(
        ("text", "options"),
        [
            (STEPS.replace("\n\n", "\n") + "So it is all of this, then \\boxed{12}", {"delimiter": "\n"}),
            (STEPS.replace("\n\n", " ") + "So it is all of this, then \\boxed{12}", {"pattern": r"(?<=[.!?])\s"}),
            (LONG.replace(".", ",") + "\\boxed{12}", {"step_tokens": 21}),
        ],
    )  # fmt: skip
    def test_that_are_whole_answers(self, path, text, options):
        level, said, remedy = only(diagnosis(path, Scripted(text)), "steps")
        assert level == "warning"
        assert "each whole answer is one step" in said
        ((name, value),) = options.items()
        shown = f"--{name.replace('_', '-')} " + (
            str(value) if isinstance(value, int) else f"'{value}'".replace("\n", "\\n")
        )
        assert shown in remedy
        number = int(remedy.partition(f"{shown} (")[2].partition(" steps)")[0])
        again = diagnosis(path, Scripted(text), sampling=SamplingOptions(**options).apply(Sampling()))
        assert only(again, "steps")[0] == "fine", "the remedy helps"
        assert abs(again.examination.trials[0].trajectory.depth - number) <= 1  # type: ignore[union-attr]

    def test_of_one_line_each(self, path):
        text = "\n".join("a = b" for _ in range(20)) + "\n\\boxed{12}"
        level, said, remedy = only(diagnosis(path, Scripted(text), sampling=Sampling(delimiter="\n")), "steps")
        assert (level, "too short to be judged" in said) == ("warning", True)
        assert "--step-tokens" in remedy

    def test_that_are_cut_at_their_limit(self, path):
        text = LONG + "\\boxed{12}"
        level, said, remedy = only(diagnosis(path, Scripted(text), sampling=Sampling(max_step_tokens=40)), "steps")
        assert (level, "cut at the limit of 40 tokens" in said) == ("warning", True)
        assert "--pattern" in remedy

    def test_of_whole_answers_there_are_none(self, path):
        found = diagnosis(path, Scripted(STEPS + "\\boxed{12}", whole=True))
        level, text, _ = only(found, "steps")
        assert (level, "greedy, majority, bon and wbon" in text) == ("fine", True)
        assert not found.is_broken


class TestPrompts:
    @pytest.mark.parametrize(
        ("content", "prompt", "missing"),
        [
            ("How many?", "<user>How many?<end>", ""), ("How  many\n?", "x How many ? y", ""), ("ﬁve", "five", ""),
            ("How <|x|> many?", "How  many?", "<|x|> many?"), ("a b c", "b c", "a b c"), ("a b c", "", "a b c"),
            (" ".join(map(str, range(30))), "0 1 2 3", "4 5 6 7 8 9 10 11"),
        ],
    )  # fmt: skip
    def test_a_part_that_is_missing(self, content, prompt, missing):
        assert missing_part(content, prompt) == missing

    def test_what_the_template_swallows(self, path):
        lm = Scripted("\\boxed{12}", prompt=lambda problem: problem.question.replace("Question", ""))
        level, text, remedy = only(diagnosis(path, lm), "prompt")[:3]
        assert (level, text) == ("warning", "the model does not read all of 5 of 5 prompts: 'Question 0?' is missing")
        assert "--prompt" in remedy
        swallows_system = Scripted("\\boxed{12}", prompt=lambda problem: problem.question)
        found = diagnosis(path, swallows_system, prompt=motes.prompt("qwen2.5-math"))
        assert "5 of 5 prompts: 'Please reason step by step" in only(found, "prompt")[1]

    def test_the_prompt_of_an_evaluation_is_asked(self, path):
        lm = Scripted("\\boxed{12}", prompt=lambda problem: " ".join(m["content"] for m in problem.messages))
        found = diagnosis(path, lm, prompt=motes.prompt("boxed"))
        assert only(found, "prompt") == ("fine", "the model reads all of 5 questions", "")
        assert all(question.startswith("Question") and "\\boxed" in question for question in lm.questions)

    def test_of_servers(self, capsys: Any, path: Path):
        for engine, says in ((LlamaCpp(), "reads all of 2"), (Closed(), "does not show what it reads")):
            with on_a_socket(engine) as url:
                main(["doctor", url, "--task", str(path), "--questions", "2"])
            assert says in capsys.readouterr().out, type(engine)

    def test_a_special_token_of_a_question_that_a_server_swallows(self, capsys: Any, tmp_path: Path):
        file = tmp_path / "p.jsonl"
        file.write_text('{"question": "Is <user> a word?", "answer": "1"}\n')
        with on_a_socket(LlamaCpp()) as url:
            main(["doctor", url, "--task", str(file)])
        assert "1 of 1 prompts: '<user> a word?' is missing" in capsys.readouterr().out


class TestRewards:
    def test_that_vary(self, path):
        found = diagnosis(path, Scripted(STEPS + "\\boxed{12}"), Scores())
        assert only(found, "reward") == (
            "fine", "20 scores, one for each step: from 0.020 to 0.080, 0.050 in the middle", ""
        )  # fmt: skip

    def test_that_do_not(self, path):
        found = diagnosis(path, Scripted(STEPS + "\\boxed{12}"), Scores(0.5))
        level, text, remedy = only(found, "reward")
        assert (level, "they do not vary" in text, "motes rate" in remedy) == ("warning", True, True)

    def test_that_fail(self, path):
        found = diagnosis(path, Scripted(STEPS + "\\boxed{12}"), Scores(fails=True))
        level, text, _ = only(found, "reward")
        assert (level, found.is_broken) == ("broken", True)
        assert "longer than the reward model's context" in text
        assert about(found, "answers")[0][0] == "fine", "answers are examined all the same"

    def test_of_whole_answers(self, path):
        reward = motes.FunctionReward(lambda problem, text: len(problem.question) / 100, outcome=True)
        found = diagnosis(path, Scripted(STEPS + "\\boxed{12}"), reward)
        assert only(found, "reward")[1].startswith("5 scores, one for each answer")

    def test_a_wrong_number_of_scores(self, path):
        class Few:
            async def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
                return [[0.5] for _ in trajectories]

        assert "1 scores for 4 steps" in only(diagnosis(path, Scripted(STEPS + "\\boxed{12}"), Few()), "reward")[1]


class TestFailures:
    def test_of_some_questions_are_told(self, path):
        lm = Scripted("\\boxed{12}", fails=lambda n: ContextLengthError("the prompt is too long") if n == 2 else None)
        found = diagnosis(path, lm)
        assert not found.is_broken
        level, text, _ = only(found, "questions")
        assert (level, text) == ("warning", "1 of 5 could not be answered: ContextLengthError: the prompt is too long")
        assert about(found, "answers")[0][1] == "found in 4 of 4 texts by the task's rule"
        assert found.to_dict()["questions"][2]["outcome"] == "failed"

    def test_of_all_of_them(self, path):
        found = diagnosis(path, Scripted("", fails=lambda n: EngineError("it is broken")))
        assert [(f.topic, f.level) for f in found.findings] == [("questions", "broken")]

    def test_of_any_kind(self, path):
        found = diagnosis(path, Scripted("", fails=lambda n: ZeroDivisionError("mine")))
        assert "ZeroDivisionError: mine" in only(found, "questions")[1]

    def test_a_missing_key_ends_it(self, path):
        with pytest.raises(UnauthorizedError):
            diagnosis(path, Scripted("", fails=lambda n: UnauthorizedError("no key")))

    def test_a_search_that_takes_too_long(self, path, monkeypatch):
        pool = patterns.Searchers(1, (*patterns.WORKER[:-1], "0.05"))
        monkeypatch.setattr(patterns, "_shared", lambda: pool)
        found = diagnosis(f"regex:{path}?pattern=(a+)%2Bb", Scripted("a" * 60))
        pool.close()
        assert found.is_broken
        assert "takes too long" in only(found, "questions")[1]

    def test_a_deadline_must_be_one(self, path):
        with pytest.raises(ConfigurationError, match="deadline must be more than 0"):
            diagnosis(path, Scripted(""), deadline=0.0)


class TestTime:
    def test_is_that_of_the_whole_task(self, path):
        found = diagnosis(path, Scripted(STEPS + "\\boxed{12}"))
        text = only(found, "time")[1]
        assert "16 answers to each of 8 problems are 128 answers" in text
        trials = found.examination.trials
        assert f"about {128 * sum(t.num_tokens for t in trials) / 5:,.0f} tokens" in text
        assert found.examination.seconds > 0

    def test_the_seeds_are_an_evaluations(self, path):
        """So the texts are the same as those of a run with the method and budget of the evaluation."""
        lm = motes.TabularLanguageModel({(): {f"It is \\boxed{{{i}}}": 0.02 for i in range(50)}})
        found = diagnosis(path, lm, limit=4, seeds=(3,))
        texts = []
        for run in found.examination.evaluation.plan():
            result = motes.solve(run.problem, lm=lm, reward=None, method=motes.Majority(1), seed=run.run_seed)
            texts.append(result.text)
        assert [trial.text for trial in found.examination.trials] == texts
        assert len(set(texts)) > 1


FINE = Scripted(STEPS + "So it is \\boxed{12}.")
IN_WORDS = Scripted(STEPS + "So the answer is 12.")
VARYING = Scores()


class TestCommand:
    def run(self, capsys: Any, *words: str) -> tuple[int, str, str]:
        code = main(["doctor", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    def test_says_what_is_fine(self, capsys: Any, path: Path):
        code, out, err = self.run(
            capsys, "test_diagnosis:FINE", "--task", str(path), "--reward", "test_diagnosis:VARYING"
        )
        assert code == 0
        assert out.startswith(f"test_diagnosis:FINE: 5 of 8 problems of {path}\n")
        assert "fine    answers: right: 5 of 5\n" in out
        assert "fine    reward: 20 scores" in out
        assert out.endswith("nothing would break an evaluation\n")
        assert "5/5 questions" in err

    def test_says_what_would_break(self, capsys: Any, path: Path):
        code, out, _ = self.run(capsys, "test_diagnosis:IN_WORDS", "--task", str(path), "--questions", "2")
        assert code == 1
        assert "broken  answers: found in 0 of 2 texts" in out
        assert "        read answers by another rule: --rule answer-is finds one in 2 of 2 (2 right)" in out
        assert "another thing. So the answer is 12." in out
        assert out.endswith("something would break an evaluation\n")
        code, out, _ = self.run(capsys, "test_diagnosis:IN_WORDS", "--task", str(path), "--rule", "answer-is")
        assert (code, "right: 5 of 5" in out) == (0, True)

    def test_as_json(self, capsys: Any, path: Path):
        code, out, err = self.run(capsys, "test_diagnosis:IN_WORDS", "--task", str(path), "--json", "--questions", "3")
        told = json.loads(out)
        assert (code, err, told["is_broken"], told["num_problems"]) == (1, "", True, 8)
        assert len(told["questions"]) == 3
        first = told["questions"][0]
        assert (first["answer"], first["outcome"], first["finished"]) == (None, "no_answer", "eos")
        assert [step["end"] for step in first["steps"]] == ["step", "step", "step", "eos"]
        assert {finding["topic"] for finding in told["findings"]} >= {"answers", "ends", "steps", "thoughts", "time"}

    def test_the_sampling_is_the_evaluations(self, capsys: Any, path: Path):
        code, out, _ = self.run(capsys, "test_diagnosis:FINE", "--task", str(path), "--max-tokens", "5")
        assert code == 1
        assert "cut off at the limit of 5 tokens" in out
        assert "--max-tokens 10" in out
        _, out, _ = self.run(capsys, "test_diagnosis:FINE", "--task", str(path), "--delimiter", "none")
        assert "each whole answer is one step" in out

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["tiny"], "or name a task of which the model is asked questions, --task FILE.jsonl"),
            (["tiny", "--task", "math-5000"], "did you mean 'math-500'"),
            (["tiny", "--task", "arithmetic", "--contract"], "`motes check --model tiny` checks its contract"),
            (["tiny", "--task", "arithmetic", "--split", "tests"], "did you mean 'test'"),
            (["tiny", "--task", "arithmetic", "--rule", "last-numbr"], "did you mean 'last-number'"),
            (["tiny", "--task", "missing.jsonl"], "cannot be read"),
            (["http://127.0.0.1:1/v1", "--json"], "--json goes with --task"),
        ],
    )  # fmt: skip
    def test_what_cannot_work(self, capsys: Any, words: list[str], says: str):
        code, out, err = self.run(capsys, *words)
        assert (code, out) == (2, "")
        assert says in err

    def test_the_bundled_pair(self, capsys: Any):
        code, out, _ = self.run(capsys, "tiny", "--task", "arithmetic", "--questions", "2", "--reward", "tiny")
        assert code == 0
        assert "fine    prompt: the model reads all of 2 questions" in out
        assert "broken" not in out

    def test_a_server_that_completes_prompts(self, capsys: Any, path: Path):
        with on_a_socket(LlamaCpp()) as url:
            code, out, _ = self.run(capsys, url, "--task", str(path), "--temperature", "0.9", "--seed", "3")
            assert code == 0
            assert "steps: " in out
            assert "keeps the contract" not in out
            _, out, _ = self.run(capsys, url, "--task", str(path), "--contract")
            assert "keeps the contract of a language model" in out
            assert "answers: " in out

    def test_a_chat_that_writes_whole_answers_and_thinks_in_a_field(self, capsys: Any, path: Path):
        class Thinks(Closed):
            finish = "stop"

            def v1_chat_completions(self, body: dict[str, Any]) -> Any:
                message = {
                    "role": "assistant",
                    "reasoning_content": "Is it 5? \\boxed{5}",
                    "content": "It is \\boxed{12}.",
                }
                if self.finish == "length":
                    message["content"] = ""
                usage = {"prompt_tokens": 5, "completion_tokens": 40}
                return {"choices": [{"index": 0, "message": message, "finish_reason": self.finish}], "usage": usage}

        with on_a_socket(engine := Thinks()) as url:
            code, out, _ = self.run(capsys, url, "--task", str(path))
            assert code == 0
            assert "thoughts: in 5 of 5 texts" in out
            assert "steps: none: the model writes whole answers only" in out
            engine.finish = "length"
            code, out, _ = self.run(capsys, url, "--task", str(path), "--max-tokens", "40")
            assert code == 1
            assert "5 of 5 thoughts are never closed" in out
            assert "--max-tokens 80" in out

    def test_a_server_that_refuses_long_questions(self, capsys: Any, tmp_path: Path):
        path = questions(tmp_path, "1", "1")
        path.write_text(path.read_text() + "\n" + json.dumps({"question": "so " * 9000, "answer": "1", "id": "long"}))
        with on_a_socket(LlamaCpp(context=4096)) as url:
            code, out, _ = self.run(capsys, url, "--task", str(path))
        assert "warning questions: 1 of 3 could not be answered: ContextLengthError: " in out
        assert code in (0, 1)

    def test_a_server_that_breaks_down(self, capsys: Any, path: Path):
        engine = OpenAICompatible()
        with on_a_socket(engine) as url:
            engine.fails = lambda path, body: httpx2.Response(500) if body.get("max_tokens", 0) > 100 else None
            code, out, _ = self.run(capsys, f"{url}?attempts=1", "--task", str(path))
        assert code == 1
        assert "broken  questions: 5 of 5 could not be answered" in out
