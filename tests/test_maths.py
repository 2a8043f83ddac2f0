"""Mathematical answers: what is right, what is the same, and a grader whose processes may hang, die and be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from motes import Problem, Sampling, Step, TabularLanguageModel, Trajectory
from motes.errors import ConfigurationError, GraderError, GraderTimeoutError, MissingExtraError
from motes.methods import Population, Run, conclude
from motes.smc import Weights
from motes.tasks import BoxedAnswers, MathAnswers
from motes.tasks.maths import Grader
from motes.tasks.maths.workers import WORKER
from motes.tasks.numbers import number, plain, tidied

DATA = Path(__file__).parents[2] / "shared" / "data"
FAKE = (sys.executable, str(Path(__file__).with_name("fake_grader.py")))

SAME = (
    ("\\frac{1}{2}", "0.5", "1/2", ".5", "$\\dfrac{1}{2}$", "\\frac12", "x = \\frac{1}{2}", "\\frac{2}{4}"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", "(3, \\pi/2)", "(3, 0.5\\pi)"),
    ("3\\sqrt{13}", "3 \\sqrt{13}", "\\sqrt{117}"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", "\\dfrac{\\sqrt 3}{3}"),
    ("p - q", "-q + p"),
    ("x^2 + 2x + 1", "(x+1)^2", "1 + 2x + x^2"),
    ("6 - 5i", "-5i + 6"),
    ("1, -2", "-2, 1", "\\{1, -2\\}"),
    ("11,\\!111,\\!100", "11111100", "11,111,100"),
    ("\\text{Evelyn}", "Evelyn"),
    ("90^\\circ", "90"),
    ("x \\in [-2,7]", "[-2, 7]"),
    ("\\begin{pmatrix} -1/3 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} -\\frac{1}{3} \\\\ 2 \\end{pmatrix}"),
    ("1\\frac{4}{5}", "\\frac{9}{5}", "1.8"),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(3,\\infty)\\cup(-\\infty,2)"),
)
"""Answers in several forms, the reference's first. No two groups mean the same."""


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader(timeout=60)
    yield grader
    grader.close()


@pytest.fixture
def fake() -> Iterator[Grader]:
    grader = Grader(timeout=60, command=FAKE)
    yield grader
    grader.close()


@pytest.fixture
def hasty() -> Iterator[Grader]:
    grader = Grader(timeout=0.1, command=FAKE)
    yield grader
    grader.close()


def references(file: str) -> list[str]:
    path = DATA / file
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]


class TestRight:
    @pytest.mark.parametrize(("file", "count"), [("math500.jsonl", 500), ("aime2024.jsonl", 30)])
    def test_every_reference_is_right_against_itself(self, grader, file, count):
        answers = references(file)
        assert len(answers) == count
        rule = MathAnswers(grader)
        assert [answer for answer in answers if not rule.matches(answer, answer)] == []
        assert [answer for answer in answers if not grader.verify(answer, answer)] == [], "by Math-Verify itself"
        assert [
            answer for answer in answers if rule.answer(f"So \\boxed{{1}}, no: \\boxed{{{answer}}}.") != answer
        ] == []

    def test_leading_zeros_do_not_matter(self, grader):
        rule = MathAnswers(grader)
        assert all(rule.matches(answer, str(int(answer))) for answer in references("aime2024.jsonl"))

    @pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
    def test_other_forms_are_right(self, grader, forms):
        assert [form for form in forms if not MathAnswers(grader).matches(forms[0], form)] == []

    def test_what_means_something_else_is_wrong(self, grader):
        rule = MathAnswers(grader)
        taken = [(a[0], b[0]) for a in SAME for b in SAME if a is not b and rule.matches(a[0], b[0])]
        assert taken == []

    @pytest.mark.parametrize(
        ("reference", "answer"),
        [
            ("204", "205"), ("\\frac{1}{2}", "\\frac{1}{3}"), ("3\\sqrt{13}", "\\sqrt{13}"), ("p - q", "q - p"),
            ("6 - 5i", "6 + 5i"), ("(1,2)", "(2,1)"), ("[-2,7]", "[-2,7)"), ("1 1/2", "11/2"), ("\\text{even}", "odd"),
            ("1\\frac{4}{5}", "14/5"), ("5", "I do not know"), ("5", "\\frac{"), ("2^{10}", "1023"),
        ],
    )  # fmt: skip
    def test_wrong_answers(self, grader, reference, answer):
        assert MathAnswers(grader).matches(reference, answer) is False

    def test_the_reference_comes_first(self, grader):
        rule = MathAnswers(grader)
        assert rule.matches("1 < x < 2", "(1, 2)")
        assert not rule.matches("(1, 2)", "1 < x < 2")

    def test_plain_answers_need_no_worker(self, fake):
        rule = MathAnswers(fake)
        assert rule.matches("204", "$204.0$")
        assert rule.matches("\\frac{1}{2}", "0.5")
        assert rule.matches("x + 1", "x+1")
        assert not rule.matches("204", "1,204")
        assert fake.num_requests == 0

    def test_without_math_verify_the_extra_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"motes\[math\]"):
            MathAnswers()


