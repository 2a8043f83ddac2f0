"""Tasks that are data: their names, where their rows come from, what is wrong with them, and answers that are words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest

from motes import api
from motes.core import Problem
from motes.errors import ConfigurationError, GraderError, MissingExtraError, ProblemFileError, UnknownNameError
from motes.protocols import Task
from motes.tasks import DECLARED, Arithmetic, Benchmark, Choices, ExactMatch, MathAnswers, task
from motes.tasks.benchmark import load

SHARED = Path(__file__).parents[2] / "shared" / "data"


def written(path: Path, *rows: object) -> Path:
    """A file of these rows; a text is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    return SHARED / name


class TestSpecs:
    def test_names(self):
        assert isinstance(task("arithmetic"), Arithmetic)
        for name in ("math-500", "aime-2024", "aime-2025", "amc-2023", "gsm8k"):
            made = task(name)
            assert isinstance(made, Benchmark)
            assert made.declaration == DECLARED[name]

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ("math500", "did you mean 'math-500'"), ("poetry", "known are"), ("quiz.txt", "FILE.jsonl"),
            ("exact-match", "needs a file: exact-match:FILE.jsonl"), ("multiple-choice:", "needs a file"),
            ("math-500?anwser=x", "did you mean 'answer'"), ("arithmetic?answer=x", "neither a file nor options"),
            ("arithmetic:x.jsonl", "neither a file nor options"), ("p.jsonl?revision=main", "no revision"),
        ],
    )  # fmt: skip
    def test_what_names_no_task(self, spec, says):
        with pytest.raises(ConfigurationError, match=says):
            task(spec)

    @pytest.mark.parametrize("prefix", ["", "math:"])
    def test_a_file_of_ones_own(self, tmp_path, prefix):
        path = written(
            tmp_path / "mine.jsonl",
            {"question": "1+1?", "answer": 2},
            {
                "problem": "1/2?",
                "solution": "First \\boxed{1}, no, \\boxed{\\frac{1}{2}}.",
                "id": 7,
                "level": "Level 3",
            },
            "",
            {"question": "π?", "answer": "\\boxed{\\pi}", "unique_id": "pi", "level": 5},
        )
        made = task(f"{prefix}{path}")
        problems = made.problems()
        assert [(p.id, p.question, p.answer) for p in problems] == [
            ("mine/1", "1+1?", "2"), ("7", "1/2?", "\\frac{1}{2}"), ("pi", "π?", "\\pi")
        ]  # fmt: skip
        assert [made.level(problem) for problem in problems] == [None, 3, 5]
        assert made.problems(limit=1) == problems[:1]
        assert made.grade(problems[1], "0.5")
        with pytest.raises(UnknownNameError, match="split"):
            made.problems("train")

    def test_code_of_ones_own(self):
        own = api.task("worlds:Evens")
        assert own.problems()[0].question == "Name an even number."
        assert api.task(own) is own
        with pytest.raises(ConfigurationError, match="no Task"):
            api.task("worlds:parse")
        with pytest.raises(ConfigurationError, match=r"cannot be read"):
            api.task("math:parse").problems()  # a file, not the module

    def test_solutions_in_any_box(self, tmp_path):
        boxes = (
            r"\boxed 4",
            r"\boxed {4}",
            r"\fbox{4}",
            r"\boxed\frac12",
            r"\boxed{\left\{4\right.}",
            r"\boxed{1} or \boxed4",
        )
        path = written(tmp_path / "p.jsonl", *({"question": "?", "solution": f"So ${box}$."} for box in boxes))
        answers = [problem.answer for problem in task(str(path)).problems()]
        assert answers == ["4", "4", "4", "\\frac12", "\\left\\{4\\right.", "4"]

    def test_fields_by_other_names(self, tmp_path):
        path = written(tmp_path / "mine.jsonl", {"q": "1+1?", "a": "2", "key": "x"})
        (problem,) = task(f"exact-match:{path}?question=q&answer=a&id=key").problems()
        assert (problem.id, problem.question, problem.answer) == ("x", "1+1?", "2")

    @pytest.mark.parametrize(
        ("spec", "count", "first"),
        [
            ("math-500:{}", 500, ("test/precalculus/807.json", 2)), ("{}", 500, ("test/precalculus/807.json", 2)),
        ],
    )  # fmt: skip
    def test_math_500(self, spec, count, first):
        made = task(spec.format(shared("math500.jsonl")))
        problems = made.problems()
        assert len({problem.id for problem in problems}) == len(problems) == count
        assert (problems[0].id, made.level(problems[0])) == first
        assert {made.level(problem) for problem in problems} == {1, 2, 3, 4, 5}

    def test_aime_2024(self):
        made = task(f"aime-2024:{shared('aime2024.jsonl')}?id=unique_id")
        assert (len(made.problems()), made.problems()[0].id) == (30, "aime2024/60")


