r"""Rules by name: what they read from texts without a box, when it is final, which answers are the same, and where a
rule can be named."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import motes
import worlds
from motes import api
from motes.arguments import make_spec, parse_options
from motes.cli import main
from motes.core import Step, Trajectory
from motes.errors import ConfigurationError, GraderTimeoutError, UnknownNameError
from motes.gateway.config import Config
from motes.lab import Evaluation
from motes.lab.run import identity
from motes.lab.run.calls import Call, Setup
from motes.methods.answers import answer_of, is_quick
from motes.protocols import AnswerRuleTraits, Task, TaskTraits, canonical_form
from motes.tasks import (
    DECLARED,
    RULES,
    BoxedAnswers,
    Choices,
    ExactMatch,
    answer_rule,
    patterns,
    split_rule,
    task,
    with_rule,
)
from motes.tasks.quantities import last_numeral, numerals, quantity
from test_reading import cuts, ends, num_lines_run, read_in, says

ROOT = Path(__file__).parents[1]
NAMED = ("answer-is", "last-number", "last-line", r"regex?pattern=A: (\S+)")
"""Rules for texts without a box."""

NUMBERS = (
    ("1,000", 1000), ("is 1{,}000.", 1000), ("1'000", 1000), ("10,00,000", 1_000_000), ("1.234.567", 1_234_567),
    ("1\u2009000", 1000), ("1 000", 1000), ("100 200 300", 300), ("3.50", "7/2"), ("3,50", "7/2"),
    ("1.234,50", "2469/2"), ("is .5", "1/2"), ("3/4", "3/4"), ("needs 1 1/2 cups", "3/2"), (r"\frac{3}{4}", "3/4"),
    ("needs 2½ cups", "5/2"), ("½", "1/2"), ("1 ¾", "7/4"), ("-¼", "-1/4"), ("so ⅔.", "2/3"), ("3/-4", "-3/4"),
    (r"\frac{-3}{4}", "-3/4"), (r"-\frac{3}{-4}", "3/4"), (r"x^½", None),
    (r"$1\frac12$", "3/2"), ("2^10", 1024), ("10⁶", 10**6), ("3e8", 3 * 10**8), ("3 × 10^8", 3 * 10**8),
    (r"3\times 10^{8}", 3 * 10**8), ("10^{-3}", "1/1000"), ("is -5", -5), ("−5", -5), ("-$5", -5), ("= - 5", -5),
    ("x=-5", -5), ("5-3", 3), ("10 - 4", 4), ("- 5 apples", 5), ("pages 3–5", 5), ("x^2 has", None),
    ("x^{-3} is", None),
    ("5 then x_1", 5), ("a_{12}: 3 or b_{7}", 3), ("H2O", None), ("25 cm2", 25), ("25 cm^2", 25), ("25 cm²", 25),
    ("7.\n1. Add\n2. Divide", 7), ("Answer:\n18.", 18), ("- **2.** Add", None), ("so" + " " * 20 + "2. Add", 2),
    ("1. 5", 5), ("3) 4 apples", 4),
    ("1/2/2024", 2024), ("2024-05-01", 1), ("5,10,15", 15), ("5, 10, 15", 15), ("50%", 50), ("Rs.500", 500),
    ("...5", 5), ("5.", 5), ("05", 5), ("5/0", None), ("٣", 3), ("٣٫٥", "7/2"),
    ("١٬٢٣٤٫٥", "2469/2"), ("５", 5), ("3rd", 3), ("12:30", 30), ("\\(5\\)", 5),
    ("\\boxed{12}", 12), ("5 x 10 = 50", 50), ("9^99999", None), ("1e999", None), ("no number", None), ("", None),
    ("1" * 1000, None), ("1,234,567.89", "123456789/100"), ("2 or 3?", 3), ("twelve", None), ("5km", 5), ("(-5)", -5),
)  # fmt: skip

QUANTITIES = (
    ("42", 42), ("42 apples", 42), ("$42", 42), ("42.", 42), ("-$5", -5), ("5 km", 5), ("5 km/h", 5), ("5%", 5),
    (r"5\%", 5), ("5 m", 5), ("100 m^2", 100), ("20°C", 20), ("€5", 5), ("5€", 5), ("USD 5", 5), ("5 USD", 5),
    ("3/4 cup", "3/4"), ("12 square feet", 12), ("4 miles per hour", 4), ("1,000 km", 1000), ("5-year-old", 5),
    ("90°", 90), (r"90^{\circ}", 90), (r"90^\circ", 90), ("½ cup", "1/2"), ("2½", "5/2"), ("- 5", -5), ("- $5", -5),
    ("3 / 4", "3/4"), ("US$5", 5), ("A$ 5", 5), ("Rs. 500", 500), ("Rs 5", 5), ("5 Rs", 5), ("- x", None),
    ("12 (twelve)", 12), ("5 km (walking, daily)", 5), ("5 (million)", None), ("5 (mod 7)", None), ("5 (x+y)", None),
    ("5(abc)", None), ("5 (x)", None), ("5 (-)", None),
    ("1 / 0", None),
    ("5 or 6", None), ("5 million", None), ("2x", None), ("2x+3", None), ("2 x", None), ("12:30", None), ("3-5", None),
    ("3, 5", None), ("5 pm", None), ("5 cats and 2 dogs", None), ("B", None), ("x=5", None), ("5!", None), ("", None),
)  # fmt: skip


class TestNumbers:
    @pytest.mark.parametrize(("text", "value"), NUMBERS)
    def test_the_last_one_of_a_text(self, text, value):
        number = last_numeral(text)
        assert (number and str(number.value)) == (None if value is None else str(value))

    @pytest.mark.parametrize(("text", "value"), NUMBERS)
    def test_however_much_stands_before_and_behind(self, text, value):
        """The window in which a long text is searched may begin anywhere in the number."""
        for before in (2040, 2048 - len(text) // 2, 3000):
            for behind in (0, 2000, 9000):
                padded = "so on\n" * (before // 6) + text + "\nand so on" * (behind // 10)
                number = last_numeral(padded)
                assert (number and str(number.value)) == (None if value is None else str(value)), (before, behind)

    @pytest.mark.parametrize(("answer", "value"), QUANTITIES)
    def test_with_a_unit(self, answer, value):
        assert quantity(answer) == (None if value is None else motes_fraction(value))

    @pytest.mark.parametrize("unit", ["x1 ", "so ", "1. a\n", "x^1 ", "- ", "1 1/", "1,", "é1 "])
    def test_the_cost_grows_with_the_text(self, unit):
        """The window grows by factors of four."""
        lines = [num_lines_run(lambda n=n: last_numeral(unit * (n // len(unit)))) for n in (8_000, 32_000)]
        assert lines[1] <= 4.5 * lines[0] + 100

    def test_a_long_text_costs_no_more_than_its_end(self):
        text = "Add 3 and 4.\n" * 100_000 + "So it is 12."
        assert num_lines_run(lambda: last_numeral(text)) < 20_000

    def test_all_of_a_text(self):
        assert [number.text for number in numerals("3 of 1,200 at -$5: 1/2")] == ["3", "1,200", "-5", "1/2"]


def motes_fraction(value: Any) -> Any:
    from fractions import Fraction

    return Fraction(value)


# (text, answer-is, last-number, last-line)
TEXTS = (
    ("She has 3 bags of 4.\n\nThe answer is 12.", "12", "12", "12."),
    ("The total is $1,200.50.\n\nI hope it helps!", None, "1,200.50", "I hope it helps!"),
    ("<think>Is it 5? The answer is 5.</think>\nThe capital is **Paris**.", None, None, "The capital is **Paris**."),
    ("<think>The answer is 5.\n5", None, None, None),
    ("The answer is 4.\n</think>\n7 it is", None, "7", "7 it is"),
    ("4+5=9\n#### 9", "9", "9", "9"), ("#### 1,000 dollars", "1,000 dollars", "1,000", "1,000 dollars"),
    ("#### 1. Setup", None, None, "1. Setup"), ("#### Step 2", None, "2", "Step 2"),
    ("**Final Answer**\n\n\\[\n42\n\\]", "42", "42", "42"), ("The answer is:\n\n$$\nx = 5\n$$", "x = 5", "5", "x = 5"),
    ("The answer is Paris. It lies on the Seine.", "Paris", None, "Paris. It lies on the Seine."),
    ("The answer is St. Louis, because of 2 rivers.", "St. Louis", "2", "St. Louis, because of 2 rivers."),
    ("Answer: J. K. Rowling. She wrote it.", "J. K. Rowling", None, "J. K. Rowling. She wrote it."),
    ("The answer is George W. Bush.", "George W. Bush", None, "George W. Bush."),
    ("The answer is vitamin C. It helps.", "vitamin C", None, "vitamin C. It helps."),
    ("The answer is B. Because C is wrong.", "B", None, "B. Because C is wrong."),
    ("The answer is no. The sky is blue.", "no", None, "no. The sky is blue."),
    ("The answer is No. 5. The rest is noise.", "No. 5", "5", "No. 5. The rest is noise."),
    ("Answer: U.S. dollars", "U.S. dollars", None, "U.S. dollars"),
    ("the final answer is: **42**", "42", "42", "42"), ("Answer: 42 apples", "42 apples", "42", "42 apples"),
    ("- **Answer: 42**\n```", "42", "42", "42"),
    ("The answer is $\\frac{1}{2}$.", "$\\frac{1}{2}$", "\\frac{1}{2}", "$\\frac{1}{2}$."),
    ("The answer to the problem is 5.", "5", "5", "5."), ("The answer to this final question is: 5", "5", "5", "5"),
    ("The answer to life is 42.", None, "42", "The answer to life is 42."),
    ("__Answer__: 5", "5", "5", "5"), ("_Answer: 5_", "5", "5", "5"), ("#### **-5**", "-5", "-5", "-5"),
    ("The answer is about 5 km.", "5 km", "5", "about 5 km."),
    ("The answer is **exactly $5**.", "$5", "5", "exactly $5**."),
    ("The answer is about love.", "about love", None, "about love."),
    ("The answer is 5, not 6.", "5", "6", "5, not 6."), ("The answer is 5 (not 6).", "5", "6", "5 (not 6)."),
    ("The answer is Bonn rather than Trier.", "Bonn", None, "Bonn rather than Trier."),
    ("The answer is 4.\nThe answer is not 4 but 6.", "6", "6", "not 4 but 6."),
    ("The answer is not **A**, but rather **B**.", "B", None, "not **A**, but rather **B**."),
    ("The answer is not obvious but let us try.", None, None, "not obvious but let us try."),
    ("The answer is:\n\n- 5 apples", "5 apples", "5", "5 apples"), ("Answer:\n• **5**", "5", "5", "5"),
    ("The answer is -5", "-5", "-5", "-5"), ("Answer:\n-5", "-5", "-5", "-5"),
    ('{"answer": 5}', "5", "5", '{"answer": 5}'),
    ('{"answer": -1.5, "b": "c"}', "-1.5", "-1.5", '{"answer": -1.5, "b": "c"}'),
    ("答案是：42。", "42", "42", "答案是：42。"), ("所以答案是 42。谢谢。", "42", "42", "所以答案是 42。谢谢。"),
    ("The answer is therefore 7.", "7", "7", "therefore 7."),
    ("The answer is as follows: 12 km", "12 km", "12", "as follows: 12 km"),
    ("the answer is not 5", None, "5", "not 5"),
    ("Is it that the answer is 5?", None, "5", "Is it that the answer is 5?"),
    ("The answer is 5. That is wrong.", None, "5", "5. That is wrong."),
    ("Answer: 12 (because 3*4=12)", "12", "12", "12 (because 3*4=12)"),
    ("The answer is 10 since 5*2 = 10", "10", "10", "10 since 5*2 = 10"),
    ("Answer: 3.5. Then", "3.5", "3.5", "3.5. Then"), ('The answer is "yes".', "yes", None, '"yes".'),
    ("The answer is 4. No, the answer is 5.\nDone.", "5", "5", "Done."),
    ("The correct option is (B).", "(B)", None, "The correct option is (B)."),
    ("So $\\boxed{12}$ for 3.", "12", "3", "12"), ("\\boxed{12}\n\nDone in 3 steps.", "12", "3", "Done in 3 steps."),
    ("1. Add\n2. Divide\n> *So 8*\n---\n\n", None, "8", "So 8"), ("Yes\r\n\r\n", None, None, "Yes"),
    ("</answer>\n```", None, None, None), ("", None, None, None), (" \n ", None, None, None),
)  # fmt: skip


class TestReading:
    @pytest.mark.parametrize(("text", "stated", "number", "line"), TEXTS)
    def test_of_answers_without_a_box(self, text, stated, number, line):
        rules = map(answer_rule, ("answer-is", "last-number", "last-line"))
        assert [rule.answer(text) for rule in rules] == [stated, number, line]

    @pytest.mark.parametrize(
        ("pattern", "text", "answer"),
        [
            (r"A: (\d+)", "A: 4, A: 5, A: x", "5"), (r"A: \d+", "A: 4", "A: 4"),
            (r"A: (\d+)|B: (\d+)", "A: 1 B: 2", "2"),
            (r"(\w+)=(?P<answer>\d+)", "x=4 y=5", "5"), (r"A:(.*)", "A: 4\nA:  \n", "4"), (r"A: (\d+)", "no", None),
            (r"A: (\d+)", "A: 3 <think>A: 4</think>", "3"), (r"(?s)<a>(.*?)</a>", "<a>1\n2</a>", "1\n2"),
            (r"^A: (.+)$", "so\nA: 4", None), (r"(?m)^A: (.+)$", "so\nA: 4\nend", "4"), (r"(?i)a: (\d+)", "A: 4", "4"),
            (r"是(\d+)", "答案是42。", "42"), (r"(?=A)", "A", None),
        ],
    )  # fmt: skip
    def test_by_an_expression(self, pattern, text, answer):
        assert answer_rule(make_spec("regex", {"pattern": pattern})).answer(text) == answer

    @pytest.mark.parametrize("spec", NAMED)
    def test_nothing_but_a_box_is_final(self, spec):
        """However the text is cut into steps, none of them ends the trajectory."""
        rule = answer_rule(spec)
        for text in ("The answer is 12.\n\n12\nA: 12", "#### 125", "It is 3/4\n"):
            for pieces in cuts(text):
                reading = None
                for piece in pieces:
                    reading = rule.read(piece, reading)
                    assert not reading.is_final
        is_final = rule.read("\\boxed{5} so", None).is_final
        assert is_final == (spec == "answer-is")
        assert not read_in(list("The answer is 5")).is_final

    @pytest.mark.parametrize("spec", NAMED)
    @pytest.mark.parametrize(
        "steps", [("The answer is 1", "25.\n\nA: 1", "25."), ("The answer is 1\n", "2\n\n", "A: 125")]
    )
    def test_a_trajectory_goes_on_until_the_model_ends_it(self, spec, steps):
        answer, finished, depth = ends(answer_rule(spec), *steps)
        assert (finished, depth) == ("eos", 3)
        assert answer is not None

    @pytest.mark.parametrize(
        ("spec", "text", "answer"),
        [
            ("answer-is", "The answer is 12", None), ("answer-is", "The answer is 12.", None),
            ("answer-is", "The answer is 12. S", "12"), ("answer-is", "The answer is 12\n", "12"),
            ("answer-is", "The answer is 4.\nNo, the answer is 12", "4"), ("answer-is", "The answer is St. Lou", None),
            ("answer-is", "\\boxed{4} so the answer is 12", "4"), ("answer-is", "The answer is \\boxed 1", None),
            (r"regex?pattern=A: (\d+)", "A: 12", None), (r"regex?pattern=A: (\d+)", "A: 12 ", "12"),
            (r"regex?pattern=A: (\d+)", "A: 4 A: 12", "4"), ("exact-match", "Answer: Bad Hom", None),
            ("exact-match", "Answer: Bonn\nso", "Bonn"), ("multiple-choice", "The answer is B", None),
            ("multiple-choice", "The answer is B because", "B"), ("multiple-choice", "The answer is B.\n\n", "B"),
            ("boxed", "\\boxed 1", None), ("boxed", "\\boxed 1 so", "1"), ("boxed", "\\boxed{1}", "1"),
            ("last-number", "It is 12\n", None), ("last-line", "It is 12\n", None), ("whole-text", "It is 12\n", None),
            ("code", "```python\ndef f(): return 1", "def f(): return 1"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("finished", ["max_tokens", "max_steps"])
    def test_a_text_that_was_cut_off_states_no_half_of_an_answer(self, spec, text, answer, finished):
        trajectory = Trajectory(motes.Problem("?")).extend(Step(text, "length"), finished)
        assert answer_of(trajectory, answer_rule(spec)) == answer
        assert (
            answer_of(trajectory, answer_rule(f"math?rule={spec}" if "?" not in spec else with_rule("math", spec)))
            == answer
        )

    def test_a_rule_of_ones_own_reads_texts_that_were_cut_off(self):
        class Last:
            def answer(self, text: str) -> str | None:
                return text.split()[-1]

            def equivalent(self, first: str, second: str) -> bool:
                return first == second

        trajectory = Trajectory(motes.Problem("?")).extend(Step("It is 12", "length"), "max_tokens")
        assert answer_of(trajectory, Last()) == "12"

    @pytest.mark.parametrize("name", ["answer-is", "last-number", "last-line", "exact-match", "multiple-choice"])
    @pytest.mark.parametrize(
        "unit",
        [
            "so ", "The answer is ", "answer\n", "\n", "#### ", "#### 1\n", "1", "**", "$$", "\\[", " ", ". ", "St. ",
            "the answer is not 5. ", "is ", "答案", "> ", "_", "because ", "</think>", "1 1/", "1,",
            "answer to the ", "answer:\n- ", "the answer is about ", "the answer is not 5 but ", "½", "answer: 5}",
        ],
    )  # fmt: skip
    def test_a_text_of_many_characters_does_not_take_for_ever(self, name, unit):
        """With a search that is quadratic, each of these would take minutes."""
        rule = answer_rule(name)
        text = unit * (300_000 // len(unit))
        answer = rule.answer(text)
        rule.answer_when_cut(text)  # type: ignore[attr-defined]
        assert rule.equivalent(text, answer or "x") in (True, False)

    @pytest.mark.parametrize("name", ["answer-is", "last-line"])
    @pytest.mark.parametrize("unit", ["The answer is ", "the answer is not 5. ", "so\n", "---\n", "Answer: x\n"])
    def test_the_cost_grows_with_the_text(self, name, unit):
        rule = answer_rule(name)
        lines = [num_lines_run(lambda n=n: rule.answer(unit * n)) for n in (100, 200)]
        assert lines[1] <= 2.2 * lines[0]


SAME = (
    ("1,000", "1000.0", True), ("1,000", "$1,000", True), ("1000", "1000 dollars", True), ("1 000", "1000", True),
    ("1/2", "0.5", True), ("\\frac12", "0,5", True), ("5 km", "5", True), ("50 %", "50", True), ("-5", "−5", True),
    ("Paris", "paris.", True), ("**Paris**", "\\text{Paris}", True), ("  a  b ", "A b", True), ("x = 5", "5", True),
    ("The answer is 42", "42", True), ("\\boxed{42}", "42", True), ("(B)", "B", True), ("$12$", "12", True),
    ("42。", "42", True), ("5\\ \\text{km/h}", "5", True), ("90°", "90", True), ("2½", "2.5", True),
    ("\\frac{-1}{2}", "-0.5", True), ("१,०००", "1000", True),
    ("Rs. 5", "5", True), ("巴黎。", "巴黎", True), ("٣٫٥", "3.5", True), ("٥٠٪", "50", True),
    ("(0, 1)", "[0, 1]", False), ("5 or 6", "5", False), ("5 million", "5", False), ("5 pm", "5 am", False),
    ("2x+3", "3+2x", False), ("B", "C", False), ("5", "-5", False), ("1,000", "1", False), ("10²", "102", False),
    ("1" * 500, "1" * 501, False), ("9^99999", "9", False), ("a" * 5000, "a" * 5001, False),
)  # fmt: skip


class TestSameness:
    @pytest.mark.parametrize(("first", "second", "same"), SAME)
    @pytest.mark.parametrize("spec", NAMED)
    def test_of_numbers_and_words(self, spec, first, second, same):
        rule = answer_rule(spec)
        same = same or (spec == "last-number" and first in ("5 million", "5 pm"))  # whose words never count
        assert rule.equivalent(first, second) is rule.equivalent(second, first) is same
        form = canonical_form(rule)
        assert form is not None, "so that a vote of N answers needs N forms"
        assert (form(first) == form(second)) is same

    def test_the_only_number_of_a_reference_counts(self):
        rule = answer_rule("last-number")
        assert rule.matches("12 pens are left", "12")
        assert rule.matches("#### 12", "12.0")
        assert not rule.matches("3 boxes of 4 pens", "4")

    def test_a_vote_joins_equal_answers(self):
        texts = {"It is 1,000.": 0.4, "It is 1000.0!": 0.3, "It is 999": 0.3}
        result = motes.solve(
            "?", lm=motes.TabularLanguageModel({(): texts}), reward=None, method=motes.Majority(64), rule="last-number"
        )
        assert sorted(result.posterior) == sorted({result.answer, "999"})
        assert result.posterior[result.answer] > 0.5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[patterns.Searchers]:
    """Searches may take a tenth of a second."""
    pool = patterns.Searchers(1, (*patterns.WORKER[:-1], "0.1"))
    monkeypatch.setattr(patterns, "_shared", lambda: pool)
    yield pool
    pool.close()


class TestExpressions:
    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ("lastnumber", "unknown answer rule 'lastnumber': did you mean 'last-number'"),
            ("regex", "needs a pattern"), ("regex?pattern=(", "not a regular expression"),
            (r"regex?pattern=(\d*)", "matches empty text"), ("regex?pattern=a|", "matches empty text"),
            ("regex?pattern=" + "a" * 5000, "at most 4,000 characters"), ("regex?pattern=" + "(" * 3000, "not a reg"),
            ("regex?patern=a", "did you mean 'pattern'"), ("last-number?pattern=a", "unknown option"),
            ("regex?pattern=a&b", "has no value"), ("regex?pattern=a&b=c", "unknown option of a task 'b'"),
            ("regex?pattern=a{99999999999}", "not a regular expression"),
        ],
    )  # fmt: skip
    def test_that_cannot_work_are_refused(self, spec, says):
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            api.answer_rule(spec)

    @pytest.mark.parametrize(
        "pattern", [r"(\d+)", r"a?b=c", "a & b", "100%", "%41", " x ", r"\+?(\d)", "a#b", "a;b", "ü", "a|b", "x\ny"]
    )
    def test_stand_in_a_spec(self, pattern):
        spec = make_spec("regex", {"pattern": pattern})
        assert api.answer_rule(spec).pattern == pattern
        assert split_rule(with_rule("p.jsonl?question=q", spec)) == ("p.jsonl?question=q", spec)
        assert api.answer_rule(with_rule("boxed", spec)).reader.pattern == pattern  # type: ignore[attr-defined]

    def test_a_plus_sign_is_one(self):
        assert parse_options("a=1+2&b=%26%25") == {"a": "1+2", "b": "&%"}
        assert api.answer_rule(r"regex?pattern=(\d+)").answer("12 of 345") == "345"

    @pytest.mark.usefixtures("impatient")
    def test_a_search_that_takes_for_ever_is_ended(self):
        rule = answer_rule("regex?pattern=(a+)+b")
        with pytest.raises(GraderTimeoutError, match="takes too long on a text of 60 characters: avoid repetitions"):
            rule.answer("a" * 60)
        assert rule.answer("aaab") == "aaa", "and another process searches on"

    @pytest.mark.usefixtures("impatient")
    def test_the_end_of_a_text_is_searched_where_all_of_it_takes_too_long(self):
        rule = answer_rule(r"regex?pattern=(?s)(?:A: (\d+)|<.*>)")
        assert rule.answer("A: 3 " + "<" * 200_000 + " " * patterns.TAIL + "A: 4") == "4"

    def test_a_process_that_was_killed_is_replaced(self, impatient):
        rule = answer_rule(r"regex?pattern=(\d)")
        assert rule.answer("4") == "4"
        for process in impatient.processes.copy():
            process._process.kill()
        assert rule.answer("5") == "5"

    @pytest.mark.usefixtures("impatient")
    def test_a_run_says_why_it_failed(self):
        with pytest.raises(GraderTimeoutError, match="takes too long") as caught:
            motes.solve("?", lm=says("a" * 60), reward=None, method=motes.Majority(1), rule="regex?pattern=(a+)+b")
        assert caught.value.result.records, "what was generated is kept"


class TestQuick:
    @pytest.mark.parametrize(
        ("spec", "quick"),
        [
            ("boxed", True), ("answer-is", True), ("last-number", True), ("last-line", True),
            ("regex?pattern=a", False), ("boxed?rule=last-number", True),
            ("math?rule=last-number", False), ("boxed?rule=regex&pattern=a", False),
        ],
    )  # fmt: skip
    def test_only_rules_that_wait_for_nothing_stay_on_the_event_loop(self, spec, quick):
        trajectory = Trajectory(motes.Problem("?")).extend(Step("12", "eos"))
        assert is_quick(answer_rule(spec), [trajectory]) is quick


class TestSpecs:
    @pytest.mark.parametrize("name", RULES)
    def test_every_name_is_a_rule(self, name):
        rule = motes.answer_rule(name.replace("…", "a"))
        assert rule.equivalent("x", "x")
        assert name.partition("?")[0] in DECLARED

    def test_a_task_is_read_by_another_rule(self, tmp_path):
        path = tmp_path / "p.jsonl"
        path.write_text('{"question": "?", "answer": "1/2", "id": "a", "level": 2}\n{"question": "!", "answer": "5"}\n')
        for spec in (f"{path}?rule=last-number", f"math:{path}?rule=last-number", with_rule(str(path), "last-number")):
            made = api.task(spec)
            assert isinstance(made, Task)
            first, second = made.problems()
            assert made.problems(limit=1) == [first]
            assert (made.name, made.answer("So it is 0.5."), made.answer("\\boxed{x}")) == ("p", "0.5", None)
            assert made.grade(first, "0.5")
            assert made.grade(first, "\\frac{2}{4}"), "by Math-Verify"
            assert not made.grade(second, "6")
            traits = TaskTraits(made)
            assert traits.level is not None
            assert (traits.level(first), traits.check_step) == (2, None)
            assert AnswerRuleTraits(made).needs_end

    def test_a_file_is_read_and_graded_by_a_rule(self, tmp_path):
        path = tmp_path / "p.jsonl"
        path.write_text('{"question": "?", "answer": "12 pens"}\n')
        made = task(f"last-number:{path}")
        (problem,) = made.problems()
        assert made.grade(problem, made.answer("She has 3 and then 12.") or "")
        made = task(rf"regex:{path}?pattern=has (\d+)")
        assert made.grade(problem, made.answer("She has 12 pens.") or "")

    def test_the_bundled_task_and_ones_own(self):
        made = api.task("arithmetic?rule=answer-is")
        problem = made.problems()[0]
        assert made.grade(problem, made.answer(f"The answer is {problem.answer}.") or "")
        assert made.check_step(problem, "The answer is \\boxed{0}.") is False  # type: ignore[attr-defined]
        own = api.task("worlds:Evens?rule=last-number")
        assert (own.name, own.answer("4 it is")) == ("evens", "4")
        assert own.grade(own.problems()[0], "4")
        assert api.answer_rule("boxed?rule=test_no_answer:LastWord").answer("It is 4.") == "4."

    @pytest.mark.parametrize(
        ("spec", "parts"),
        [
            ("p.jsonl", ("p.jsonl", None)), ("p.jsonl?answer=a", ("p.jsonl?answer=a", None)),
            ("p.jsonl?rule=last-line&answer=a", ("p.jsonl?answer=a", "last-line")),
            ("p.jsonl?rule=regex&pattern=a=b?c", ("p.jsonl", "regex?pattern=a=b?c")),
            ("p.jsonl?rule=regex?pattern=a", ("p.jsonl", "regex?pattern=a")),
            ("regex:p.jsonl?pattern=a&rule=last-line", ("regex:p.jsonl?pattern=a", "last-line")),
            ("m:T?x=1&rule=m:R", ("m:T?x=1", "m:R")),
        ],
    )  # fmt: skip
    def test_a_rule_within_the_spec_of_a_task(self, spec, parts):
        assert split_rule(spec) == parts
        assert split_rule(with_rule(*parts)) == parts

    def test_two_expressions_do_not_mix(self):
        spec = with_rule("regex:p.jsonl?pattern=a", "regex?pattern=b%26x")
        assert split_rule(spec) == ("regex:p.jsonl?pattern=a", "regex?pattern=b%26x")

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ("p.jsonl?rule=last-numbr", "did you mean 'last-number'"), ("p.jsonl?rule=", "has no value"),
            ("p.jsonl?rule=regex", "needs a pattern"), ("math?rule=last-number&x=1", "unknown option"),
        ],
    )  # fmt: skip
    def test_what_names_no_rule(self, spec, says):
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            api.answer_rule(spec)

    def test_one_rule_is_enough(self):
        with pytest.raises(ConfigurationError, match="give one rule"):
            with_rule("p.jsonl?rule=last-line", "last-number")

    def test_code_that_only_a_directory_names_is_refused(self, tmp_path):
        path = tmp_path / "p.jsonl"
        path.write_text('{"question": "?", "answer": "1"}\n')
        for spec in (f"{path}?rule=worlds:Evens", f"{path}?rule=worlds:Evens?x=1"):
            with pytest.raises(ConfigurationError, match="is code, and only the directory names it"):
                api.task(spec, run_code=False)
        assert api.task(f"{path}?rule=last-line", run_code=False).answer("4") == "4"
        with pytest.raises(ConfigurationError, match="revision"):
            api.task("gsm8k?revision=main&rule=last-line", run_code=False)

    def test_a_recorded_task_has_the_identity_of_its_own_code(self, tmp_path):
        call = Call.begin(
            Evaluation(task="worlds:Evens?rule=last-number", reward=None),
            Setup({}, {}, {}),
            command=None,
            runs_before=0,
        )
        assert call.task["source"] == identity.of_code(worlds.Evens)["source"]


class TestDoors:
    TEXT = "Adding 3 and 4.\n\nSo it is 7"
    LM = motes.TabularLanguageModel({(): {TEXT: 1.0}})

    @pytest.mark.parametrize(
        ("options", "answer"),
        [
            ({"rule": "last-number"}, "7"), ({"task": "last-line"}, "So it is 7"), ({"rule": BoxedAnswers()}, None),
            ({"task": "math", "rule": r"regex?pattern=is (\d)"}, "7"),
            ({"task": ExactMatch(), "rule": "last-line"}, "So it is 7"),
            ({}, None), ({"task": "math?rule=last-number"}, "7"),
        ],
    )  # fmt: skip
    def test_solve(self, options, answer):
        result = motes.solve("?", lm=self.LM, reward=None, method=motes.Majority(2), **options)
        assert result.answer == answer

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"rule": 5}, "rule must be 'math' or another AnswerRule"), ({"task": BoxedAnswers}, "task must be"),
            ({"rule": "last-numbr"}, "did you mean 'last-number'"), ({"task": "math-5000"}, "did you mean 'math-500'"),
        ],
    )  # fmt: skip
    def test_solve_refuses_what_is_no_rule(self, options, says):
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            motes.solve("?", lm=self.LM, reward=None, method=motes.Majority(1), **options)

    def test_code_that_a_name_stands_for_runs_beside_the_event_loop(self):
        OPENED_IN.clear()
        motes.solve("?", lm=self.LM, reward=None, method=motes.Majority(1), rule="test_rules:noted")
        assert OPENED_IN[0] is not threading.main_thread()

    def test_the_task_compares_and_the_rule_reads(self):
        lm = motes.TabularLanguageModel({(): {"It is 1/2": 0.5, "It is 0.5": 0.5}})
        for base, number in (("exact-match", 2), ("math", 1)):
            result = motes.solve("?", lm=lm, reward=None, method=motes.Majority(32), task=base, rule="last-number")
            assert len(result.posterior) == number

    def test_on_the_command_line(self, capsys: Any, tmp_path: Path):
        model = ["--model", "test_rules:TALKS", "--reward", "none", "--method", "majority", "-n", "2", "--json"]
        assert main(["solve", "?", *model, "--rule", r"regex?pattern=is (\d+)"]) == 0
        reply = json.loads(capsys.readouterr().out)
        assert (reply["answer"], reply["rule"], reply["task"]) == ("7", r"regex?pattern=is (\d+)", None)
        assert main(["solve", "?", *model, "--rule", "last-numbr"]) == 2
        assert "did you mean 'last-number'" in capsys.readouterr().err
        path = tmp_path / "p.jsonl"
        path.write_text('{"question": "?", "answer": "7"}\n{"question": "!", "answer": "8"}\n')
        words = ["--model", "test_rules:TALKS", "--reward", "none", "--methods", "majority", "--budgets", "2"]
        for number, spec in enumerate(([str(path), "--rule", "last-number"], [f"last-number:{path}"])):
            out = tmp_path / f"out{number}"
            assert main(["eval", "--task", *spec, *words, "--out", str(out)]) == 0
            records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
            assert sorted((r["answer"], r["outcome"]) for r in records) == [("7", "correct"), ("7", "wrong")]
            assert main(["eval", "--task", *spec, *words, "--out", str(out)]) == 0, "which is resumed"
            assert main(["grade", str(out)]) == 0
        assert json.loads((tmp_path / "out0/config.json").read_text())["task"] == f"{path}?rule=last-number"
        assert main(["eval", "--task", str(path), *words, "--out", str(tmp_path / "out0")]) == 2
        assert "another configuration" in capsys.readouterr().err

    def test_in_the_gateways_file(self):
        def settings(**rules: str) -> Any:
            table = {"models": {"m": {"lm": "tiny", "method": "majority", **rules}}}
            return Config.model_validate(table).models["m"]

        def rule(**rules: str) -> Any:
            return settings(**rules).answer_rule()

        assert rule() is None
        assert rule(rule="last-number").answer(self.TEXT) == "7"
        assert rule(task="last-line").answer(self.TEXT) == "So it is 7"
        both = rule(task="multiple-choice", rule=r"regex?pattern=is (\w)")
        assert (both.answer(self.TEXT), both.equivalent("(B)", "B")) == ("7", True)
        for wrong in ({"rule": "regex?pattern=("}, {"rule": "last-numbr"}, {"task": "regex"}):
            with pytest.raises(ValueError, match=r"regular expression|did you mean|needs a pattern"):
                settings(**wrong)

    def test_completions_list_the_rules(self, capsys: Any):
        assert main(["help", "eval"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        for name in ("answer-is", "last-number", "last-line", "regex?pattern=", "whole-text"):
            assert name in shown

    def test_what_to_do_about_no_answer_names_a_rule_that_exists(self, capsys: Any):
        model = ["--model", "test_rules:TALKS", "--reward", "none", "--method", "majority", "-n", "2"]
        assert main(["solve", "?", *model]) == 0
        suggested = re.search(r"--rule ([\w-]+)", " ".join(capsys.readouterr().out.split()))
        assert suggested is not None
        assert answer_rule(suggested[1]).answer(self.TEXT) == "7"


TALKS = TestDoors.LM
OPENED_IN: list[threading.Thread] = []


def noted() -> BoxedAnswers:
    """A rule of one's own, which takes its time to be made."""
    sys.modules["test_rules"].OPENED_IN.append(threading.current_thread())
    return BoxedAnswers()


