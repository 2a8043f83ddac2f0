"""A result as a notebook shows it: the answer, the posterior over answers, and how the particles came to it.

One piece of HTML without scripts and without a stylesheet, in the colours of the page around it, light or dark. What
models and problems say is text. It has some twenty kilobytes, and less than a megabyte however large the run: the
heaviest particles are drawn, and of long answers every so many steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import numpy.typing as npt

from motes.core.trajectory import Trajectory
from motes.text import counted, visible

ANSWERS = 8
"""Answers of the posterior that have a row."""
LONGEST, LONGEST_NAME, LONGEST_STEP = 4_000, 200, 120
"""Characters of the text, of an answer or a question, and of a step, that are shown."""
ALIVE, DEAD, COLUMNS = 24, 16, 24
"""Particles that are drawn to their end, those that were given up among them, and columns of steps."""
LOW, MIDDLE, HIGH = (217, 98, 43), (148, 134, 106), (58, 139, 214)
"""Colours of scores of 0, 1/2 and 1: told apart by every eye, and on either ground."""
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
    """The HTML of a result; of a failed one, too. `facts`: the method, the cost and the like, in a few words each;
    `genealogy`: see the function of this name."""
    shown = "no answer" if answer is None else _clipped(answer, LONGEST_NAME)
    sure = "" if answer is None else f", {_percent(confidence)} of the weight"
    parts = [
        f'<div style="{FAINT};overflow-wrap:anywhere">{_clipped(question, LONGEST_NAME)}</div>',
        f'<div style="font-size:17px;overflow-wrap:anywhere"><b>{shown}</b>{sure}</div>',
        "" if error is None else f"<div>failed: {_clipped(str(error), LONGEST_NAME)}</div>",
        f'<div style="{FAINT}">{escape(visible(", ".join(facts)))}</div>',
        *_posterior(posterior),
        genealogy,
    ]
    if text:
        pre = "white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0;background:none;color:inherit"
        said = escape(visible(_cut(text, LONGEST), newlines=True))
        parts.append(
            f'<details><summary style="cursor:pointer">text</summary><pre style="{pre}">{said}</pre></details>'
        )
    return f'<div style="font-family:system-ui,sans-serif;font-size:14px;max-width:760px">{"".join(parts)}</div>'


def _posterior(posterior: Mapping[str, float]) -> Iterator[str]:
    """A row with a bar for each answer, the likeliest first, and for what has none."""
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
    """A particle after a step, as it is drawn: in a column, the number of steps, and on a line, in lines of particles;
    with the weight of the final particles that are this one, and whether any descends from it."""

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
    """The tree of steps that the particles are the leaves of: a column a step, a mark a particle; "" without steps. It
    is made of the final trajectories, (N,), with their unnormalised log-weights, (N,), the population after each round,
    and the scores of the particles that have one."""
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
    told = f"{steps}; area: weight; orange to blue: score from 0 to 1; faint: without descendants; cross: dropped"
    more = f"; {left_out:,} more particles are not drawn" if left_out else ""
    return f'{svg}<div style="{FAINT}">{told}{more}</div>'


def _mark(mark: _Mark, x: float, y: float, score: float | None) -> str:
    """A circle, a square where the answer is finished, a cross where the particle was dropped."""
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
    """The particles that are drawn to their end, the final ones with their weight and the heaviest first, then those
    that were given up; and how many are left out."""
    final: dict[Trajectory, float] = {}
    for node, weight in zip(trajectories, _weights(log_weights, len(trajectories)), strict=True):
        final[node] = final.get(node, 0.0) + weight
    gone_on: set[Trajectory] = set()
    seen = dict.fromkeys(node for population in rounds for node in population)
    for node in (*final, *seen):
        parent = node.parent
        while parent is not None and parent not in gone_on:
            gone_on.add(parent)
            parent = parent.parent
    # A particle that was finished or dropped is another node with the same step.
    steps = {id(node.step) for node in (*final, *gone_on)}
    dead = [node for node in seen if node not in final and node not in gone_on and id(node.step) not in steps]
    heaviest = sorted(final, key=lambda node: -final[node])
    shown: list[tuple[Trajectory, float | None]] = [(node, final[node]) for node in heaviest[:ALIVE]]
    shown += [(node, None) for node in dead[:DEAD]]
    return shown, len(final) + len(dead) - len(shown)


def _weights(log_weights: npt.NDArray[np.float64], number: int) -> list[float]:
    """Normalised; all alike where there are none that say more."""
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    top = log_weights.max(initial=-np.inf)
    if len(log_weights) != number or not np.isfinite(top):
        return [1 / number] * number if number else []
    weights: list[float] = np.exp(log_weights - top).tolist()
    total = sum(weights)
    return [weight / total for weight in weights]


def _tree(ends: Sequence[tuple[Trajectory, float | None]], stride: int) -> list[_Mark]:
    """The marks of every stride-th step on the way to each end, and of the ends; the roots of their trees."""
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
    """Give every leaf a line of its own, after the first `lines`, and every other mark the middle of its children's.
    Returns the number of lines."""
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


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _clipped(text: str, most: int) -> str:
    """The beginning of a text, on one line, as HTML."""
    return escape(visible(" ".join(_cut(text, most).split())))