class TestBadRows:
    GOOD = {"question": "1+1?", "answer": "2"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ("{", "it is not JSON: "), ("[1]", "not a JSON object"), ({"answer": "2"}, "no `question` or `problem`"),
            ({"question": "?"}, "no `answer` or `solution`"), ({"question": "  ", "answer": 2}, "must be a text"),
            ({"question": ["?"], "answer": 2}, "must be a text"),
            ({"question": "?", "answer": [2]}, "must be a text or a number"),
            ({"question": "?", "answer": " "}, "must be a text or a number"),
            ({"question": "?", "answer": True}, "must be a text or a number"),
            ({"question": "?", "answer": None}, "no `answer`"),
            ({"question": "?", "answer": float("nan")}, "`answer` must be a text or a number, not nan"),
            ({"question": "?", "answer": float("inf")}, "`answer` must be a text or a number, not inf"),
            ({"question": 3.5, "answer": "2"}, "must be a text"),
            ({"question": "?", "answer": "2", "id": ["a"]}, "`id` must be a text or a number"),
            ({"question": "?", "answer": "2", "id": float("nan")}, "`id` must be a text or a number"),
            ({"question": "?", "solution": "So 2."}, "no answer in"),
            ({"question": "?", "answer": "2", "id": "first"}, "its id 'first' is that of line 1, too"),
        ],
    )  # fmt: skip
    def test_file_and_line_are_named(self, tmp_path, row, says):
        path = written(tmp_path / "p.jsonl", {**self.GOOD, "id": "first"}, "", self.GOOD, row)
        with pytest.raises(ProblemFileError, match=says) as raised:
            task(str(path)).problems()
        assert str(raised.value).startswith(f"{path}, line 4: ")
        assert (raised.value.path, raised.value.line) == (str(path), 4)

    @pytest.mark.parametrize(
        "number", ["0.50", "1e3", "12345678901234567890.5", "1E400", "-7", "100000000000000000000"]
    )
    def test_a_number_is_read_as_it_is_written(self, tmp_path, number):
        (tmp_path / "p.jsonl").write_text(f'{{"question": "?", "answer": {number}, "id": {number}}}')
        (problem,) = task(f"exact-match:{tmp_path / 'p.jsonl'}").problems()
        assert (problem.answer, problem.id) == (number, number)

    @pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
    def test_files_that_hold_nothing(self, tmp_path, content):
        (tmp_path / "p.jsonl").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"p\.jsonl"):
            task(str(tmp_path / "p.jsonl")).problems()

    def test_an_integer_of_any_length_is_one(self, tmp_path):
        path = written(tmp_path / "p.jsonl", {"question": "?", "answer": 10**400, "id": 10**400})
        (problem,) = task(str(path)).problems()
        assert problem.id == problem.answer == str(10**400)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ConfigurationError, match="No such file"):
            task(str(tmp_path / "p.jsonl")).problems()

    @pytest.mark.parametrize(
        ("choices", "answer", "says"),
        [(["x", "y"], "C", "none of the choices A, B"), (["x", "y"], 2, "none of"),
         (["x", "x"], "x", "several choices, A and B"),
         ({"text": ["x"], "label": ["A", "B"]}, "A", "as many labels as texts"),
         ({"text": ["x"], "label": None}, "A", "as many labels as texts"),
         ({"text": ["x", "y"], "label": ["A", "A"]}, "A", "the same label: A, A"),
         ({"text": ["x", "y"], "label": [1, 2]}, "3", "none of the choices 1, 2"),
         ("xy", "A", "must be a list"), ([1, 2], "A", "must be a list"), ({}, "A", "must be a list")],
    )  # fmt: skip
    def test_choices(self, tmp_path, choices, answer, says):
        path = written(tmp_path / "p.jsonl", {"question": "?", "choices": choices, "answer": answer})
        with pytest.raises(ProblemFileError, match=says):
            task(f"multiple-choice:{path}").problems()


