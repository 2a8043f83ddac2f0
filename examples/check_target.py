"""Does a method sample from the target that it claims? Compare it with an exact answer, on a finite language model.

    python examples/check_target.py

The target of the particle filter with `potential="increment"`, `link="probability"` and `beta=1` is
π(path) ∝ p(path) · r(path): the language model's probability of a complete answer, times the score of its last step.
On a `TabularLanguageModel` all paths can be listed, so π is known. The filter estimates Z · π without bias, where Z is
the sum of p · r over all paths: over many runs, the mean of Ẑ · π̂(answer) must agree with Z · π(answer) for each
answer, within a few standard errors. The test leaves out answers with Z · π below 0.01, whose estimates are far from
normal with so few runs.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

import motes

RUNS = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs

    rng = np.random.default_rng(0)
    lm = motes.TabularLanguageModel.random(rng, depth=3)
    paths = dict(lm.paths())
    prefixes = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    reward = motes.TabularReward.random(rng, sorted(prefixes))
    exact = {"".join(path): p * reward[path] for path, p in paths.items()}  # Z · π

    method = motes.ParticleFilter(8, potential="increment", link="probability", beta=1.0)
    estimates = {answer: np.zeros(runs) for answer in exact}  # Ẑ · π̂, (runs,)
    for seed in range(runs):
        result = motes.solve(
            "Which letters?", lm=lm, reward=reward, method=method, task=motes.api.answer_rule("whole-text"), seed=seed
        )
        for answer, share in result.posterior.items():
            estimates[answer][seed] = math.exp(result.log_evidence) * share

    print("answer   exact    estimate  z")
    largest = 0.0
    common = {answer: value for answer, value in exact.items() if value > 0.01}
    for answer, value in sorted(common.items(), key=lambda item: -item[1]):
        mean, error = estimates[answer].mean(), estimates[answer].std(ddof=1) / math.sqrt(runs)
        z = (mean - value) / error
        largest = max(largest, abs(z))
        print(f"{answer:8} {value:.5f}  {mean:.5f}  {z:+.1f}")
    print(f"largest |z| of {len(common)}: {largest:.1f}")
    assert largest < 4.5, "the method does not sample from its target"  # a false alarm in fewer than 1 of 10,000 calls


if __name__ == "__main__":
    main()