class TestSame:
    def test_forms_have_one_name_and_no_two_meanings_share_it(self, grader):
        rule = MathAnswers(grader)
        names = [{rule.canonical(form) for form in forms} for forms in SAME]
        assert [found for found in names if len(found) != 1] == []
        assert len(set.union(*names)) == len(SAME)

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            ("5x - 7y = 0", "10x - 14y = 0", True), ("5x - 7y = 0", "5x + 7y = 0", False),
            ("x < 5", "5 > x", True), ("x < 5", "x \\le 5", False), ("x < 5", "x > 5", False),
            ("(\\sqrt{2}+1)(\\sqrt{2}-1)", "1", True), ("\\sqrt{2}", "1.41421356", False),
            ("1/3", "0.333333", False), ("2^{100}", "1267650600228229401496703205376", True),
            ("2^{100}", "1267650600228229401496703205377", False), ("\\text{no solution}", "No solution", True),
            ("f(x)", "f(y)", False),
        ],
    )  # fmt: skip
    def test_equivalence(self, grader, first, second, same):
        rule = MathAnswers(grader)
        assert rule.equivalent(first, second) is rule.equivalent(second, first) is same

    def test_what_cannot_be_named_in_time_is_the_same_as_itself_only(self, hasty):
        rule = MathAnswers(hasty)
        assert rule.equivalent("hang 1", "hang  1")
        assert not rule.equivalent("hang 1", "hang 2")

    def test_a_vote_asks_at_most_once_for_each_different_answer(self, grader):
        asked = grader.num_requests
        halves = ["1/2", "0.5", "\\frac{1}{2}", "\\sqrt{\\frac{1}{4}}"] * 8  # the last form alone is no plain number
        roots = ["\\sqrt{12}", "2\\sqrt{3}"] * 16
        result = vote(MathAnswers(grader), halves + roots)
        assert dict(result.posterior) == pytest.approx({"1/2": 0.5, "\\sqrt{12}": 0.5})
        assert grader.num_requests - asked <= 3


def vote(rule: MathAnswers, answers: list[str]):
    trajectories = tuple(Trajectory(Problem("?")).extend(Step(f"\\boxed{{{answer}}}", "eos")) for answer in answers)
    population = Population(trajectories, ((0.5,),) * len(answers), np.ones(len(answers), dtype=bool))
    lm = TabularLanguageModel({(): {"a": 1.0}})
    run = Run(Problem("?"), lm, None, rule, Sampling(), np.random.default_rng(0))
    return asyncio.run(conclude(run, population, Weights.uniform(len(answers)), "vote"))


NUMBERS = {
    "3,125": 3125, "3{,}125": 3125, r"3\,125": 3125, r"3,\!125": 3125, "3~125": 3125, r"10\ 000": 10000,
    "1\u00a0234": 1234, "1,234,567.5": Fraction("1234567.5"), r"\$3{,}125.50": Fraction("3125.5"), "$3125.0$": 3125,
    "-1,200": -1200, "−5": -5, "- 5": -5, "+5": 5, "05": 5, "5.": 5, "5 .": 5, ".5": Fraction(1, 2), "٥": 5, "５": 5,
    "3 / 4": Fraction(3, 4), "½": Fraction(1, 2), r"-\dfrac{1}{2}": Fraction(-1, 2), "**5**": 5,
    "€18.90": Fraction("18.9"), "₹50": 50, "–5": -5, "1⁄2": Fraction(1, 2), "5,": 5, "5\\\\": 5, "10\\ ": 10,
    r"\textbf{5}": 5, r"\mathrm{-5}": -5, "{5}": 5, r"\textcolor{red}{5}": 5, r"\color{red}5": 5,
    r"\text{The answer is } 5": 5, "ANSWER: 5": 5, "\u200b5": 5,
    "3, 125": None, "2, 100": None, "-1, 200": None, "1 2": None, "100 200": None, "10 000": None, "0,123": None,
    "1,23": None, "1,2345": None, "1234,567": None, "1,234,5": None, "(1,234)": None, "1/0": None, "10²": None,
    "1½": None, "1 1/2": None, "x": None, "": None, "9" * 5000: None,
}  # fmt: skip
"""Answers, and the numbers that they are."""