class TestHub:
    """A folder in the layout that the hub has, read by the real library."""

    @pytest.fixture
    def repository(self, tmp_path, monkeypatch) -> Path:
        import datasets
        import pyarrow
        from pyarrow import parquet

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "gsm8k"
        (folder / "main").mkdir(parents=True)
        splits = "\n".join(f"  - split: {name}\n    path: main/{name}-*" for name in ("train", "test"))
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{splits}\n---\n")
        for split, last in (("test", "He pays 600*2=$<<600*2=1200>>1200.\n#### 1,200"), ("train", "#### -3")):
            rows = pyarrow.table({"question": ["1+1?", "How much?"], "answer": ["1+1 is 2.\n#### 2", last]})
            parquet.write_table(rows, folder / "main" / f"{split}-00000-of-00001.parquet")
        yield folder
        load.cache_clear()

    def benchmark(self, repository: Path) -> Benchmark:
        declared = DECLARED["gsm8k"]
        assert declared.hub is not None
        hub = dataclasses.replace(declared.hub, repository=str(repository))
        return Benchmark("gsm8k", dataclasses.replace(declared, hub=hub))

    def test_rows_become_problems(self, repository):
        made = self.benchmark(repository)
        assert [(p.id, p.answer) for p in made.problems()] == [("gsm8k/1", "2"), ("gsm8k/2", "1,200")]
        assert [problem.answer for problem in made.problems("train")] == ["2", "-3"]
        assert made.grade(made.problems()[1], "1200")
        with pytest.raises(UnknownNameError, match="split"):
            made.problems("validation")

    def test_a_row_without_its_mark_is_named(self, repository):
        from pyarrow import parquet, table

        rows = table({"question": ["1+1?"], "answer": ["2"]})
        parquet.write_table(rows, repository / "main" / "test-00000-of-00001.parquet")
        with pytest.raises(ProblemFileError, match="line 1: `answer` states no answer after '####'"):
            self.benchmark(repository).problems()

    def test_what_cannot_be_loaded_says_what_to_do(self, repository):
        with pytest.raises(ConfigurationError, match=r"cannot be loaded .* name a file"):
            self.benchmark(repository / "missing").problems()

    def test_without_the_library_the_extra_is_named(self, repository, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"motes\[hub\]"):
            self.benchmark(repository).problems()

    @pytest.mark.parametrize(
        ("name", "row", "expected"),
        [
            ("math-500", {"problem": "?", "solution": "\\boxed{2}", "answer": "2", "subject": "Algebra", "level": 3,
                          "unique_id": "test/algebra/1.json"}, ("test/algebra/1.json", "2", 3)),
            ("aime-2024", {"id": 60, "problem": "?", "solution": "\\boxed{204}", "answer": "204", "url": "",
                           "year": "2024"}, ("60", "204", None)),
            ("aime-2025", {"problem": "?", "answer": "70", "id": "0"}, ("0", "70", None)),
            ("amc-2023", {"id": 0, "answer": "27", "url": "", "question": "?"}, ("0", "27", None)),
            ("gsm8k", {"question": "?", "answer": "So 42.\n#### 42"}, ("gsm8k/1", "42", None)),
            ("aime-2026", {"problem_idx": 1, "answer": 277, "problem": "?"}, ("1", "277", None)),
            ("hmmt-feb-2025", {"problem_idx": 3, "problem": "?", "answer": "\\frac{1}{576}",
                               "problem_type": ["Algebra"]}, ("3", "\\frac{1}{576}", None)),
            ("mmlu-pro", {"question_id": 70, "question": "?", "options": list("abcdefghij"), "answer": "I",
                          "answer_index": 8, "cot_content": "", "category": "business", "src": ""}, ("70", "I", None)),
        ],
    )  # fmt: skip
    def test_rows_as_their_authors_publish_them(self, name, row, expected):
        entry = DECLARED[name].fields.read(row, f"{name}/1")
        assert entry is not None
        assert (entry.problem.id, entry.problem.answer, entry.level) == expected


