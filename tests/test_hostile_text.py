"""Names, ids and errors come from strangers: in reports they are text, whatever they look like."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from motes.cli import main
from motes.lab import Report, write_report
from motes.lab.measure.formats import code, csv_text, markdown
from motes.lab.show.page import html
from strangers import line, write

HOSTILE = [
    "a|b",
    "new\nline",
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "[/x]",
    "[link](http://example.org)",
    "![](http://example.org/seen.png)",
    "=HYPERLINK(1)",
    "+1+1",
    "-1+cmd",
    "@sum",
    "\ttab",
    "$\\frac{$",
    "a_{b$",
    "**bold** `code` ``",
    "\x1b[31mred\x1b[0m",
    "\u202eright to left",
    "\u2028line",
    "${title} $script",
    "&lt;",
    '"quoted"',
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """An evaluation in which whatever has a name has a hostile one."""
    records = b"".join(
        line(0, problem_id=name, method=f"pf:{name}", error=name, answer=name, text=name, reference=name, level=i % 2)
        for i, name in enumerate(HOSTILE)
    )
    names = " ".join(HOSTILE)
    methods = {f"pf:{name}": {} for name in HOSTILE}
    return write(tmp_path_factory.mktemp("hostile"), records, task=names, lm=names, reward=names, methods=methods)


class Elements(HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1] == "script":
            self.scripts[-1] += data


def unmarked(text: str) -> str:
    """What a reader of Markdown sees of an escaped text."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


class TestMarkdown:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_cell_is_what_it_says(self, name):
        cell = markdown(name)
        assert "\n" not in cell
        assert not re.search(r"(?<!\\)[|<`*\[\]$]", cell)
        shown = unmarked(cell)
        assert shown.split() == [word for word in re.split(r"\s+", shown) if word]
        if name.isprintable():
            assert shown == name

    def test_words_stay_as_they_are(self):
        for plain in ("pf:ess_threshold=1.0", "> 4 (2 to 8)", "−0.3", "arithmetic/test/1-000", "hf:a/b-c.d", "95 %"):
            assert markdown(plain) == plain

    @pytest.mark.parametrize("name", [*HOSTILE, "`", "a``b`", "pf"])
    def test_code_ends_where_its_name_ends(self, name):
        span = code(name)
        fence = re.match("`+", span)[0]
        inside = span[len(fence) : -len(fence)]
        assert span.endswith(fence)
        assert fence not in re.findall("`+", inside)
        assert "\n" not in inside
        if name.isprintable():
            assert inside.strip() == " ".join(name.split())

    def test_every_row_has_as_many_cells_as_its_header(self, hostile):
        page = Report.load(hostile).markdown()
        rows = [re.split(r"(?<!\\)\|", row) for row in page.splitlines() if row.startswith("|")]
        tables = [len(row) for row in rows if row[1].strip() in ("method", "what")]
        assert len(tables) >= 4
        sizes, expected = iter(tables), 0
        for row in rows:
            if row[1].strip() in ("method", "what"):
                expected = next(sizes)
            assert len(row) == expected
        for outside in page.split("\n"):
            assert not re.search(r"(?<!\\)<", re.sub(r"(`+).*?\1", "", outside))


class TestSpreadsheets:
    @pytest.mark.parametrize("start", [*"=+-@\t\r\n＝＋－＠", " =", " \t@"])
    def test_formulas_are_text(self, start):
        (row,) = csv.DictReader(io.StringIO(csv_text([{"name": f"{start}cmd|' /C calc'!A0"}]), newline=""))
        guarded = f"'{start}cmd|' /C calc'!A0" if start not in "\r\n" else "'\ncmd|' /C calc'!A0"
        assert row["name"] == guarded

    @pytest.mark.parametrize("end", [";", "\n", "\r\n", "; "])
    def test_no_cell_begins_within_a_text(self, end):
        """Where a semicolon parts cells, quotes in the middle of a line do not count."""
        (row,) = csv.DictReader(io.StringIO(csv_text([{"name": f"pf{end}=cmd|' /C calc'!A0"}]), newline=""))
        before, _, after = row["name"].partition("'")
        assert (before.strip(), after) == (f"pf{end}".strip(), f"{' ' * end.count(' ')}=cmd|' /C calc'!A0")

    def test_numbers_stay_numbers(self):
        values = [-0.25, -3, 1e-9, "-1.5e+06", "+7", "", "pf", "a=b", None]
        rows = [{"value": value} for value in values]
        found = [row["value"] for row in csv.DictReader(io.StringIO(csv_text(rows)))]
        assert found == ["-0.25", "-3", "1e-09", "-1.5e+06", "+7", "", "pf", "a=b", ""]

    def test_files_of_a_report(self, hostile):
        for name, text in Report.load(hostile).tables().items():
            if name.endswith(".csv"):
                for row in csv.DictReader(io.StringIO(text, newline="")):
                    assert None not in row, "a name has made a cell of its own"
                    for value in row.values():
                        assert not value.lstrip().startswith(tuple("=+@")), name
                        float(value) if value.startswith("-") else None


class TestPage:
    def test_nothing_is_an_element_that_is_not_the_page_s_own(self, hostile, tmp_path):
        page, plain = html(Report.load(hostile), hostile), html(Report.load(write(tmp_path / "run")), tmp_path / "run")
        found, usual = Elements(page), Elements(plain)
        assert set(found.elements) == set(usual.elements)
        assert "img" not in found.elements
        assert found.elements.count("script") == usual.elements.count("script") + len(HOSTILE) - 3
        assert not re.search("[\x1b\u202e\u2028]", page)

    def test_what_is_embedded_is_what_was_recorded(self, hostile):
        scripts = Elements(html(Report.load(hostile), hostile)).scripts
        index = next(json.loads(text) for text in scripts if text.startswith('{"title"'))
        assert {problem["id"] for problem in index["problems"]} == set(HOSTILE)
        assert set(index["settings"]) == {f"pf:{name}" for name in HOSTILE}


def test_figures_show_it_as_it_is(hostile):
    paths = write_report(hostile, Report.load(hostile))
    drawn = [path for path in paths if path.suffix == ".svg"]
    assert {path.stem for path in drawn} >= {"accuracy", "levels"}
    for path in drawn:
        ElementTree.parse(path)


def test_the_terminal_shows_it_as_it_is(hostile, capsys):
    assert main(["report", str(hostile), "--no-plots"]) == 0
    out = capsys.readouterr().out
    assert not re.search("[\x1b\u202e\u2028\t]", out)
    for shown in ("pf:[/x]", r"\x1b[31mred", r"\u202eright", "pf:$\\frac{$", "<script>alert(1)</script>"):
        assert shown in out


def test_runs_that_computed_nothing_are_drawn(tmp_path):
    """As in records from before tokens were counted."""
    directory = write(tmp_path / "run", b"".join(line(i, usage={}) for i in range(3)))
    (directory / "models.json").write_text('{"lm": {"num_parameters": 7}, "reward": {"num_parameters": 8}}')
    assert "accuracy.png" in {path.name for path in write_report(directory, Report.load(directory))}
    records = b"".join(line(0, problem_id=str(i), level=i) for i in range(40))
    many = write(tmp_path / "many", records, task="somebody:Task")
    assert "levels.png" not in {path.name for path in write_report(many, Report.load(many))}