LISTS = (
    ("100, 200", "200, 100", True), ("120, 180, 240", "240, 180, 120", True), ("-1, 200", "200, -1", True),
    ("1,000, 2,000", "2000, 1000", True), ("12, 345", "x = 12, x = 345", True), ("3; 125", "125, 3", True),
    ("1, 2, 3", "1 2 3", True), (r"\{1,2\}", r"\lbrace 2, 1\rbrace", True), ("(1,234)", "(1, 234)", True),
    ("3,125", "3125", True), ("1234", r"1\,234", True), ("x = 1{,}234", "1234", True), ("3/2", "1 1/2", True),
    ("3/2", "1½", True), ("100", "10²", True), ("90", "90°", True), (r"\sqrt{2}", "√2", True),
    ("3125", "3, 125", False), ("3, 125", "3,125", False), ("2100", "2, 100", False), ("2, 100", "2100", False),
    ("-1200", "-1, 200", False), ("12", "1 2", False), ("3", "1 2", False), ("100200", "100 200", False),
    ("0", "10 000", False), ("1000", "1,000, 2,000", False), ("(1,234)", "1234", False), ("(1,2)", "(2,1)", False),
    ("100200", r"100\text{ and }200", False), ("100, 200", "200 and 100", True), ("100, 200", "100 or 200", True),
    ("100000", "1e5", True), ("0.0015", "1.5e-3", True), ("30", "30°C", True), ("30", r"30\degree", True),
    ("30", "50°C", False), (r"\emptyset", r"\varnothing", True), (r"\emptyset", "∅", True), (r"\emptyset", "0", False),
    (r"(-\infty,1)\cup(2,\infty)", "(-∞, 1) U (2, ∞)", True), ("[1,2]", "[1, 3]", False),
    ("123", "0,123", False), ("102", "10²", False), ("11/2", "1½", False),
    ("1/3", r"0.\overline{3}", True), (r"\frac{1}{7}", r"0.\overline{142857}", True), ("1/6", r"0.1\overline{6}", True),
    (r"0.\overline{3}", "0.3", False), (r"0.\overline{9}", "1", True), ("50", "50 USD", True),
    ("50", r"50\text{ EUR}", True),
    ("50", "$50 USD$", True), ("50", "50 USDA", False), ("50", "51 USD", False), ("10", "10cm²", True),
    ("10", "10 in^3", True),
    (r"10\text{ cm}^2", "10 cm²", True), (r"2\pi", "2 pi", True), (r"\frac{\pi}{2}", "pi/2", True),
    ("pi", "3.14", False),
    ("5", "5m^2", False),
)  # fmt: skip
"""A reference, an answer, and whether it is right."""

CASES = (
    r"f(x)=\begin{cases} x & x>0 \\ 0 & x \le 0 \end{cases}",
    r"\left\{\begin{array}{ll} 0, & \text{if } x\le 0 \\ x, & \text{if } x>0 \end{array}\right.",
)