class TestChoices:
    @pytest.mark.parametrize(
        ("choices", "answer"),
        [
            (["Bonn", "Wiesbaden", "Mainz"], "B"), (["Bonn", "Wiesbaden", "Mainz"], 1), (["Bonn", "Wiesbaden"], "(B)"),
            (["Bonn", "Wiesbaden"], "Wiesbaden"), ({"A": "Bonn", "B": "Wiesbaden"}, "B"),
            ({"text": ["Bonn", "Wiesbaden"], "label": ["A", "B"]}, "B"),
        ],
    )  # fmt: skip
    def test_are_laid_out_below_the_question(self, tmp_path, choices, answer):
        path = written(
            tmp_path / "quiz.jsonl", {"question": "The capital of Hesse?", "choices": choices, "answer": answer}
        )
        (problem,) = task(f"multiple-choice:{path}").problems()
        assert problem.question.startswith("The capital of Hesse?\n\nA. Bonn\nB. Wiesbaden")
        assert problem.answer == "B"

    @pytest.mark.parametrize(
        ("labels", "answer", "label"),
        [
            ("1234", "2", "2"),
            ("1234", 2, "2"),
            ("ABCD", 2, "C"),
            ("ABCD", "b", "B"),
            ("ABCD", "2", "A"),
            ("1234", "(4)", "4"),
            ([1, 2, 3, 4], 2, "2"),
            (["1)", "2)", "3)", "4)"], "2", "2"),
            (["(i)", "(ii)", "(iii)", "(iv)"], "(ii)", "ii"),
        ],
    )
    def test_numbers_as_labels(self, tmp_path, labels, answer, label):
        choices = {"text": ["2", "Wiesbaden", "Kassel", "Bonn"], "label": list(labels)}
        path = written(tmp_path / "quiz.jsonl", {"question": "?", "choices": choices, "answerKey": answer})
        made = task(f"multiple-choice:{path}?answer=answerKey")
        (problem,) = made.problems()
        assert problem.answer == label
        for text in (rf"\boxed{{{label}}}", rf"\boxed{{({label})}}", f"The answer is {label}.", f"Answer: {label}. It"):
            stated = made.answer(text)
            assert stated is not None
            assert made.grade(problem, stated)

    def test_a_question_that_holds_them_already_stays_as_it_is(self, tmp_path):
        path = written(tmp_path / "quiz.jsonl", {"question": "Bonn (A) or Mainz (B)?", "answer": "B"})
        (problem,) = task(f"multiple-choice:{path}").problems()
        assert (problem.question, problem.answer) == ("Bonn (A) or Mainz (B)?", "B")

    @pytest.mark.parametrize(
        "text",
        ["So \\boxed{B}.", "\\boxed{\\text{(B)}}", "\\boxed{B. Wiesbaden}", "The answer is (B).", "Answer: B",
         "The answer is A. No, the answer is **B** because it is.", "<think>The answer is A.</think>The answer is B",
         "\\boxed{b}", "The answer is B. The answer is no surprise."],
    )  # fmt: skip
    def test_letters_are_read(self, text):
        rule = Choices()
        answer = rule.answer(text)
        assert answer is not None
        assert rule.matches("B", answer)
        assert not rule.matches("A", answer)

    def test_what_is_no_letter_is_wrong_and_nothing_is_no_answer(self):
        rule = Choices()
        assert rule.answer("Wiesbaden, I think.") is None
        assert rule.answer("The answer is Bonn. The answer is a town.") is None
        assert rule.answer("\\boxed{Bonn}") == "Bonn"
        assert not rule.matches("B", "Bonn")
        assert not rule.equivalent("Bonn", "B")


class TestExactMatch:
    @pytest.mark.parametrize(
        "answer",
        [
            "Wiesbaden",
            " wiesbaden. ",
            "“Wiesbaden”",
            "\\text{Wiesbaden}",
            "**Wiesbaden**",
            "WIESBADEN",
            "„Wiesbaden“",
            "`Wiesbaden`",
        ],
    )
    def test_normalisation(self, answer):
        assert ExactMatch().matches("Wiesbaden", answer)

    def test_typography(self):
        rule = ExactMatch()
        assert rule.matches("O'Neil's co-op, 1-2", "O’Neil’s co‑op, 1–2")
        assert rule.matches("-5", "−5")
        assert not rule.matches("5", "−5")

    @pytest.mark.parametrize("answer", ["Wies baden", "Mainz", "Wiesbaden, Hesse", "0.5"])
    def test_other_words_are_wrong(self, answer):
        assert not ExactMatch().matches("Wiesbaden", answer)

    def test_answers_are_read(self):
        rule = ExactMatch()
        assert rule.answer("It is \\boxed{Bad  Homburg}.") == "Bad  Homburg"
        assert rule.answer("The answer is: Bonn\nNo. Answer: Bad Homburg\n") == "Bad Homburg"
        assert rule.answer("I do not know.") is None
        assert rule.equivalent("Bad  Homburg", "bad homburg.")
        for text in (
            '{"answer": "Bonn", "sure": true}',
            "| Answer | Bonn |",
            "<answer>\nBonn\n</answer>",
            "Answer: 'Bonn'",
        ):
            assert rule.answer(text) == "Bonn"
        assert rule.answer('Answer: "Bonn" or "Mainz"') == '"Bonn" or "Mainz"'
        assert not rule.equivalent("1/2", "0.5"), "words, not numbers"


