r"""Refinement: a language model writes an answer again, given an earlier answer, or notes on several.

The prompts are here to be read, and to be replaced. A prompt takes the place of the last message of the user; system
prompt, earlier turns, and the problem for reward models and answer rules stay what they are. In a prompt, `{question}`
stands for that message, with the form of answers that a task's prompt asks for (`motes.prompts`). Other braces, as in
`\boxed{}`, are text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from motes.core import STOPS, Moves, Problem, Trajectory
from motes.errors import ConfigurationError, UnreadableFileError
from motes.methods.population import Aggregation, BoolArray, Population
from motes.methods.run import Run
from motes.text import read_text
from motes.thoughts import without_thoughts

REFINE = """\
{question}

Here is a proposed solution. It may be right or wrong:

<solution>
{answer}
</solution>

Check each step of it. Keep what is right, and correct what is wrong. Then write the full solution again, from the \
beginning, and end it with the answer in the form that is asked for above."""

REFINE_BY_CRITIQUE = """\
{question}

Here is a proposed solution. It may be right or wrong:

<solution>
{answer}
</solution>

A reviewer, who may be mistaken, says about it:

<review>
{critique}
</review>

Check each step of the solution. Keep what is right, and correct what is wrong. Then write the full solution again, \
from the beginning, and end it with the answer in the form that is asked for above."""

DISTIL = """\
{question}

Here are proposed solutions. Each may be right or wrong:

{drafts}

Do not solve the problem yet. Write notes on these solutions, in at most 300 words, for somebody who will solve it \
next and sees nothing but your notes: which answers and intermediate results they agree on, where they contradict \
each other, which of these results you have checked, which mistakes you have found, and what is left to do."""

SOLVE_WITH_NOTES = """\
{question}

Here are notes from earlier attempts. They may contain mistakes:

<notes>
{workspace}
</notes>

Check what you use of them. Then write a full solution, from the beginning, and end it with the answer in the form \
that is asked for above."""


def read_prompt(name: str, value: str, required: Collection[str], optional: Collection[str] = ()) -> str:
    """The text of a prompt that is given as a text or as the name of a file.

    Args:
        name: the setting's, for messages.
        required, optional: the fields of the prompt, such as "question" for `{question}`. A value in which one of them
            occurs is a text.

    Raises:
        ConfigurationError: a required field is missing, or the file cannot be read.
    """
    text = value
    if not any(f"{{{field}}}" in value for field in (*required, *optional)):
        try:
            text = read_text(Path(value))
        except (OSError, UnicodeError, ValueError) as error:
            if "\n" not in value and isinstance(error, (OSError, UnicodeError)):
                raise UnreadableFileError(Path(value), error) from error
    if missing := [f"{{{field}}}" for field in required if f"{{{field}}}" not in text]:
        also = f" (and {', '.join(f'{{{field}}}' for field in optional)} if you like)" if optional else ""
        raise ConfigurationError(
            f"{name} is a prompt, or the file of one, in which {' and '.join(missing)} stands for what is filled in: "
            f"put it there{also}"
        )
    return text


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """The prompt with each value in the place of its field. Fields that occur in values are text."""
    fields = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({fields})\}}", lambda match: values[match[1]], prompt)


def asked(problem: Problem, prompt: str, **values: str) -> Problem:
    """The problem, asked by a prompt that takes the place of the last message."""
    *before, last = problem.messages
    content = fill(prompt, {"question": last["content"], **values})
    return problem.asked_as([*before, {**last, "content": content}])


def spoken_text(trajectory: Trajectory) -> str:
    """What an answer says, without thoughts: a model that thinks shall not read those of an earlier answer."""
    return without_thoughts(trajectory.text).strip()


async def propose(run: Run, population: Population, prompts: Sequence[Problem | None], *, score: bool) -> Population:
    """The population with a whole answer to each place's prompt in the particle's place; particles without a prompt
    stay. Every place has a stream of random numbers of its own, whichever places have prompts.

    Answers that a model cannot write or score, because they do not fit its context, say, are failed trajectories.
    """
    roots = {id(prompt): Trajectory(prompt) for prompt in prompts if prompt is not None}  # shared, as are prompts
    pairs = list(zip(population.trajectories, prompts, strict=True))
    trajectories = tuple(particle if prompt is None else roots[id(prompt)] for particle, prompt in pairs)
    old_scores = zip(population.scores, prompts, strict=True)
    scores = tuple(known if prompt is None else () for known, prompt in old_scores)
    return await run.complete(Population(trajectories, scores, np.zeros(len(pairs), dtype=bool)), score=score)


async def find_usable(
    run: Run, population: Population, proposals: Population, *, scored: bool, keeps_answer: bool = True
) -> BoolArray:
    """(N,) whether each proposal can take the place of its particle: it is another trajectory, complete, has a score if
    `scored`, and, if `keeps_answer`, states an answer if the particle does."""
    before, after = population.trajectories, proposals.trajectories
    answers = await run.answers((*before, *after)) if keeps_answer else [None] * 2 * len(before)
    usable = []
    for i, (particle, proposal) in enumerate(zip(before, after, strict=True)):
        complete = proposal.depth > 0 and proposal.error is None and proposal.finished not in STOPS
        loses_answer = answers[i] is not None and answers[len(before) + i] is None
        is_known = len(proposals.scores[i]) > 0 or not scored
        usable.append(proposal is not particle and complete and is_known and not loses_answer)
    return np.array(usable, dtype=bool)


def move(population: Population, proposals: Population, accepted: BoolArray) -> Population:
    """The population with the accepted proposals in the places of its particles."""
    chosen = Population.concatenate([population, proposals]).select(
        np.arange(len(population)) + np.where(accepted, len(population), 0)
    )
    return replace(chosen, extended=accepted)


def moves_of(proposals: Population, accepted: BoolArray, aggregation: Aggregation) -> Moves:
    """The moves for the record of a round."""
    return Moves(proposals.trajectories, proposals.aggregate(aggregation), proposals.scores, accepted)
