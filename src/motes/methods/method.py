"""What a method is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from motes.core import Result, Sampling
from motes.methods.requirements import require_certainty, require_hidden, require_thinking
from motes.methods.run import Run
from motes.protocols import LanguageModel, Trait, Traits


@runtime_checkable
class Method(Protocol):
    """A way to spend compute on one problem. A frozen configuration; `run` does the work.

    A method may have further attributes and methods, see `MethodTraits`.
    """

    @property
    def budget(self) -> int:
        """The number of trajectories drawn."""
        ...

    async def run(self, run: Run) -> Result: ...


class MethodTraits(Traits):
    """The optional attributes of a method's class.

    Attributes:
        needs_reward: whether the method scores. If not, no reward model is opened for it.
        independent: whether its answers are independent samples of the language model.
        one_population: whether every population that it records contains a prefix of its final answer.
        require: raises `ConfigurationError` if the method cannot work with a model or a sampling: the model writes
            whole answers only, say, or gives no log-probabilities. Every run calls it before its first token; an
            evaluation calls it once, before its first run.
        of_budget: makes the method for a number of trajectories; None: the class itself does.
    """

    needs_reward = Trait(True)
    independent = Trait(False)
    one_population = Trait(False)
    require: Trait[Callable[[LanguageModel, Sampling], None] | None] = Trait(None)
    of_budget: Trait[Callable[..., Method] | None] = Trait(None)


def require(method: Method, lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `ConfigurationError` if a method cannot work with a language model and a sampling (`sampling_for` its
    reward models)."""
    require_certainty(lm, sampling)
    require_hidden(lm, sampling)
    require_thinking(lm, sampling)
    if (check := MethodTraits(method).require) is not None:
        check(lm, sampling)