class TestNumbersAndLists:
    @pytest.mark.parametrize(("answer", "value"), NUMBERS.items(), ids=lambda value: str(value)[:20])
    def test_what_is_a_number(self, answer, value):
        assert number(tidied(answer)) == value

    @pytest.mark.parametrize(("reference", "answer", "right"), LISTS)
    def test_a_list_is_no_number(self, grader, reference, answer, right):
        assert MathAnswers(grader).matches(reference, answer) is right

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            ("2, 100", "2100", False), ("3, 125", "3125", False), ("1 2", "12", False), ("3, 125", "3,125", False),
            ("3,125", "3125", True), ("1, 2", "1,2", True), ("3 \\sqrt{13}", "3\\sqrt{13}", True), ("5.", "$5$", True),
        ],
    )  # fmt: skip
    def test_a_vote_tells_them_apart(self, grader, first, second, same):
        assert BoxedAnswers().equivalent(first, second) is MathAnswers(grader).equivalent(first, second) is same

    def test_what_stands_apart_does_not_grow_together(self):
        assert plain(r"x_1 2 \, y") == plain("$x_1  2y$.") == "x_1 2y" != plain("x_12y")

    def test_a_loop_is_named_by_its_text(self, fake):
        assert MathAnswers(fake).canonical("1+" * 3000 + "1") == "1+" * 3000 + "1"
        assert fake.num_requests == 0

    @pytest.mark.parametrize(
        "answer",
        ["1," * 5000 + "1", "\\frac{1}{" * 25 + "2" + "}" * 25, "\\left(" * 30 + "2" + "\\right)" * 30, "{" * 50],
        ids=["long", "fractions", "brackets", "open"],
    )
    def test_what_nobody_could_read_in_time_is_compared_as_text(self, fake, answer):
        rule = MathAnswers(fake)
        assert rule.matches(answer, answer)
        assert not rule.matches("x + 5", answer)
        assert not rule.matches(answer, "x + 5")
        assert rule.equivalent(answer, answer)
        assert not rule.equivalent(answer, answer + " x")
        assert fake.num_requests == 0

    def test_several_unknowns_are_told_apart(self, grader):
        rule = MathAnswers(grader)
        assert rule.equivalent("x = 5, y = 6", "y = 6, x = 5")
        assert not rule.equivalent("x = 5, y = 6", "x = 6, y = 5")
        assert rule.equivalent("x_1 = 5, x_2 = 6", "6, 5")
        assert rule.equivalent("x = 5, x = 6", "6, 5")

    def test_orders_of_a_list_share_a_vote(self, grader):
        assert MathAnswers(grader).equivalent("100, 200", "200, 100")

    def test_what_is_known_without_asking_is_what_math_verify_says(self, grader, fake):
        rule, forms = MathAnswers(fake), [*NUMBERS][:30]
        for reference in forms:
            for answer in forms:
                asked = fake.num_requests
                right = rule.matches(reference, answer)
                if fake.num_requests == asked:
                    assert right is grader.verify(tidied(reference), tidied(answer)), (reference, answer)

    def test_functions_in_cases_are_told_apart(self, grader):
        rule = MathAnswers(grader)
        assert rule.matches(*CASES)
        assert rule.equivalent(CASES[0], CASES[1].replace("0, &", "0 &"))
        other = CASES[0].replace("x & x>0", "x^2 & x>0")
        assert not rule.matches(CASES[0], other)
        assert not rule.equivalent(CASES[0], other)
        assert not rule.matches("0", CASES[0])
        assert not rule.matches(CASES[0], "0")
        assert not rule.matches(CASES[0], CASES[0].replace(r" \\ 0 & x \le 0", ""))

    def test_a_matrix_that_is_an_array(self, grader):
        array = r"\left(\begin{array}{c} 1 \\ 2 \end{array}\right)"
        assert MathAnswers(grader).matches(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", array)
        assert not MathAnswers(grader).matches(r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", array)


class TestProcesses:
    def test_a_pathological_answer_is_killed_and_the_next_one_graded(self):
        grader = Grader(timeout=1.0)
        assert grader.verify("\\sqrt{4}", "2")  # it is started
        with pytest.raises(GraderTimeoutError, match="within 1 second"):
            grader.verify("7", "10^{10^{10}}")
        assert grader.verify("\\sqrt{9}", "3")
        grader.close()

    def test_a_time_limit_is_remembered(self, hasty):
        for _ in range(3):
            with pytest.raises(GraderTimeoutError):
                hasty.verify("1", "hang")
        assert hasty.num_requests == 1
        assert hasty.verify("1", "1")

    def test_replies_are_remembered(self, fake):
        assert fake.canonical("pid 1") == fake.canonical("pid 1")
        assert fake.num_requests == 1

    def test_a_killed_worker_is_replaced(self, fake):
        first = fake.canonical("pid 1")
        assert fake.canonical("pid 2") == first, "it lives on"
        os.kill(int(first), signal.SIGKILL)
        assert fake.canonical("pid 3") not in (None, first)

    def test_an_answer_that_kills_workers_is_an_error(self, fake):
        with pytest.raises(GraderError, match="died of it"):
            fake.verify("1", "die")
        assert fake.verify("1", "1")

    def test_failures_are_errors_not_wrong_answers(self, fake):
        with pytest.raises(GraderError, match="ValueError: as told"):
            fake.verify("1", "fail")
        assert not fake.verify("1", "2")

    def test_what_does_not_start_says_so(self):
        with pytest.raises(GraderError, match="does not start"):
            Grader(command=(sys.executable, "-c", "")).verify("1", "2")
        with pytest.raises(GraderError, match="does not start"):
            Grader(command=("/nothing/like/this",)).verify("1", "2")

    def test_a_closed_grader_says_so(self, fake):
        fake.close()
        with pytest.raises(GraderError, match="closed"):
            fake.verify("1", "2")

    @pytest.mark.parametrize("options", [{"num_workers": 0}, {"timeout": 0.0}, {"timeout": float("nan")}])
    def test_settings_that_cannot_work(self, options):
        with pytest.raises(ConfigurationError):
            Grader(**options)

    def test_from_many_threads_as_from_one(self, grader):
        pairs = [(f"\\sqrt{{{n * n}}}", f"{m}") for n in range(6) for m in range(6)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda pair: Grader.verify(grader, *pair), pairs))
        assert found == [grader.verify(*pair) for pair in pairs] == [n == m for n in range(6) for m in range(6)]

    def test_no_more_workers_than_allowed(self, fake):
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(fake.canonical, (f"pid {i}" for i in range(40))))) <= 2

    def test_inside_an_event_loop(self, grader):
        async def both() -> list[bool]:
            beside = [asyncio.to_thread(grader.verify, "\\sqrt{16}", str(n)) for n in range(3, 6)]
            return [grader.verify("\\sqrt{25}", "5"), *await asyncio.gather(*beside)]

        assert asyncio.run(both()) == [True, False, True, False]


