"""`motes check`: check that models keep their contract."""

from __future__ import annotations

from motes.cli import options, terminal
from motes.conformance import check_language_model, check_reward_model


def command(model: options.Model = "tiny", reward: options.Reward = "tiny") -> None:
    """Prove that models keep their contract.

    Batch = single, concurrent = sequential, fork = fresh, same seed = same tokens, and more.
    """
    lm, prm = options.open_models(model, reward)
    check_language_model(lm)
    terminal.say(f"{model} keeps the contract of a language model")
    if prm is not None:
        check_reward_model(prm)
        terminal.say(f"{reward} keeps the contract of a reward model")
