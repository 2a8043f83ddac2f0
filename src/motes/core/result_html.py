"""The HTML that a notebook shows for a result: the answer, the posterior over answers, the genealogy of the particles.

The HTML has no script and no stylesheet, and takes its colours from the page around it, light or dark. Texts of models
and problems are escaped. It has about twenty kilobytes, and less than a megabyte however large the run: only the
heaviest particles are drawn, and only every k-th step of long answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import numpy.typing as npt

from motes.core.trajectory import Trajectory
from motes.text import counted, shortened, visible
from motes.thoughts import split

ANSWERS = 8
"""Maximum number of answers with a row of their own."""
LONGEST, LONGEST_NAME, LONGEST_STEP = 4_000, 200, 120
"""Maximum number of characters shown of the text, of an answer or a question, and of a step."""
MAX_FINAL, MAX_DISCARDED, COLUMNS = 24, 16, 24
"""Maximum number of final particles that are drawn, of particles without descendants, and of columns of steps."""
LOW, MIDDLE, HIGH = (217, 98, 43), (148, 134, 106), (58, 139, 214)
"""Colours of scores of 0, 1/2 and 1: colour-blind-safe, on light and on dark pages."""
FAINT = "opacity:0.65;font-size:12px"


def html(
    *,
    question: str,
    answer: str | None,
    confidence: float,
    facts: Sequence[str],
    error: Exception | None,
    posterior: Mapping[str, float],
    genealogy: str,
    text: str,
) -> str:
    """The HTML of a result, or of a failed run. `facts`: the method, the cost and the like, in a few words each;
    `genealogy`: the HTML from the function of this name."""
    name = "no answer" if answer is None else _clipped(answer, LONGEST_NAME)
    weight = "" if answer is None else f", {_percent(confidence)} of the weight"
    parts = [
        f'<div style="{FAINT};overflow-wrap:anywhere">{_clipped(question, LONGEST_NAME)}</div>',
        f'<div style="font-size:17px;overflow-wrap:anywhere"><b>{name}</b>{weight}</div>',
        "" if error is None else f"<div>failed: {_clipped(str(error), LONGEST_NAME)}</div>",
        f'<div style="{FAINT}">{escape(visible(", ".join(facts)))}</div>',
        *_posterior(posterior),
        genealogy,
    ]
    thoughts, content = split(text)
    for name, each in (("thoughts", thoughts), ("text", content)):
        if each:
            parts.append(_folded(name, each))
    return f'<div style="font-family:system-ui,sans-serif;font-size:14px;max-width:760px">{"".join(parts)}</div>'


def _folded(name: str, text: str) -> str:
    pre = "white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0;background:none;color:inherit"
    content = escape(visible(shortened(text, LONGEST), newlines=True))
    return f'<details><summary style="cursor:pointer">{name}</summary><pre style="{pre}">{content}</pre></details>'


def _posterior(posterior: Mapping[str, float]) -> Iterator[str]:
    """A table of the likeliest answers, all others, and trajectories without an answer, with a bar for each row."""
    rows = [(_clipped(answer, LONGEST_NAME), mass) for answer, mass in list(posterior.items())[:ANSWERS]]
    others = list(posterior.values())[ANSWERS:]
    if others:
        rows.append((f"<i>{counted(len(others), 'other answer')}</i>", sum(others)))
    if posterior and (rest := 1 - sum(posterior.values())) > 0.0005:
        rows.append(("<i>no answer</i>", rest))
    if not rows:
        return
    yield '<table style="border-collapse:collapse;margin:8px 0;background:none"><tbody>'
    for name, mass in rows:
        share = min(max(mass, 0.0), 1.0) if math.isfinite(mass) else 0.0
        bar = f"width:{200 * share:.0f}px;min-width:1px;height:10px;background:currentColor;opacity:0.55"
        cell = "padding:1px 10px 1px 0;text-align:left;border:0;background:none;font-size:13px"
        yield (
            f'<tr style="background:none"><td style="{cell};max-width:360px;overflow-wrap:anywhere">{name}</td>'
            f'<td style="{cell};text-align:right">{_percent(mass)}</td>'
            f'<td style="{cell}"><div style="{bar}"></div></td></tr>'
        )
    yield "</tbody></table>"


# ---------------------------------------------------------------------------------------------------------- genealogy


@dataclass(eq=False)
class _Mark:
    """The mark of a particle: its column (its number of steps), its line, the total weight of the final particles at
    this node (None if there are none), and whether any of them is this node or descends from it."""

    node: Trajectory
    x: int
    y: float = 0.0
    weight: float | None = None
    alive: bool = False
    children: list[_Mark] = field(default_factory=list)


def genealogy(
    trajectories: Sequence[Trajectory],
    log_weights: npt.NDArray[np.float64],
    rounds: Sequence[Sequence[Trajectory]],
    scores: Mapping[Trajectory, float],
) -> str:
    """The tree of steps as HTML, with a column for each step and a mark for each particle; "" if there are no steps. It
    is made of the final trajectories, (N,), their unnormalised log-weights, (N,), the population after each round, and
    the scores of the particles that have one."""
    ends, left_out = _ends(trajectories, log_weights, rounds)
    deepest = max((node.depth for node, _ in ends), default=0)
    if not deepest:
        return ""
    stride = math.ceil(deepest / COLUMNS)
    roots = _tree(ends, stride)
    lines = _lay_out(roots)
    columns = math.ceil(deepest / stride)
    across, down = min(90.0, 640 / columns), min(18.0, max(9.0, 300 / lines))
    width, height = 30 + across * columns, 16 + down * lines

    def place(mark: _Mark) -> tuple[float, float]:
        return 14 + across * mark.x / stride, 8 + down * (mark.y + 0.5)

    edges: list[str] = []
    marks: list[str] = []
    stack: list[tuple[_Mark | None, _Mark]] = [(None, root) for root in roots]
    while stack:
        parent, mark = stack.pop()
        x, y = place(mark)
        if parent is not None:
            from_x, from_y = place(parent)
            middle = (from_x + x) / 2
            faint = "" if mark.alive else ' stroke-opacity="0.25"'
            path = f"M{from_x:.0f} {from_y:.1f}C{middle:.0f} {from_y:.1f} {middle:.0f} {y:.1f} {x:.0f} {y:.1f}"
            edges.append(f'<path d="{path}"{faint}/>')
        if mark.node.step is not None:
            marks.append(_mark(mark, x, y, scores.get(mark.node)))
        stack += [(mark, child) for child in mark.children]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="genealogy of the particles" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:100%;height:auto;display:block;margin:8px 0">'
        f'<g fill="none" stroke="currentColor" stroke-opacity="0.6">{"".join(edges)}</g>{"".join(marks)}</svg>'
    )
    steps = "a column a step" if stride == 1 else f"a column every {stride} steps"
    legend = f"{steps}; area: weight; orange to blue: score from 0 to 1; faint: without descendants; cross: dropped"
    more = f"; {left_out:,} more particles are not drawn" if left_out else ""
    return f'{svg}<div style="{FAINT}">{legend}{more}</div>'


def _mark(mark: _Mark, x: float, y: float, score: float | None) -> str:
    """A circle; a square if the answer is finished; a cross if the particle was dropped."""
    node = mark.node
    size = 2.2 if mark.weight is None else 2.2 + 5 * math.sqrt(mark.weight)
    fill = "currentColor" if score is None else _colour(score)
    faint = "" if mark.alive else ' opacity="0.35"'
    text = _clipped(node.step.text.strip() if node.step is not None else "", LONGEST_STEP)
    about = [] if score is None else [f"score {score:.3f}"]
    about += [] if mark.weight is None else [f"weight {mark.weight:.3f}"]
    about += [node.finished] if node.finished else []
    title = f"<title>{text}\n{escape(', '.join(about))}</title>"
    if node.finished == "failed":
        cross = f"M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"
        return f'<path d="{cross}" stroke="currentColor" stroke-width="1.5" fill="none"{faint}>{title}</path>'
    if node.finished:
        side = 1.8 * size
        corner = f'x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"'
        return f'<rect {corner} fill="{fill}"{faint}>{title}</rect>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{fill}"{faint}>{title}</circle>'


def _ends(
    trajectories: Sequence[Trajectory], log_weights: npt.NDArray[np.float64], rounds: Sequence[Sequence[Trajectory]]
) -> tuple[list[tuple[Trajectory, float | None]], int]:
    """The leaves of the drawn tree, and how many more there are: the heaviest final particles with their weights, then
    particles without descendants, whose weight is None."""
    final: dict[Trajectory, float] = {}
    for node, weight in zip(trajectories, _weights(log_weights, len(trajectories)), strict=True):
        final[node] = final.get(node, 0.0) + weight
    continued: set[Trajectory] = set()
    seen = dict.fromkeys(node for population in rounds for node in population)
    for node in (*final, *seen):
        parent = node.parent
        while parent is not None and parent not in continued:
            continued.add(parent)
            parent = parent.parent
    # A particle that was finished or dropped is another node with the same step.
    steps = {id(node.step) for node in (*final, *continued)}
    others = [node for node in seen if node not in final and node not in continued]
    discarded = [node for node in others if id(node.step) not in steps]
    heaviest = sorted(final, key=lambda node: -final[node])
    ends: list[tuple[Trajectory, float | None]] = [(node, final[node]) for node in heaviest[:MAX_FINAL]]
    ends += [(node, None) for node in discarded[:MAX_DISCARDED]]
    return ends, len(final) + len(discarded) - len(ends)


def _weights(log_weights: npt.NDArray[np.float64], number: int) -> list[float]:
    """(N,) the normalised weights; equal ones if there are no log-weights, or all are −inf."""
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    top = log_weights.max(initial=-np.inf)
    if len(log_weights) != number or not np.isfinite(top):
        return [1 / number] * number if number else []
    weights: list[float] = np.exp(log_weights - top).tolist()
    total = sum(weights)
    return [weight / total for weight in weights]


def _tree(ends: Sequence[tuple[Trajectory, float | None]], stride: int) -> list[_Mark]:
    """The roots of the trees of marks, which contain the ends and every stride-th step on the paths to them."""
    marks: dict[Trajectory, _Mark] = {}
    roots: list[_Mark] = []
    for end, weight in ends:
        nodes, siblings = [end], roots
        while (parent := nodes[-1].parent) is not None:
            nodes.append(parent)
        for node in reversed(nodes):
            if node is end or node.depth % stride == 0:
                if node not in marks:
                    marks[node] = _Mark(node, node.depth)
                    siblings.append(marks[node])
                siblings = marks[node].children
                marks[node].alive |= weight is not None
        marks[end].weight = weight
    return roots


def _lay_out(marks: Sequence[_Mark], lines: int = 0) -> int:
    """Set `y`: every leaf gets a line of its own, below the first `lines` ones, every other mark the middle of its
    children's lines. Returns the number of lines."""
    for mark in marks:
        if mark.children:
            lines = _lay_out(mark.children, lines)
            mark.y = sum(child.y for child in mark.children) / len(mark.children)
        else:
            mark.y, lines = lines, lines + 1
    return lines


def _colour(score: float) -> str:
    score = min(max(score, 0.0), 1.0)
    low, high, part = (LOW, MIDDLE, 2 * score) if score < 0.5 else (MIDDLE, HIGH, 2 * score - 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def _clipped(text: str, most: int) -> str:
    """The beginning of a text, on one line, as HTML."""
    return escape(visible(" ".join(shortened(text, most).split())))
