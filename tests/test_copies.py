"""What motes returns and raises survives pickle in every protocol, `copy`, and the way to another process."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import motes
import motes.core
import motes.errors
import motes.gateway.admission
import motes.gateway.answering
import motes.transport
from motes.core import (
    Certainty,
    Failure,
    HiddenStates,
    Problem,
    Reads,
    Record,
    Result,
    Sampling,
    Scores,
    Step,
    Trajectory,
    Usage,
)
from motes.errors import (
    ConfigurationError,
    MissingExtraError,
    MotesError,
    ProblemFileError,
    UnknownNameError,
    UnreadableFileError,
)
from motes.gateway.errors import BusyError, QuotaError, RefusedError, RelayedError

COPIES: dict[str, Callable[[Any], Any]] = {
    **{
        f"pickle {protocol}": lambda value, p=protocol: pickle.loads(pickle.dumps(value, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "process": lambda value: ForkingPickler.loads(ForkingPickler.dumps(value)),  # as pools send it
}

LM = motes.TabularLanguageModel(
    {(): {"a": 0.5, "b": 0.5}, ("a",): {r"\boxed{1}": 1.0}, ("b",): {r"\boxed{2}": 0.5, r"\boxed{3}": 0.5}}
)
REWARD = motes.TabularReward({("a",): 0.7}, default=0.4)


def solved(**changes: Any) -> Result:
    usual: dict[str, Any] = {"lm": LM, "reward": REWARD, "method": motes.ParticleFilter(4), "seed": 1}
    return motes.solve("How many?", **{**usual, **changes})


class FailsOnce:
    """Cannot extend the first of several trajectories, nor any one."""

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
        raise motes.errors.EngineError("no more")


def failed() -> MotesError:
    with pytest.raises(MotesError) as caught:
        solved(lm=FailsOnce())
    return caught.value


def same(a: Any, b: Any, seen: set[tuple[int, int]] | None = None) -> bool:
    """Whether two objects say the same, trees and errors included."""
    seen = set() if seen is None else seen
    if type(a) is not type(b):
        return False
    if (id(a), id(b)) in seen:
        return True
    seen.add((id(a), id(b)))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, Trajectory):
        names = ("problem", "parent", "step", "finished", "error", "depth", "text")
        return all(same(getattr(a, name), getattr(b, name), seen) for name in names)
    if isinstance(a, MotesError):
        return str(a) == str(b) and same(a.args, b.args, seen) and same(vars(a), vars(b), seen)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key], seen) for key in a)
    if isinstance(a, (tuple, list)):
        extra = not hasattr(a, "__dict__") or same(vars(a), vars(b), seen)
        return extra and len(a) == len(b) and all(same(x, y, seen) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name), seen) for f in dataclasses.fields(a))
    if isinstance(a, (motes.TabularLanguageModel, motes.TabularReward)):
        return same(vars(a), vars(b), seen)
    return bool(a == b or a != a)


RESULT = solved()
REFINED = solved(method=motes.Refine(3, 1, settled=2.0))
CERTAINTY = Certainty.of([-1.0, -0.5], [[-1.0, -2.0], [-0.5, -3.0]])
HIDDEN = HiddenStates((1, 4), np.arange(12, dtype=np.float16).reshape(2, 2, 3))
EXAMPLES: dict[type, Any] = {
    **{cls: cls() if cls is motes.Greedy else cls(8) for cls in motes.METHODS.values()},  # type: ignore[call-arg]
    Problem: motes.Prompt(question="Think. {question}").problem(Problem("?", id="a", answer="3", system="Be brief.")),
    Usage: Usage(generated_tokens=3, reward_calls=1),
    Scores: Scores([0.25, 1.0], Usage(reward_tokens=7)),
    Reads: Reads(3, (9, 4, 0)),
    Failure: Failure(motes.errors.EngineError("no more"), Usage(generated_tokens=2)),
    Certainty: CERTAINTY,
    HiddenStates: HIDDEN,
    Step: Step("a\n\n", "step", (1, 2), -1.5, Usage(generated_tokens=2), None, "b", certainty=CERTAINTY, hidden=HIDDEN),
    Trajectory: RESULT.trajectories[0],
    motes.core.SamplingOptions: motes.core.SamplingOptions(delimiter=["a", "b"], top_k=3),
    Sampling: Sampling(delimiter=re.compile(r"\n+(?=Step)"), stop=("a", "b")),
    Record: RESULT.records[0],
    motes.core.Moves: REFINED.records[1].moves,
    Result: RESULT,
    motes.Prompt: motes.Prompt(name="mine", system="Be brief."),
    motes.Rubric: motes.Rubric(name="mine", prompt="{question} {solution}"),
    motes.Calibration: motes.Calibration((0.2, 0.6), (0.1, 0.9), provenance={"rows": 12}),
    motes.Mixture: motes.Mixture(("tiny", "confidence:"), (1.0, 0.5), provenance={"labels": 12}),
    motes.CalibratedReward: motes.CalibratedReward(REWARD, motes.Calibration((0.2,), (0.5,))),
    motes.TabularLanguageModel: LM,
    motes.TabularReward: REWARD,
}
ENGINES = {motes.ConfidenceReward, motes.MixedReward, motes.FunctionReward, motes.Judge}
"""Classes of objects that work, in threads and on event loops: they are made anew elsewhere."""


def public() -> Iterator[type]:
    """Every class that motes names, and every one of the ground's, protocols aside."""
    named = [getattr(motes, name) for name in motes.__all__] + list(vars(motes.core).values())
    for value in dict.fromkeys(value for value in named if inspect.isclass(value)):
        is_ours = value.__module__.startswith("motes.") and not value.__name__.startswith("_")
        if is_ours and not getattr(value, "_is_protocol", False) and not issubclass(value, MotesError):
            yield value