def test_the_table_of_the_page_says_what_is_read():
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- rules: read -->") :].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    (_, *texts), _, *readings = [[cell.replace("\\|", "|") for cell in row] for row in rows]
    assert len(texts) == 5
    for spec, *answers in readings:
        rule = answer_rule(spec)
        told = [answer.replace("\\n", "\n") or None for answer in answers]
        assert [rule.answer(text.replace("\\n", "\n")) for text in texts] == told, spec
    named = {spec.partition("?")[0] for spec, *_ in readings}
    assert named == {name.partition("?")[0] for name in RULES} - {"math", "code"}


def test_the_page_describes_every_rule():
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    for name in RULES:
        assert f"`{name}`" in text


def test_choices_of_a_text_that_was_cut_off_do_not_cost_more_with_its_length():
    assert num_lines_run(lambda: Choices().answer_when_cut("so on. " * 10_000 + "The answer is B")) < 30_000


@pytest.mark.skipif(sys.platform == "win32", reason="the limit of processor time is the system's")
def test_a_text_of_a_megabyte_is_searched():
    assert answer_rule(r"regex?pattern=A: (\d+)").answer("so on " * 200_000 + "A: 5") == "5"


def test_an_unknown_rule_is_an_unknown_name():
    with pytest.raises(UnknownNameError):
        motes.answer_rule("last-word")
