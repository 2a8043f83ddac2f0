"""Choose again among recorded answers: methods that sample answers independently differ only in their choice of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.prefixes import Prefixes
from motes.lab.run.records import Outcome, RunRecord
from motes.methods import SELECTORS, BestOfN, Majority, WeightedBestOfN
from motes.methods.population import AGGREGATIONS, Aggregation
from motes.methods.selectors import Candidates
from motes.smc.weights import FloatArray

ChoosingMethod = Majority | BestOfN | WeightedBestOfN
"""The methods that sample their answers in the same way."""
DRAWN_BY = "wbon"
"""The method whose records contain all data from which these methods choose."""


def drawn_by(spec: str, budget: int) -> str:
    """The method whose recorded answers a method can choose from: `DRAWN_BY`, or the method itself."""
    return DRAWN_BY if isinstance(method_from_spec(spec, budget), ChoosingMethod) else spec


def choose_again(record: RunRecord, spec: str) -> RunRecord:
    """The record that a method would have had with these answers: its choice, whether that is right, and its cost.

    Args:
        record: of the method `drawn_by(spec, budget)`. If that is `spec` itself, and not a `ChoosingMethod`, the record
            stays unchanged.
    """
    method = method_from_spec(spec, record.budget)
    if not isinstance(method, ChoosingMethod) or record.outcome == "failed":
        return replace(record, method=spec)
    scores = _answer_scores(record.prefixes or Prefixes(), method.aggregation, len(record.answers))
    weights = method.weights(scores)
    stated = [i for i, group in enumerate(record.groups) if group is not None]
    usage = record.usage
    if isinstance(method, Majority):
        usage = replace(usage, reward_tokens=0, reward_tokens_cached=0, reward_calls=0, computed_reward_tokens=0)
    if weights.degenerate:  # the method raises an error then
        return replace(record, method=spec, usage=usage, outcome="failed", answer=None)
    if not stated:
        return replace(record, method=spec, usage=usage, outcome="no_answer", answer=None)
    names = [str(record.groups[i]) for i in stated]
    candidates = Candidates(stated, names, weights.normalized[stated], np.nan_to_num(scores[stated], nan=-np.inf))
    chosen = stated[SELECTORS[method.selector](np.random.default_rng(0), candidates)]
    answer, right = record.answers[chosen], record.right[chosen]
    if right is None:
        return replace(record, method=spec, usage=usage, outcome="grader_timeout", answer=answer)
    outcome: Outcome = "correct" if right else "wrong"
    return replace(record, method=spec, usage=usage, outcome=outcome, answer=answer, error=None)


def _answer_scores(prefixes: Prefixes, aggregation: Aggregation, answers: int) -> FloatArray:
    """(N,) the scores of the answers; NaN for an answer without one."""
    scores = np.full(answers, np.nan)
    for i, end in enumerate(prefixes.ends):
        steps = [prefixes.scores[step] for step in prefixes.path(end)]
        if steps and None not in steps:
            scores[i] = AGGREGATIONS[aggregation](np.array(steps, dtype=np.float64))
    return scores