def test_every_public_class_is_here():
    assert set(public()) - ENGINES == set(EXAMPLES)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_objects_survive(cls: type, how: str):
    example = EXAMPLES[cls]
    assert type(example) is cls
    assert same(COPIES[how](example), example)


@pytest.mark.parametrize("how", ["pickle 0", "pickle 5", "deepcopy"])
def test_copies_of_a_result_can_be_used_on(how: str):
    copied = COPIES[how](RESULT)
    assert (copied.confidence, copied.texts(), copied.dropped) == (RESULT.confidence, RESULT.texts(), RESULT.dropped)
    assert hash(copied.problem) == hash(RESULT.problem)
    assert (
        copied.records[0].trajectories[0].extend(Step("c", "eos")).text == copied.records[0].trajectories[0].text + "c"
    )


def errors() -> list[type[MotesError]]:
    """Every class of error."""
    found: list[type[MotesError]] = [MotesError]
    for cls in found:
        found.extend(other for other in cls.__subclasses__() if other not in found)
    return [cls for cls in found if cls.__module__.startswith("motes.")]


BUILT: dict[type[MotesError], Any] = {
    UnknownNameError: UnknownNameError("method", "pff", ("pf", "pg")),
    MissingExtraError: MissingExtraError("the gateway", "serve"),
    UnreadableFileError: UnreadableFileError(Path("p.toml"), PermissionError(13, "Permission denied")),
    ProblemFileError: ProblemFileError("p.jsonl", 3, "it is not JSON"),
    RelayedError: RelayedError("too long", 400, {"param": "max_tokens", "type": "BadRequestError", "code": 400}, "7"),
    RefusedError: RefusedError("at most 4 answers", "n", status=400, code="too_many"),
    BusyError: BusyError("come back", 2.5),
    QuotaError: QuotaError("come back", 2.5),
}
"""The errors that are made of something else than a message."""


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("cls", errors(), ids=lambda cls: cls.__name__)
def test_errors_survive_with_all_that_they_carry(cls: type[MotesError], how: str):
    own = any("__init__" in vars(base) for base in cls.__mro__[: cls.__mro__.index(MotesError)])
    assert own == (cls in BUILT), f"{cls} wants an example here"
    error = BUILT.get(cls) or cls("what was wrong: what to do")
    error.result, error.usage, error.status = RESULT, Usage(generated_tokens=4), 503  # type: ignore[union-attr]
    error.add_note("of the second attempt")
    copied = COPIES[how](error)
    assert type(copied) is cls
    assert str(copied) == str(error)
    assert same(copied, error)
    assert isinstance(copied, Exception)
    with pytest.raises(cls, match=re.escape(str(error))):
        raise copied


def test_an_error_that_is_in_its_own_result_survives():
    error = failed()
    assert error.result is not None
    assert error.result.error is error
    for how in ("pickle 2", "deepcopy"):
        copied = COPIES[how](error)
        assert copied.result.error is copied
        assert same(copied, error)
        result = COPIES[how](error.result)
        assert result.error.result is result


def test_a_failed_trajectory_whose_error_holds_the_run_survives():
    error = ConfigurationError("wrong: mend it")
    leaf = Trajectory(Problem("?")).extend(Step("a", "step")).fail(error)
    error.result = Result(leaf.problem, "pf", 0, trajectories=(leaf,))
    copied = pickle.loads(pickle.dumps(leaf))
    assert copied.error.result.trajectories[0] is copied
    assert (copied.finished, copied.text) == ("failed", "a")


@pytest.mark.parametrize("depth", [31, 32, 33, 5000])
@pytest.mark.parametrize("how", ["pickle 0", "pickle 5", "deepcopy", "Python's pickle"])
def test_long_answers_are_no_deep_recursion(depth: int, how: str):
    leaf = root = Trajectory(Problem("?"))
    for i in range(depth):
        leaf = leaf.extend(Step(f"{i} ", "step"))
    copies = {**COPIES, "Python's pickle": lambda value: pickle.loads(pickle._dumps(value))}  # type: ignore[attr-defined]
    copied = copies[how](leaf)
    assert (copied.depth, copied.text) == (leaf.depth, leaf.text)
    assert copied.path[0].parent.depth == root.depth == 0


def test_a_tree_stays_one():
    trunk = Trajectory(Problem("?"))
    for i in range(100):
        trunk = trunk.extend(Step(f"{i} ", "step"))
    leaves = [trunk.extend(Step(str(i), "eos")) for i in range(20)]
    result = Result(trunk.problem, "pf", 0, trajectories=tuple(leaves))
    for how in ("pickle 5", "deepcopy"):
        copied = COPIES[how](result)
        assert len({id(leaf.parent) for leaf in copied.trajectories}) == 1
        nodes = {id(node) for leaf in copied.trajectories for node in leaf.path}
        assert len(nodes) == 120
        assert all(node.problem is copied.problem for node in copied.trajectories[0].path)
    assert len(pickle.dumps(result)) < 3 * len(pickle.dumps(leaves[0]))


def test_what_is_pickled_grows_with_the_answer_alone():
    def size(depth: int) -> int:
        leaf = Trajectory(Problem("?"))
        for _ in range(depth):
            leaf = leaf.extend(Step("a step of an answer\n\n", "step"))
        return len(pickle.dumps(leaf))

    assert size(4000) < 2.2 * size(2000)
