"""The report as a page: what it holds, and what a real browser makes of it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest

import chromium
import scripted
import worlds
from motes import FunctionReward, Problem, api
from motes.core import Failure
from motes.errors import EngineError
from motes.lab import Evaluation, Report, RunRecord, Trace, TraceStore, evaluate, method_from_spec, read_records
from motes.lab.run.evaluation import TRACES
from motes.lab.run.traces import read_lines, read_traces
from motes.lab.show.page import html
from motes.lab.show.style import STYLES

METHODS = ("pf", "pg:num_sweeps=2", "islands:num_islands=2", "bon", "majority", "greedy")
SMALL = Evaluation(
    methods=METHODS, budgets=(4, 8), limit=3, lm="worlds:language_model", reward="worlds:reward_model", seeds=(0, 1)
)
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">&lt;b&gt;<!--"


def run(directory: Path, evaluation: Evaluation = SMALL, **options) -> Report:
    asyncio.run(evaluate(evaluation, directory, **options))
    return Report.load(directory)


def index(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def insides(page: str) -> dict[int, dict]:
    """What stands in the page of each run, by place."""
    found = re.findall(r'<script type="application/gzip" id="run-(\d+)">([A-Za-z0-9+/=]*)</script>', page)
    return {int(place): json.loads(gzip.decompress(base64.b64decode(data))) for place, data in found}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    run(directory)
    return directory


@pytest.fixture(scope="module")
def page(directory) -> str:
    return html(Report.load(directory), directory)


class TestContent:
    def test_holds_every_record_and_trace(self, directory, page):
        records = {record.key: record for record in read_records(directory / "records.jsonl")}
        traces = {trace.key: trace for trace in read_traces(directory / TRACES)}
        held = insides(page)
        assert len(held) == len(records) == len(SMALL.plan())
        for inside in held.values():
            fields = {**inside["record"], "posterior": dict(inside["record"]["posterior"])}
            record = RunRecord.from_json(json.dumps(fields))
            assert record == dataclasses.replace(records[record.key], prefixes=None)  # the trace has them
            assert Trace.from_json(json.dumps(inside["trace"])) == traces[record.key]

    def test_the_list_agrees_with_the_records(self, directory, page):
        told, held = index(page), insides(page)
        columns = [(cell["method"], cell["budget"], seed) for cell in told["cells"] for seed in told["seeds"]]
        assert [problem["id"] for problem in told["problems"]] == [problem.id for problem in SMALL.problems()]
        for problem, given in zip(told["problems"], SMALL.problems(), strict=True):
            assert (problem["question"], problem["reference"]) == (given.question, given.answer)
            for column, letter, place in zip(columns, problem["outcomes"], problem["runs"], strict=True):
                if letter == ".":
                    assert place == -1
                    assert column[0] == "greedy"  # one run, whatever the budget
                    continue
                record = held[place]["record"]
                assert (record["problem_id"], *column) == (
                    problem["id"], record["method"], record["budget"], record["seed"],
                )  # fmt: skip
                assert record["outcome"].startswith(letter)

    def test_every_table_stands_in_it_with_its_note(self, directory, page):
        for section in Report.load(directory).sections():
            assert escape(section.title.replace("`", "")) in page
            assert escape(section.note.replace("`", "")) in page
            assert all(f"<td>{escape(cell)}</td>" in page for row in section.rows for cell in row)

    def test_methods_look_as_in_the_plots(self, page):
        for method, style in index(page)["methods"].items():
            colour, marker = STYLES[method.partition(":")[0]]
            assert style["marker"] == marker
            assert ":" in method or style["colour"] == colour

    def test_the_same_evaluation_gives_the_same_page(self, directory, page):
        assert html(Report.load(directory), directory) == page

    def test_stands_alone(self, page):
        assert not re.search(r"""(src|href)\s*=\s*["'](?!#|\$)""", page)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
        assert not re.search(r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write", page)
        assert "default-src 'none'" in page

    def test_holds_as_many_problems_as_it_is_told_to(self, directory):
        report = Report.load(directory)
        each = len(SMALL.plan()) // 3
        for viewer in (0, 1, 2, 3, 500):
            some = html(report, directory, viewer=viewer)
            told = index(some)
            assert len(insides(some)) == each * min(viewer, 3)
            assert [problem["runs"] is not None for problem in told["problems"]] == [i < viewer for i in range(3)]
            assert ("--viewer 3 embeds all" in told["note"]) == (viewer < 3)
        assert "first 2 of 3 problems; " in index(html(report, directory, viewer=2))["note"]
        assert "the runs of no problem; " in index(html(report, directory, viewer=0))["note"]

    def test_holds_no_more_than_has_room_unless_told_to(self, directory, page, monkeypatch):
        sizes = [len(data) for data in re.findall(r'id="run-\d+">([^<]*)<', page)]
        monkeypatch.setattr("motes.lab.show.page.MEGABYTES", sum(sizes) * 0.8e-6)
        bounded = html(Report.load(directory), directory)
        assert len(insides(bounded)) == len(sizes) * 2 // 3
        assert "first 2 of 3 problems (at most 30, in " in index(bounded)["note"]
        assert len(insides(html(Report.load(directory), directory, viewer=3))) == len(sizes)

    def test_without_traces_it_says_why(self, tmp_path):
        page = html(run(tmp_path, traces=False), tmp_path)
        assert all(inside["trace"] is None for inside in insides(page).values())
        assert "kept no traces (--no-traces" in index(page)["note"]
        assert index(page)["problems"][0]["question"] is None

    def test_problems_are_ordered_as_people_count(self, tmp_path):
        report = run(tmp_path, dataclasses.replace(SMALL, methods=("greedy",), limit=12))
        (told,) = {name: [record.problem_id for record in runs] for name, runs in report.runs.items()}.values()
        report = Report.of(
            [
                dataclasses.replace(record, problem_id=f"p{number}")
                for number, record in zip((10, 9, 2, 100, 1), next(iter(report.runs.values())), strict=False)
            ],
            report.configuration,
        )
        assert len(told) == 24
        assert [p["id"] for p in index(html(report, tmp_path))["problems"]] == ["p1", "p2", "p9", "p10", "p100"]

    def test_lines_are_read_as_they_stand(self, directory):
        lines = list(read_lines(directory / TRACES))
        traces = list(read_traces(directory / TRACES))
        assert len(lines) == len(traces)
        for (head, line), trace in zip(lines, traces, strict=True):
            assert tuple(head[name] for name in ("problem_id", "method", "budget", "seed")) == trace.key
            assert list(head["messages"]) == [dict(message) for message in trace.messages]
            assert Trace.from_json(line.decode()) == trace

    def test_what_problems_say_is_text(self, hostile):
        page = (hostile / "report.html").read_text()
        assert HOSTILE not in page
        assert "<img" not in page
        assert HOSTILE in index(page)["problems"][0]["question"]
        assert any(HOSTILE in node["text"] for inside in insides(page).values() for node in inside["trace"]["nodes"])


class Dropping(worlds.StoryLanguageModel):
    """Says hostile things, and cannot extend some second steps."""

    async def extend(self, trajectories, sampling, seeds):
        steps = await super().extend(trajectories, sampling, seeds)
        steps = [dataclasses.replace(step, text=f"{HOSTILE} {step.text}") for step in steps]
        if any(t.depth == 1 for t in trajectories):
            return [Failure(EngineError(HOSTILE)), *steps[1:]]
        return steps


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """An evaluation whose problem, answers and errors are all hostile."""
    directory = tmp_path_factory.mktemp("hostile")
    evaluation = dataclasses.replace(SMALL, methods=("pf",), budgets=(8,), seeds=(0,), limit=1)
    report = run(directory, evaluation)
    (record,) = read_records(directory / "records.jsonl")
    given = evaluation.problems()[0]
    problem = Problem(f"{given.question} {HOSTILE}", id=given.id, answer=given.answer)
    result = api.solve(
        problem, lm=Dropping(merges_calls=False), reward=worlds.reward_model(), method=method_from_spec("pf", 8)
    )
    (directory / TRACES).unlink()
    with TraceStore(directory / TRACES) as store:
        store.append(Trace.of(record.key, result))
    changed = dataclasses.replace(
        record, answer=HOSTILE, reference=HOSTILE, posterior={HOSTILE: 0.9, "4": 0.1}, error=HOSTILE, text=HOSTILE,
    )  # fmt: skip
    report = Report.of([changed], {**report.configuration, "task": HOSTILE, "lm": HOSTILE})
    (directory / "report.html").write_text(html(report, directory))
    return directory


@pytest.fixture(scope="module")
def file(directory, page) -> Path:
    (directory / "report.html").write_text(page)
    return directory / "report.html"


REFINING = ("refine:rounds=3:ess_threshold=0.9", "pdr:rounds=2")


@pytest.fixture(scope="module")
def refined(tmp_path_factory) -> Path:
    """A model that mends some answers, makes others worse, and fails at the rest."""
    directory = tmp_path_factory.mktemp("refined")
    ill = Failure(EngineError("the server is ill"))

    def answer(prompt: str, seed: int) -> object:
        if scripted.reading(prompt) is None and "<notes>" not in prompt:
            return scripted.drafts(2, 3, 4, 5)(seed)
        return (scripted.box(2), scripted.box(9), "no box", ill)[seed % 4]

    evaluation = Evaluation(methods=REFINING, budgets=(12,), limit=2, reward="worlds:reward_model")
    reward = FunctionReward(lambda problem, text: {"2": 0.9, "9": 0.05}.get(text[-3], 0.4))
    page = html(run(directory, evaluation, lm=scripted.Scripted(answer), reward=reward), directory)
    (directory / "report.html").write_text(page)
    return directory


@pytest.fixture
def sight(browser) -> Iterator[chromium.Chromium]:
    with browser.undisturbed("file:", "about:"):
        yield browser


def find(page: str, method: str, budget: int, seed: int = 0, problem: int = 0) -> int:
    told = index(page)
    columns = [(cell["method"], cell["budget"], each) for cell in told["cells"] for each in told["seeds"]]
    return told["problems"][problem]["runs"][columns.index((method, budget, seed))]


COUNT = "document.querySelectorAll({!r}).length".format


class TestInABrowser:
    def test_curves_have_a_point_for_each_cell(self, sight, file, page):
        sight.open(file)
        cells = index(page)["cells"]
        assert sight.js(COUNT(".point")) == len(cells)
        for number in range(sight.js(COUNT("#curves .choice button"))):
            sight.point_at(f"#curves .choice button:nth-child({number + 1})", click=True)
            assert sight.js(COUNT(".point")) == len(cells)
            assert "NaN" not in sight.js("document.querySelector('.plot').outerHTML")

    def test_pointing_at_a_point_tells_of_it_even_where_others_lie_over_it(self, sight, file, page):
        sight.open(file)
        for cell in index(page)["cells"]:
            method, budget = cell["method"], cell["budget"]
            sight.point_at(f'.curve[data-method="{method}"] .point[data-budget="{budget}"]', covered=True)
            assert sight.js(COUNT(".near")) == 1
            assert sight.js("document.querySelector('.near').parentNode.dataset.method") == method
            told = sight.js("document.getElementById('tip').textContent")
            assert f"N = {budget}" in told
            assert "95 % interval" in told
        sight.point_at("h1")
        assert sight.js("document.getElementById('tip').hidden")
        assert sight.js(COUNT(".near")) == 0

    def test_whiskers_stand_at_their_points(self, sight, file, page):
        sight.open(file)
        places = "[...document.querySelectorAll('.curve:not(.chief)')].map((c) => [[...c.querySelectorAll('.whisker')]"
        places += ".map((w) => +w.getAttribute('x1')), [...c.querySelectorAll('.point')]"
        places += ".map((p) => +/translate\\((.*),/.exec(p.getAttribute('transform'))[1])])"
        curves = sight.js(places)
        assert len(curves) > 2
        assert all(whiskers == points for whiskers, points in curves)
        assert len({tuple(points) for _, points in curves}) == len(curves), "side by side"

    def test_paired_differences_are_drawn_at_once(self, sight, file, page):
        sight.open(file)
        told = index(page)["differences"]
        assert sight.js(COUNT(".difference")) == len(told) > 0
        sure = [
            each for each in told if each["value"][1] is not None and (each["value"][1] > 0 or each["value"][2] < 0)
        ]
        assert sight.js(COUNT(".difference.sure")) == len(sure)
        sight.point_at(".difference circle:last-child")
        assert "points on" in sight.js("document.getElementById('tip').textContent")
        assert "NaN" not in sight.js("document.getElementById('differences').outerHTML")

    def test_curves_where_everything_is_right(self, sight, hostile):
        sight.open(hostile / "report.html")
        assert [cell["accuracy"] for cell in index((hostile / "report.html").read_text())["cells"]] == [[1, None, None]]
        assert "NaN" not in sight.js("document.querySelector('.plot').outerHTML")

    def test_a_click_on_a_name_hides_its_curve_and_shows_it_again(self, sight, file, page):
        sight.open(file)
        name, curve = '.name[data-method="bon"]', COUNT('.curve[data-method="bon"]')
        for left in (0, 1):
            sight.point_at(name, click=True)
            assert sight.js(curve) == left
            assert sight.js(f"document.querySelector('{name}').ariaPressed") == ("true" if left else "false")

    def test_filters(self, sight, file, page):
        sight.open(file)
        problems = index(page)["problems"]
        shown = "[...document.querySelectorAll('.matrix tbody tr')].map((row) => row.dataset.problem)"
        assert sight.js(shown) == [problem["id"] for problem in problems]

        def choose(name: str, value: object) -> list[str]:
            sight.js(
                f"(() => {{ const it = document.getElementById('filter-{name}'); it.value = {json.dumps(str(value))};"
                "it.dispatchEvent(new Event(it.type === 'search' ? 'input' : 'change')); })()"
            )
            return sight.js(shown)

        def those(wanted) -> list[str]:
            return [problem["id"] for problem in problems if wanted(problem["outcomes"].replace(".", ""))]

        assert choose("shown", 1) == those(lambda letters: 0 < letters.count("c") < len(letters))
        assert choose("shown", 2) == those(lambda letters: "c" not in letters)
        assert choose("shown", 3) == those(lambda letters: set(letters) == {"c"})
        assert choose("shown", 4) == those(lambda letters: "n" in letters or "g" in letters)
        assert choose("shown", 5) == []
        choose("shown", 0)
        assert choose("right", 0) == [p["id"] for p in problems if "c" in p["outcomes"][:2]]
        assert choose("wrong", 0) == [p["id"] for p in problems if "c" in p["outcomes"][:2] != "cc"]
        choose("right", ""), choose("wrong", "")
        assert choose("text", problems[1]["id"]) == [problems[1]["id"]]

    @pytest.mark.parametrize("method", METHODS[:3])
    def test_a_run_is_drawn_with_a_mark_for_each_particle_of_each_round(self, sight, file, page, method):
        place = find(page, method, 8)
        trace = insides(page)[place]["trace"]
        sight.open(file, f"#run={place}")
        sight.until(COUNT("#run .genealogy") + " > 0")
        parts = {(one["sweep"], one["chain"]) for one in trace["rounds"]}
        assert sight.js(COUNT("#run .genealogy")) == len(parts)
        assert sight.js(COUNT("#run .marks .mark")) == sum(len(one["nodes"]) for one in trace["rounds"])
        assert sight.js(COUNT("#run .ess .round")) == len(trace["rounds"])
        assert "NaN" not in sight.js("document.getElementById('run').outerHTML")

    @pytest.mark.parametrize("method", REFINING)
    def test_rounds_of_refinement_show_what_was_made_of_what(self, sight, refined, method):
        """A column for each round; what was proposed and not accepted stands beside what it was to replace."""
        page = (refined / "report.html").read_text()
        place = find(page, method, 12)
        trace = insides(page)[place]["trace"]
        rounds = trace["rounds"]
        sight.open(refined / "report.html", f"#run={place}")
        sight.until(COUNT("#run .genealogy") + " > 0")
        marks = "[...document.querySelectorAll('.marks .mark')]"
        marks += ".map((m) => [+m.dataset.round, +m.dataset.particle, m.classList.value])"
        drawn = {(t, i): kind for t, i, kind in sight.js(marks)}
        expected = {(t, i) for t, one in enumerate(rounds) for i in range(len(one["nodes"]))}
        rejected = {}
        for t, one in enumerate(rounds[1:], start=1):
            moves, n = one["moves"], len(one["nodes"])
            behind = [
                i for i in range(n) if moves["nodes"][i] not in (None, one["nodes"][i]) and not moves["accepted"][i]
            ]
            rejected |= {(t, n + k): i for k, i in enumerate(behind)}
        assert drawn.keys() == expected | rejected.keys()
        assert all("died" in drawn[at] for at in rejected)
        assert sight.js(COUNT("#run .ess .round")) == len(rounds)
        assert "NaN" not in sight.js("document.getElementById('run').outerHTML")
        assert "undefined" not in sight.js("document.getElementById('run').outerHTML")
        texts = {"no answer": "no answer"}
        named = sight.js("[...document.querySelectorAll('.names .what')].map((each) => each.textContent)")
        assert set(named) <= texts.keys() | {answer for answer, _ in insides(page)[place]["record"]["posterior"]}
        panel = "document.querySelector('.inspector').textContent"
        (t, k), i = next(iter(rejected.items()))
        sight.point_at(f'.mark[data-round="{t}"][data-particle="{k}"]', covered=True)
        told = sight.js(panel)
        assert told.startswith(f"proposalround {t + 1} from {rounds[t]['ancestors'][i] + 1}")
        failed = rounds[t]["moves"]["errors"].get(str(i))
        assert ("dropped: " + failed if failed else "not accepted: the answer before it stays") in told
        sight.point_at(f'.mark[data-round="{t}"][data-particle="{i}"]', covered=True)
        assert "stays: its refinement " in sight.js(panel)
        accepted = [one["moves"]["accepted"] if one["moves"] else [] for one in rounds]
        t, i = next((t, i) for t, row in enumerate(accepted) for i, is_new in enumerate(row) if is_new)
        sight.point_at(f'.mark[data-round="{t}"][data-particle="{i}"]', covered=True)
        told = sight.js(panel)
        assert "accepted in the place of the answer before" in told
        assert f"{sum(rounds[t]['moves']['accepted'])} moved" in told
        prompt = trace["nodes"][rounds[t]["nodes"][i]]["prompt"]
        assert sight.js("document.querySelector('.inspector details pre').textContent") == prompt

    def test_ess_is_out_of_the_particles(self, sight, refined):
        page = (refined / "report.html").read_text()
        place = find(page, REFINING[0], 12)
        sight.open(refined / "report.html", f"#run={place}")
        sight.until(COUNT("#run .genealogy") + " > 0")
        titles = sight.js("[...document.querySelectorAll('.ess title')].map((title) => title.textContent)")
        assert {title.rpartition(" of ")[2] for title in titles if title.startswith("round")} == {"3"}
        assert sight.js("[...document.querySelectorAll('.ess .tick')].at(-1).textContent") == "resampled below 3"

    @pytest.mark.parametrize("method", ["bon", "majority", "greedy"])
    def test_whole_trajectories_are_drawn_step_by_step(self, sight, file, page, method):
        place = find(page, method, 1 if method == "greedy" else 8)
        trace = insides(page)[place]["trace"]
        sight.open(file, f"#run={place}")
        sight.until(COUNT("#run .genealogy") + " > 0")

        def depth(node: int) -> int:
            parent = trace["nodes"][node]["parent"]
            return 1 if parent is None else 1 + depth(parent)

        (only,) = trace["rounds"]
        assert sight.js(COUNT("#run .marks .mark")) == len(only["nodes"]) * max(map(depth, only["nodes"]))

    def test_lines_of_descent_never_cross(self, sight, file, page):
        for method in METHODS[:3]:
            place = find(page, method, 8, seed=1, problem=2)
            rounds = insides(page)[place]["trace"]["rounds"]
            sight.open(file, f"#run={place}")
            sight.until(COUNT("#run .genealogy") + " > 0")
            rows = sight.js(
                "[...document.querySelectorAll('.genealogy')].map((svg) => [...svg.querySelectorAll('.marks .mark')]"
                ".map((mark) => [+mark.dataset.round, +mark.dataset.particle, mark.transform.baseVal[0].matrix.f]))"
            )
            parts = sorted({(one["sweep"], one["chain"]) for one in rounds})
            for part, drawn in zip(parts, rows, strict=True):
                at = {(t, i): y for t, i, y in drawn}
                mine = [one for one in rounds if (one["sweep"], one["chain"]) == part]
                for t, one in enumerate(mine[1:], start=1):
                    order = sorted(range(len(one["nodes"])), key=lambda i, t=t: at[t, i])
                    parents = [at[t - 1, one["ancestors"][i]] for i in order]
                    assert parents == sorted(parents)

    def test_hovering_tells_what_a_particle_says_and_lights_its_lineage(self, sight, file, page):
        place = find(page, "pf", 8)
        trace = insides(page)[place]["trace"]
        sight.open(file, f"#run={place}")
        sight.until(COUNT("#run .genealogy") + " > 0")
        node = trace["rounds"][1]["nodes"][3]
        sight.point_at('.mark[data-round="1"][data-particle="3"]')
        tip, panel = (sight.js(f"document.querySelector('{at}').textContent") for at in ("#tip", ".inspector"))
        assert trace["nodes"][node]["text"].strip() in tip
        assert trace["nodes"][node]["text"].strip() in panel
        assert trace["nodes"][trace["nodes"][node]["parent"]]["text"].strip() in panel
        assert f"score {trace['rounds'][1]['scores'][3]:.2f}".replace(" ", "\u00a0") in tip
        line, t = {(1, 3), (0, trace["rounds"][1]["ancestors"][3])}, 2
        below = {3}
        while t < len(trace["rounds"]):
            below = {i for i, ancestor in enumerate(trace["rounds"][t]["ancestors"]) if ancestor in below}
            line |= {(t, i) for i in below}
            t += 1
        lit = "[...document.querySelectorAll('.lit .copy')].map((one) => [+one.dataset.round, +one.dataset.particle])"
        assert set(map(tuple, sight.js(lit))) == line

    def test_arrow_keys_step_through_the_rounds(self, sight, file, page):
        sight.open(file, f"#run={find(page, 'pf', 8)}")
        sight.until(COUNT("#run .genealogy") + " > 0")
        sight.js("document.querySelector('.genealogy').focus()")
        told = "document.querySelector('.inspector h3').textContent"
        last = sight.js(told)
        sight.press("ArrowLeft")
        before = sight.js(told)
        assert int(re.search(r"round (\d+)", last)[1]) == int(re.search(r"round (\d+)", before)[1]) + 1
        sight.press("ArrowDown")
        assert sight.js(told) != before
        assert re.search(r"round (\d+)", sight.js(told))[1] == re.search(r"round (\d+)", before)[1]

    def test_the_posterior_is_drawn_in_its_order(self, sight, file, page):
        place = find(page, "majority", 8)
        record = insides(page)[place]["record"]
        sight.open(file, f"#run={place}")
        sight.until(COUNT("#run .posterior li") + " > 0")
        answers = sight.js("[...document.querySelectorAll('.posterior .what')].map((it) => it.firstChild.textContent)")
        assert [answer for answer in answers if answer != "no answer"] == [answer for answer, _ in record["posterior"]]
        selected = "document.querySelector('.posterior .selected .what').firstChild.textContent"
        assert sight.js(selected) == record["answer"]

    def test_from_the_list_to_a_run_and_back(self, sight, file, page):
        sight.open(file)
        sight.point_at(".matrix a.square", click=True)
        sight.until(COUNT("#run .back") + " > 0")
        sight.point_at(".back", click=True)
        sight.until("document.getElementById('run').hidden && !document.getElementById('report').hidden")

    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("dark", [False, True])
    def test_either_scheme_and_any_width(self, sight, file, page, dark, width):
        for hash in ("", f"#run={find(page, 'islands:num_islands=2', 8)}"):
            sight.open(file, hash, dark=dark, width=width)
            ground = sight.js("getComputedStyle(document.body).backgroundColor")
            light = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
            assert light < 60 if dark else light > 200
            assert sight.js("document.documentElement.scrollWidth") <= width

    def test_without_traces_a_run_shows_its_record(self, sight, tmp_path):
        page = html(run(tmp_path, dataclasses.replace(SMALL, methods=("pf",)), traces=False), tmp_path)
        (tmp_path / "report.html").write_text(page)
        sight.open(tmp_path / "report.html", "#run=0")
        sight.until(COUNT("#run .facts") + " > 0")
        text = sight.js("document.getElementById('run').textContent")
        assert "kept no traces" in text
        assert insides(page)[0]["record"]["text"] in text

    def test_hostile_text_is_inert(self, sight, hostile):
        sight.open(hostile / "report.html", "#run=0")
        sight.until(COUNT("#run .genealogy") + " > 0")
        assert sight.js(COUNT("img")) == 0
        assert HOSTILE in sight.js("document.querySelector('.question').textContent")
        assert HOSTILE in sight.js("document.querySelector('.facts').textContent")
        assert HOSTILE in sight.js("document.querySelector('h1').textContent")
        sight.point_at(".marks .mark.dropped")
        assert f"dropped: {HOSTILE}" in sight.js("document.getElementById('tip').textContent")
        assert sight.js("document.title") == f"{HOSTILE}, 1 problem · motes"
