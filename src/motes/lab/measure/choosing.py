"""Choose again among answers that are recorded: methods that draw independent answers differ in their choice alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.prefixes import Prefixes
from motes.lab.run.records import RunRecord
from motes.methods import BestOfN, Majority, WeightedBestOfN
from motes.methods.population import AGGREGATIONS, Aggregation
from motes.methods.selectors import Candidates, argmax, majority, vote
from motes.smc import Weights
from motes.smc.weights import FloatArray

Independent = Majority | BestOfN | WeightedBestOfN
CHOOSING = (Majority, BestOfN, WeightedBestOfN)
"""Methods whose answers are drawn alike."""
DRAWN_BY = "wbon"
"""The method whose records know all that these need."""


def drawn_by(spec: str, budget: int) -> str:
    """The method whose recorded answers a method can choose from: `DRAWN_BY`, or itself."""
    return DRAWN_BY if isinstance(method_from_spec(spec, budget), CHOOSING) else spec


def choose_again(record: RunRecord, spec: str) -> RunRecord:
    """The record that a method would have had with these answers: what it chooses, whether that is right, and what it
    would have cost. `record` is one of `DRAWN_BY`; of any other method it is that method's own, and stays as it is."""
    made = method_from_spec(spec, record.budget)
    if not isinstance(made, CHOOSING) or record.outcome == "failed":
        return replace(record, method=spec)
    scores = _scores(record.prefixes or Prefixes(), made.aggregation, len(record.answers))
    weights = made.weights(scores) if isinstance(made, WeightedBestOfN) else Weights.uniform(len(scores))
    stated = [i for i, group in enumerate(record.groups) if group is not None]
    usage = record.usage
    if isinstance(made, Majority):
        usage = replace(usage, reward_tokens=0, reward_tokens_cached=0, reward_calls=0, computed_reward_tokens=0)
    if weights.degenerate:  # of which that method makes an error
        return replace(record, method=spec, usage=usage, outcome="failed", answer=None)
    if not stated:
        return replace(record, method=spec, usage=usage, outcome="no_answer", answer=None)
    chosen = _chosen(made, record, scores, weights, stated)
    right = record.right[chosen]
    return replace(
        record,
        method=spec,
        usage=usage,
        answer=record.answers[chosen],
        outcome="grader_timeout" if right is None else "correct" if right else "wrong",
        error=record.error if right is None else None,
    )


def _scores(prefixes: Prefixes, aggregation: Aggregation, answers: int) -> FloatArray:
    """(N,) of the answers, NaN where there is none."""
    found = np.full(answers, np.nan)
    for i, end in enumerate(prefixes.ends):
        path = prefixes.path(end)
        steps = [score for step in path if (score := prefixes.scores[step]) is not None]
        if steps and len(steps) == len(path):
            found[i] = AGGREGATIONS[aggregation](np.array(steps))
    return found


def _chosen(made: Independent, record: RunRecord, scores: FloatArray, weights: Weights, stated: list[int]) -> int:
    """The place of the answer that the method chooses."""
    names = [str(record.groups[i]) for i in stated]
    candidates = Candidates(stated, names, weights.normalized[stated], np.nan_to_num(scores[stated], nan=-np.inf))
    choose = argmax if isinstance(made, BestOfN) else majority if isinstance(made, Majority) else vote
    return stated[choose(np.random.default_rng(0), candidates)]
