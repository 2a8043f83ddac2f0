r"""How answers are read: boxes in TeX, however a text is cut; statements in words; and at what cost."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import motes
from motes.protocols import AnswerRule
from motes.tasks import BoxedAnswers, Choices, ExactMatch, WholeText, answer_rule, task
from motes.tasks.tex import Reading, last_box, without_markup
from motes.thoughts import without_thoughts

DATA = Path(__file__).parents[2] / "shared" / "data"
PIECEWISE = r"f(x)=\left\{\begin{array}{ll}1&x>0\\0&x\le 0\end{array}\right."

BOXES = (
    (r"\boxed{5}", "5"), (r"\boxed {5}", "5"), ("\\boxed\n{5}", "5"), (r"\fbox{5}", "5"), (r"\fbox {5}.", "5"),
    (r"is \boxed 5.", "5"), (r"$\boxed 5$", "5"), (r"\(\boxed 5\)", "5"), (r"(\boxed 5)", "5"), (r"**\boxed 5**", "5"),
    (r"\boxed 12 of", "12"), (r"\boxed 3.5.", "3.5"), (r"\boxed 1,234.", "1,234"), (r"\boxed -5", "-5"),
    (r"\boxed B.", "B"), (r"\boxed{x=\boxed 5}", "5"), (r"{\boxed 5} x", "5"), (r"\boxed 12\%.", r"12\%"),
    (r"\boxed\frac12", r"\frac12"), (r"\boxed\frac{1}{2}.", r"\frac{1}{2}"), (r"\boxed \frac 1 2 so", r"\frac 1 2"),
    (r"\boxed\dfrac{1}{2} so", r"\dfrac{1}{2}"), (r"\boxed\sqrt 2 is", r"\sqrt 2"), (r"\boxed\pi so", r"\pi"),
    (r"\boxed\text{(B)}.", r"\text{(B)}"), (r"\boxed\boxed{5}", "5"), (r"\boxed{\boxed{5}}", "5"),
    (r"First \boxed{3}, no: \boxed{" + PIECEWISE + "}", PIECEWISE), (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{5\right.}", r"\left\{5\right."), (r"\boxed{a\\{b}c}", r"a\\{b}c"), (r"\\\boxed{5}", "5"),
    (r"\\boxed{5}", "5"), (r"\boxed{3}\boxed{}", "3"), (r"\boxed{3} and \boxed{ }", "3"), (r"\boxed{5}}}", "5"),
    (r"\boxed{3", None), (r"\boxed{5\}", None), (r"\boxed{3} \boxed{4", "3"), (r"\boxedx{5}", None),
    (r"use \boxed to show it", None), (r"in `\boxed`", None), (r"\boxed.", None), (r"within \boxed{}.", None),
    (r"<think>\boxed{1}</think>\boxed{2}", "2"), (r"<think>\boxed{1}</think> 2", None), (r"<think>\boxed{1}", None),
    (r"\boxed{1}</think>\boxed 2", "2"), (r"\boxed{1}</think>", None), (r"\boxed{1}<think>\boxed{2}", "1"),
    (r"\boxed{5} in \boxed{\text{}}", "5"), (r"\boxed{~}", None), (r"\boxed{...}", None), (r"\boxed{\ldots}.", None),
    (r"\boxed{{}}", None), (r"\boxed{\quad\,}", None), (r"\boxed{\_\_}", None), (r"\boxed{?}", None),
    (r"\boxed{…}", None), (r"\boxed{\boxed{}}", None), (r"\boxed{$ $}", None), (r"\boxed{\ }", None),
    (r"\boxed{\\}", None),
    (r"\boxed{.5}", ".5"), (r"\boxed{\text{a}}", r"\text{a}"), (r"\boxed{\{\}}", r"\{\}"),
    (r"\boxed{1, \ldots}", r"1, \ldots"),
    (r"\boxed{\$5}", r"\$5"), (r"\boxed{-}", "-"), (r"\boxed{[]}", "[]"),
    (r"[THINK]\boxed{1}[/THINK] so 2", None), (r"◁think▷\boxed{1}◁/think▷ \boxed{2}", "2"),
)  # fmt: skip


def read_in(pieces: list[str]) -> Reading:
    reading = Reading()
    for piece in pieces:
        reading = reading.read(piece)
    return reading


def cuts(text: str) -> list[list[str]]:
    """A text in pieces of one, two and three characters, and in two pieces, cut everywhere."""
    return [
        *(re.findall(rf"(?s).{{1,{n}}}", text) for n in (1, 2, 3)),
        *([text[:i], text[i:]] for i in range(len(text) + 1)),
    ]


def num_lines_run(work: Callable[[], object]) -> int:
    """Lines of Python that are carried out."""
    count = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class TestBoxes:
    @pytest.mark.parametrize(("text", "answer"), BOXES)
    def test_in_any_form(self, text, answer):
        assert last_box(text) == BoxedAnswers().answer(text) == answer

    @pytest.mark.parametrize(("text", "answer"), BOXES)
    def test_however_the_text_is_cut(self, text, answer):
        for pieces in cuts(text):
            box = read_in(pieces).read("", is_end=True).box
            assert (box and box.content(text)) == answer, pieces

    @pytest.mark.parametrize(
        ("text", "length"),
        [
            (r"So \boxed{5} it is", 12), (r"\boxed{\{5\}}.", 13), (r"<think>\boxed{1}</think>\boxed{2} so", 33),
            (r"\boxed 5. So", 10), (r"\boxed\frac{1}{2}$ so", 18), (r"\boxed{}\boxed{3}", 17),
            (r"<think>\boxed{1}", None), (r"\boxed{5", None), (r"The answer is 5.", None), (r"\boxed 5", None),
        ],
    )  # fmt: skip
    def test_an_answer_is_final_once_its_box_is_closed(self, text, length):
        final = [n for n in range(len(text) + 1) if read_in(list(text[:n])).is_final]
        assert final == ([] if length is None else list(range(length, len(text) + 1)))
        assert [n for n in range(len(text) + 1) if Reading().read(text[:n]).is_final] == final

    @pytest.mark.parametrize(("file", "count"), [("math500.jsonl", 500), ("aime2024.jsonl", 30)])
    def test_every_reference_is_read_back(self, file, count):
        if not (DATA / file).exists():
            pytest.skip(f"{DATA / file} is not there")
        answers = [json.loads(line)["answer"] for line in (DATA / file).read_text(encoding="utf-8").splitlines()]
        assert len(answers) == count
        rule = BoxedAnswers()
        for box in (r"\boxed{%s}", r"\boxed {%s}", r"\fbox{%s}", r"\boxed{\boxed{%s}}"):
            assert [a for a in answers if rule.answer(f"No {{\\boxed{{1}}}}: ${box % a}$.") != a] == []
        for answer in answers:
            text = rf"So \boxed{{{answer}}}"
            assert not read_in(list(text[:-1])).is_final
            assert read_in(list(text)).is_final

    @pytest.mark.parametrize(
        "unit",
        [
            "\\boxed{",
            "\\boxed{}",
            "\\boxed{{",
            "<think>",
            "</think>",
            "\\",
            "{",
            "\\boxed ",
            "\\boxed 5",
            "\\frac{",
            "so ",
        ],
    )
    def test_the_cost_grows_with_the_text(self, unit):
        whole = [num_lines_run(lambda n=n: last_box(unit * n)) for n in (200, 400)]
        assert whole[1] <= 2.2 * whole[0]
        steps = [num_lines_run(lambda n=n: read_in([unit] * n)) for n in (200, 400)]
        assert steps[1] <= 2.2 * steps[0]

    def test_what_is_kept_of_a_text_does_not_grow(self):
        for unit in ("so x = 3\n\n", "<think>so x = 3\n\n", "\\boxed ", "\\", "\\boxed{1}", "\\boxed     "):
            assert len(read_in([unit] * 500).pending) <= 64

    def test_thoughts_are_left_out(self):
        assert without_thoughts("a<think>b</think>c") == "ac"
        assert without_thoughts("a<think>b") == "a"
        assert without_thoughts("a</think>b</think>c<think>d</think>e") == "ce"
        assert without_thoughts("a<think>b<think>c</think>d") == "ad"

    def test_markup_is_left_out(self):
        assert without_markup(r"\textbf{\text{a \{ b}} {c} \mathrm{d") == r"a \{ b {c} d"
        assert num_lines_run(lambda: without_markup("\\text{" * 400)) < 10_000


STATED = (
    ("ANSWER: B", "B"), ("Answer: b", "B"), ("**Answer**: b", "B"), ("**Answer:** B", "B"), ("Answer：B", "B"),
    ("Answer：Ｂ", "B"), ("**Final Answer**\n\nB", "B"), ("## Answer\nB", "B"), ("The answer is **B**.", "B"),
    ("The correct answer is: (B) Berlin", "B"), ("So the best option is B", "B"), ("answer is option B", "B"),
    ("The answer is choice (C).", "C"), (r"Answer: \text{B}", "B"), (r"The answer is \(B\).", "B"),
    ("ANSWER: $B", "B"), ("答案：B", "B"), ("正确答案是B。", "B"), ("【答案】B", "B"), ("Answer: 【B】", "B"),
    ("Answer: [B]", "B"), ("Answer: B) Berlin", "B"), ("The answer is therefore B", "B"), ("the answer must be C", "C"),
    ("The answer is most likely (C).", "C"), ("The answer is A because it is.", "A"), ("answer: a", "A"),
    ("The answer is a town.", None), ("The answer is A good question.", None), ("The answer is I think B", None),
    ("The answer is Bonn.", None), ("Is the answer B?", None), ("The answer is B?", None),
    ("The answer is not B.", None), ("I don't think the answer is B.", None), ("It's not A, so the answer is B.", "B"),
    ("It is not the case that the answer is A.", None), ("This is not the answer: B", None),
    ("Not sure, but the answer is B", "B"), ("If we add, the answer is B.", "B"), ("If the answer is B, fine.", None),
    ("Suppose for a moment that the answer is A. Then Bonn would be in Hesse.", None),
    ("Assume the answer is A.", None),
    ("The question asks whether the answer is A or B; let us check.", None), ("The answer is A or B.", None),
    ("The answer is B. Is it? Whether the answer is A or C, nobody asked.", "B"), ("The answer is B and not C.", "B"),
    ("Answer: A and B", "A, B"), ("The answer is 2.", "2"), ("The answer is (2).", "2"), ("Answer: 2", "2"),
    ("Answer: 2. Wiesbaden", "2"), ("The answer is 2.5", None), ("The answer is 2 apples", None),
    ("The answer is (ii).", "II"), ("Answer: 'B'", "B"), ('{"answer": "B", "reason": "not A"}', "B"),
    ("{'answer': 'B'}", "B"), ("| Answer | B |", "B"), ("| Question | Answer |\n|---|---|\n| 1 | B |", None),
    ("<answer>\nB\n</answer>", "B"), ("Answer: A; C", "A, C"), ("The answer is B. It is not A.", "B"),
    ("The answer is A. Wait, the answer is not A but B.", "B"), ("The answer is not (A), but rather **(B)**.", "B"),
    ("The answer to this question is (C).", "C"), ("The answer is:\n- B", "B"), ("__Answer__: B", "B"),
    ("It is wrong to say that the answer is A.", None), ("I doubt that the answer is A.", None),
    ("There is no doubt that the answer is A.", "A"), ("As C is wrong the answer is A.", "A"),
    ("The answer is A. That's clearly wrong.", None), ("The answer is B, which is not possible.", None),
    ("The answer is B. The answer is A is wrong", "B"),
    ("B", "B"), ("(b)", "B"), ("**B**.", "B"), ("Option B", "B"), ("Bonn", None), ("B it is, or C", None),
)  # fmt: skip


class TestStatements:
    @pytest.mark.parametrize(("text", "answer"), STATED)
    def test_of_a_choice(self, text, answer):
        assert Choices().answer(text) == answer

    @pytest.mark.parametrize(
        ("boxed", "label"),
        [
            ("B", "B"), ("b", "B"), ("(B)", "B"), ("[B]", "B"), ("B.", "B"), ("**B**", "B"), (r"\text{B}", "B"),
            (r"\textbf{(B)}", "B"), (r"\textsf{B}", "B"), (r"\text{(B)}\ Wiesbaden", "B"), ("B. Wiesbaden", "B"),
            ("B) Wiesbaden", "B"), ("B Wiesbaden", "B"), ("Option B", "B"), ("Answer: B", "B"), ("Ｂ", "B"),
            ("2", "2"), ("(2)", "2"), ("2. Wiesbaden", "2"), (r"\text{2}", "2"), ("A, B", "A, B"),
            (r"A \text{ and } B", "A, B"), ("B, A", "A, B"), ("Wiesbaden", "wiesbaden"), ("2.5", "2.5"),
            ("A good question", "a good question"), ("A or B", "a or b"), ("B = 5", "b = 5"), ("B-52", "b-52"),
            ("2,000", "2,000"), ("A_1", "a_1"), ("10²", "10²"),
        ],
    )  # fmt: skip
    def test_a_choice_by_its_name(self, boxed, label):
        rule = Choices()
        answer = rule.answer(rf"\boxed{{{boxed}}}")
        assert answer is not None
        assert rule.canonical(answer) == label
        assert rule.matches("B", answer) is (label == "B")
        assert rule.matches("2", answer) is (label == "2")

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            ("To see what the answer is we first look at the map.", None), ("ANSWER: Bonn", "Bonn"),
            ("**Answer**: Straße", "Straße"), ("The final answer is\n\nBonn", "Bonn"),
            ("# Final answer\n\nBonn\n", "Bonn"),
            ("Suppose the answer is Bonn. Then it lies in Hesse.", None),
            ("Answer: Bonn\nNo. Answer: Bad Homburg\n", "Bad Homburg"),
            ("The answer is Bonn.\nSuppose the answer is Mainz.", "Bonn."),
        ],
    )  # fmt: skip
    def test_of_words(self, text, answer):
        assert ExactMatch().answer(text) == answer

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            ("102", "10²", False), ("11/2", "1½", False), ("101", "10①", False), ("H2O", "H₂O", False),
            ("5m2", "5㎡", False), ("Straße", "STRASSE", True), ("Bonn", "Bonn\u200b", True), ("é", "e\u0301", True),
            ("fin", "ﬁn", True), ("5", "５", True), ("a b", "a\u00a0b", True), ("x", "𝑥", True), ("10²", "10²", True),
        ],
    )  # fmt: skip
    def test_characters_that_mean_the_same(self, first, second, same):
        assert ExactMatch().equivalent(first, second) is ExactMatch().equivalent(second, first) is same

    @pytest.mark.parametrize(
        "unit", ["The answer is ", "answer ", "answer\n", "whether the answer is A ", "The answer is A good thing "]
    )
    @pytest.mark.parametrize("rule", [Choices(), ExactMatch()], ids=["choices", "words"])
    def test_the_cost_grows_with_the_text(self, rule, unit):
        lines = [num_lines_run(lambda n=n: rule.answer(unit * n)) for n in (50, 100)]
        assert lines[1] <= 2.2 * lines[0]

    def test_what_is_stated_in_words_is_not_final(self):
        for rule in (Choices(), ExactMatch()):
            reading = None
            for step in ("Suppose the answer is A.\n\n", "So the answer is B.\n\n", "Answer: C\n\n"):
                reading = rule.read(step, reading)
                assert not reading.is_final
            assert rule.read("\\boxed{C}", reading).is_final


def test_a_whole_text():
    rule = WholeText()
    assert rule.answer("<think>Mainz? No.</think>\n Bonn, on the Rhine.\n") == "Bonn, on the Rhine."
    assert rule.answer("<think>Mainz?") is rule.answer(" ") is None
    assert rule.matches("bonn, on the Rhine", "Bonn,  on the Rhine.")
    assert not rule.read("\\boxed{5} The answer is 5.", None).is_final


class Watched(BoxedAnswers):
    """Counts the characters that are read of growing texts, and the whole texts that are read."""

    def __init__(self) -> None:
        self.num_read = 0
        self.whole: list[str] = []

    def answer(self, text: str) -> str | None:
        self.whole.append(text)
        return super().answer(text)

    def read(self, step: str, before: Reading | None) -> Reading:
        self.num_read += len(step)
        return super().read(step, before)


class OwnRule:
    """A last word of Bonn; it says nothing of what is final."""

    def answer(self, text: str) -> str | None:
        return "Bonn" if "Bonn" in text.split()[-1:] else None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


def says(*steps: str) -> motes.TabularLanguageModel:
    """A model that writes these steps and ends, whatever it is asked."""
    return motes.TabularLanguageModel({steps[:i]: {step: 1.0} for i, step in enumerate(steps)})


def ends(rule: AnswerRule, *steps: str, **options: object) -> tuple[str | None, str | None, int]:
    """What a model that says these steps answers, why its trajectory ended, and after how many steps."""
    result = motes.solve("?", lm=says(*steps), reward=None, method=motes.Majority(1), task=rule, **options)
    (trajectory,) = result.trajectories
    return result.answer, trajectory.finished, trajectory.depth


class TestFinality:
    FIRST = "Suppose for a moment that the answer is A. Then Bonn would be in Hesse, which is wrong.\n\n"

    def test_half_a_text_ends_nothing(self):
        assert ends(Choices(), self.FIRST, "So the answer is B.") == ("B", "eos", 2)
        assert ends(Choices(), "The answer is A.\n\n", "No: the answer is B.") == ("B", "eos", 2)
        assert ends(ExactMatch(), "To see what the answer is we look at the map.\n\n", "Answer: Bonn") == (
            "Bonn",
            "eos",
            2,
        )

    def test_a_rule_that_says_nothing_of_it_is_taken_at_its_word(self):
        assert ends(OwnRule(), "Perhaps Mainz\n\n", "or Bonn\n\n", "or Kassel") == ("Bonn", "answer", 2)

    def test_a_filter_goes_on_as_well(self):
        method = motes.ParticleFilter(4)
        lm, reward = says(self.FIRST, "So the answer is B."), motes.TabularReward({})
        result = motes.solve("?", lm=lm, reward=reward, method=method, task=Choices())
        assert (result.answer, [t.finished for t in result.trajectories]) == ("B", ["eos"] * 4)

    @pytest.mark.parametrize(
        ("steps", "answer", "depth"),
        [
            (("So \\boxed{5}.\n\n", "No, \\boxed{6}."), "5", 1), (("So \\bo", "xed{", "5", "} so", " on"), "5", 4),
            (("<think>\\boxed{1} </thi", "nk>", "\\boxed{2} so", " on"), "2", 3),
            (("\\boxed{1", "</think>", "\\boxed 2"), "2", 3),
            (("<thi", "nk>\\boxed{1}", "</think>It is 2."), None, 3), (("\\boxed ", "{5}", " so"), "5", 2),
            (("\\boxed 5", "7", " so"), "57", 3), (("\\boxed 5", "7 so", " on"), "57", 2),
            (("\\boxed{\\", "{5\\", "}} so", "."), "\\{5\\}", 3),
        ],
    )  # fmt: skip
    def test_a_box_is_final_wherever_steps_end(self, steps, answer, depth):
        for rule in (BoxedAnswers(), Choices(), ExactMatch()):
            assert ends(rule, *steps)[::2] == (answer, depth)

    def test_a_step_is_read_once(self):
        steps = tuple(f"Line {i} of the answer.\n\n" for i in range(30))
        rule = Watched()
        options = {"sampling": motes.Sampling(max_steps=100)}
        assert ends(rule, *steps, "\\boxed{5} so\n\n", "on", **options) == ("5", "answer", 31)
        text = "".join(steps) + "\\boxed{5} so\n\n"
        assert rule.num_read == len(text)
        assert rule.whole == [text] * 2, "once to see that it answers, once for the answer"

    def test_steps_that_particles_share_are_read_once(self):
        rule = Watched()
        lm, reward = says("One.\n\n", "Two.\n\n", "Three \\boxed{3}"), motes.TabularReward({})
        motes.solve("?", lm=lm, reward=reward, method=motes.ParticleGibbs(4, num_sweeps=2), task=rule)
        assert rule.num_read <= 2 * 4 * len("One.\n\nTwo.\n\n")

    def test_a_whole_text_counts_once_the_model_has_ended_it(self):
        assert ends(WholeText(), "It lies on the Rhine: \\boxed{5}\n\n", "Bonn.") == (
            "It lies on the Rhine: \\boxed{5}\n\nBonn.", "eos", 2
        )  # fmt: skip
        cut = {"sampling": motes.Sampling(max_steps=1)}
        assert ends(WholeText(), "It lies on the Rhine.\n\n", "Bonn.", **cut) == (None, "max_steps", 1)
        assert ends(Choices(), "The answer is B.\n\n", "Bonn.", **cut) == ("B", "max_steps", 1)

    def test_a_named_rule_of_a_whole_text(self, tmp_path):
        path = tmp_path / "p.jsonl"
        path.write_text('{"question": "The capital of Hesse?", "answer": "Wiesbaden"}\n')
        made = task(f"whole-text:{path}")
        assert ends(made, "It is\n\n", "\\boxed{5}")[1:] == ("eos", 2)
        assert ends(made, "wiesbaden.\n\n", "So.", sampling=motes.Sampling(max_steps=1))[0] is None
        assert made.grade(made.problems()[0], "wiesbaden.")
        assert answer_rule("whole-text").answer("a b") == "a b"