class TestGpqa:
    ROW: ClassVar = {
        "Record ID": "rec01", "Question": "Which town?", "Correct Answer": "Wiesbaden\n", "Incorrect Answer 1": "Bonn",
        "Incorrect Answer 2": "Mainz", "Incorrect Answer 3": "Kassel", "Subdomain": "Towns", "Canary String": "…",
    }  # fmt: skip

    def read(self, **changes: object) -> Problem:
        entry = DECLARED["gpqa-diamond"].fields.read({**self.ROW, **changes}, "gpqa-diamond/1")
        assert entry is not None
        return entry.problem

    def test_the_order_is_the_ids(self):
        problem = self.read()
        assert problem.question == "Which town?\n\nA. Bonn\nB. Kassel\nC. Wiesbaden\nD. Mainz"
        assert (problem.id, problem.answer) == ("rec01", "C")
        assert self.read() == problem
        letters = {self.read(**{"Record ID": f"rec{i}"}).answer for i in range(40)}
        assert letters == set("ABCD")

    def test_other_texts_leave_the_order_as_it_is(self):
        assert self.read(**{"Correct Answer": "Darmstadt"}).answer == "C"

    def test_letters_are_graded(self):
        rule = DECLARED["gpqa-diamond"].rule()
        answer = rule.answer("The answer is (D).")
        assert answer is not None
        assert rule.matches("D", answer)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"Incorrect Answer 2": "Wiesbaden "}, "differs from the right one"),
            ({f"Incorrect Answer {i}": None for i in (1, 2, 3)}, "needs wrong answers"),
            ({"Correct Answer": 3}, "must be a text"),
        ],
    )
    def test_rows_that_cannot_be_used(self, changes, says):
        with pytest.raises(ValueError, match=says):
            self.read(**changes)


class TestMmluPro:
    @pytest.mark.parametrize(("said", "is_right"), [("The answer is (I).", True), ("The answer is (J)", False)])
    def test_ten_options(self, tmp_path, said, is_right):
        row = {"question_id": 7, "question": "Which?", "options": list("qrstuvwxyz"), "answer": "I", "answer_index": 8}
        made = task(f"mmlu-pro:{written(tmp_path / 'pro.jsonl', row)}")
        (problem,) = made.problems()
        assert problem.question.endswith("\nI. y\nJ. z")
        answer = made.answer(said)
        assert answer is not None
        assert made.grade(problem, answer) is is_right

    def test_the_split_of_the_examples(self):
        hub = DECLARED["mmlu-pro"].hub
        assert hub is not None
        assert set(hub.splits) == {"test", "validation"}