START = """
import atexit, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored where the tests run
from motes.tasks.maths import Grader
grader = Grader(timeout=120, command=(sys.executable, sys.argv[1]))
atexit.register(grader.close)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
class TestNothingIsLeftBehind:
    """A worker holds a named pipe open: it reads as ended once the process is gone, and not before."""

    def run(self, tmp_path: Path, code: str, ends_by: signal.Signals | None) -> tuple[int, str]:
        os.mkfifo(tmp_path / "pipe")
        # In a session of its own, which a terminal's Ctrl-C would reach as a whole.
        process = subprocess.Popen(
            [sys.executable, "-c", START + code, FAKE[1], str(tmp_path / "pipe")],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        with open(tmp_path / "pipe") as pipe:
            assert int(pipe.readline()) != process.pid
            if ends_by is not None:
                os.killpg(process.pid, ends_by)
            _, errors = process.communicate(timeout=60)
            assert pipe.read() == ""
        return process.returncode, errors

    def test_by_ctrl_c(self, tmp_path):
        code, errors = self.run(tmp_path, "grader.verify('1', 'hang in ' + sys.argv[2])", signal.SIGINT)
        assert code == -signal.SIGINT
        assert errors.count("Traceback") == 1, "of the process interrupted, none of its workers"

    def test_by_ctrl_c_in_an_evaluation(self, tmp_path):
        """At once, although a thread waits for a comparison that hangs."""
        (tmp_path / "p.jsonl").write_text(json.dumps({"question": "?", "answer": "1"}))
        code, errors = self.run(
            tmp_path,
            """
import os
from pathlib import Path
import motes.tasks.maths
from motes import Step
from motes.cli import main
motes.tasks.maths.shared = lambda: grader
folder = Path(sys.argv[2]).parent

class Told:
    async def extend(self, trajectories, sampling, seeds):
        return [Step("So \\\\boxed{hang in " + sys.argv[2] + "}.", "eos")]

words = f"eval --task {folder}/p.jsonl --model __main__:Told --reward none --methods greedy --out {folder}/run"
sys.exit(main(words.split()))
""",
            signal.SIGINT,
        )
        assert code == 130
        assert any(line.startswith("motes: interrupted") for line in errors.splitlines())
        assert "Traceback" not in errors

    def test_by_kill_9_of_the_process(self, tmp_path):
        code, _ = self.run(tmp_path, "grader.verify('1', 'hold ' + sys.argv[2]); signal.pause()", signal.SIGKILL)
        assert code == -signal.SIGKILL

    def test_by_the_end_of_the_process(self, tmp_path):
        assert self.run(tmp_path, "grader.verify('1', 'hold ' + sys.argv[2])", None) == (0, "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_a_worker_whose_asker_is_gone_ends_by_its_own_alarm():
    with subprocess.Popen([*WORKER, "0.2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"value": "ready"}
        request = json.dumps(["verify", "7", "10^{10^{10}}"]) + "\n"
        try:
            assert process.communicate(request, timeout=60) == ("", None)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGALRM


def test_a_worker_whose_asker_is_gone_before_it_has_started_ends_without_a_word():
    with subprocess.Popen(
        [*WORKER, "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