class TestOlympiad:
    ROW: ClassVar = {
        "id": 2231, "question": "How far?", "solution": ["…"], "final_answer": ["$\\frac{1}{2}$"], "context": None,
        "is_multiple_answer": False, "unit": None, "answer_type": "Numerical", "error": None, "image_1": None,
    }  # fmt: skip

    def made(self, tmp_path: Path, **changes: object) -> tuple[Task, Problem]:
        made = task(f"olympiadbench:{written(tmp_path / 'olympiad.jsonl', {**self.ROW, **changes})}")
        return made, made.problems()[0]

    def test_a_row_as_its_authors_publish_it(self, tmp_path):
        made, problem = self.made(tmp_path)
        assert (problem.id, problem.question, problem.answer) == ("2231", "How far?", "$\\frac{1}{2}$")
        assert made.grade(problem, "0.5")
        assert not made.grade(problem, "0.51")

    def test_what_a_question_needs_is_in_it(self, tmp_path):
        _, problem = self.made(tmp_path, context="A snail crawls.", unit="m", is_multiple_answer=True)
        assert problem.question.startswith("A snail crawls.\n\nHow far?\n\nThere are several answers: ")
        assert problem.question.endswith("State the answer in m, without the unit.")

    @pytest.mark.parametrize(
        ("reference", "error", "answer", "is_right"),
        [
            ("$3.2$", "1e-1", "3.3", True), ("$3.2$", "1e-1", "3.31", False), ("$3.2$", "1e-1", "3.1", True),
            ("$3.2$", None, "3.3", False), ("$3.2$", "1e-1", "16/5", True), ("$\\pi$", "0.01", "3.14", True),
            ("$3.14$", "0.01", "\\pi", True), ("$3.14$", "0.001", "\\pi", False), ("$3.14$", "5", "x", False),
            ("$2 \\times 10^{3}$", "10", "2005", True), ("$2 \\times 10^{3}$", "1", "2005", False),
            ("$1, 2$", None, "2, 1", True), ("$1, 2$", None, "1", False), ("$1, 2$", None, "1, 2, 3", False),
            ("$1, 2$", None, "2, 2", False), ("$1.0, 5.0$", "0.1,1", "5.9, 1.05", True),
            ("$1.0, 5.0$", "0.1,1", "5, 1.2", False), ("$1.0, 5.0$", ",1", "1, 5.5", True),
            ("$1.0, 1.05$", "0.1", "1.02, 9", False), ("$1.0, 1.05$", "0.1", "1.02, 1.1", True),
            ("$1.0, 5.0$", ",1", "1.05, 5", False), ("$(1,8), (2,7)$", None, "(2,7), (1,8)", True),
            ("$(1,8), (2,7)$", None, "(2,7), (8,1)", False), ("$\\pm 2$", None, "2, -2", True),
            ("$\\pm 2$", None, "2", False), ("$v=3.2$", "0.1", "v = 3.25", True),
        ],
    )  # fmt: skip
    def test_answers(self, tmp_path, reference, error, answer, is_right):
        made, problem = self.made(tmp_path, final_answer=[reference], error=error)
        assert made.grade(problem, answer) is is_right

    @pytest.mark.parametrize("answer", ["5", "5 \\text{ m}", "5\\,\\mathrm{m}/\\mathrm{s}^2", "5.05 \\mathrm{~m}"])
    def test_units_are_no_part_of_it(self, tmp_path, answer):
        made, problem = self.made(tmp_path, final_answer=["$5$"], unit="$\\mathrm{m}$", error="0.1")
        assert made.grade(problem, answer)
        assert not made.grade(problem, answer.replace("5", "7"))

    def test_a_tuple_has_no_tolerance(self, tmp_path):
        made, problem = self.made(tmp_path, final_answer=["$3.2$"], error="1", answer_type="Tuple")
        assert not made.grade(problem, "3.3")

    def test_rows_with_images_are_left_out(self, tmp_path):
        rows = (self.ROW, {**self.ROW, "id": 1, "image_1": "…"}, {**self.ROW, "id": 2, "question": "See <img_3362>."})
        path = written(tmp_path / "olympiad.jsonl", *rows)
        assert [problem.id for problem in task(f"olympiadbench:{path}").problems()] == ["2231"]

    def test_a_problem_is_graded_before_the_problems_were_asked_for(self, tmp_path):
        made, problem = self.made(tmp_path, error="0.1")
        again = task(f"olympiadbench:{tmp_path / 'olympiad.jsonl'}")
        assert again.grade(problem, "0.55")
        with pytest.raises(GraderError, match="no problem 'other'"):
            made.grade(Problem("?", id="other", answer="1"), "1")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"final_answer": []}, "must be a list of texts"), ({"final_answer": None}, "no `final_answer`"),
            ({"error": "small"}, "`error` must be a number"), ({"error": "-1"}, "must be positive"),
            ({"error": "inf"}, "must be positive"),
        ],
    )  # fmt: skip
    def test_rows_that_cannot_be_used(self, tmp_path, changes, says):
        with pytest.raises(ProblemFileError, match=says):
            self.made(tmp_path, **changes)


def test_the_default_rule_is_mathematics():
    assert {name for name, declared in DECLARED.items() if declared.rule is not MathAnswers} == {
        "answer-is", "boxed", "code", "exact-match", "gpqa-diamond", "humaneval-plus", "last-line", "last-number",
        "mbpp-plus", "mmlu-pro", "multiple-choice", "olympiadbench", "olympiadbench-physics", "regex", "whole-text",
    }  # fmt: skip
