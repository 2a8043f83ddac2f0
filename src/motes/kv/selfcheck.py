"""A check, before a model is used, that the engine computes the same as transformers' own code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motes.errors import ConfigurationError
from motes.kv.runner import SERVE, Runner
from motes.kv.tree import PrefixTree

REMEDY = f"use a model of the Llama, Qwen2, Qwen3 or Mistral family, or wrap this one as a model of your own. {SERVE}"


@torch.inference_mode()
def self_check(model: PreTrainedModel, head: Callable[[Tensor], Tensor]) -> None:
    """Run a prefix and two branches through the engine and through transformers, and compare.

    The results may differ by √ε of the model's dtype, relative to the root mean square: 0.03 % in float32, 9 % in
    bfloat16. Differences that appear in long texts only are not found: `Runner` refuses such models by name.

    Args:
        head: hidden states → logits, as the engine applies it.

    Raises:
        ConfigurationError: the results differ; the message says where, and what to do.
        FloatingPointError: the model's own logits are not finite.
    """
    body, name = model.get_decoder(), type(model).__name__
    rng = torch.Generator().manual_seed(0)
    prefix, *branches = torch.randint(body.config.vocab_size, (3, 8), generator=rng).tolist()
    ids = torch.tensor([prefix + branch for branch in branches], device=model.device)
    try:
        body.set_attn_implementation("eager")
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[:, len(prefix) :]
        logits = model(input_ids=ids, use_cache=False).logits[:, len(prefix) :]
        runner = Runner(body, Runner.pool_for(body.config, len(prefix), model.dtype, model.device))
        runner.require_numbers(logits)
        ours = _read(runner, prefix, branches)
        pairs = {"attention": (ours, hidden), "logits": (head(ours), logits)}  # (branches, tokens, …)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as failed:
        raise ConfigurationError(f"the local engine cannot run {name} ({failed}): {REMEDY}") from failed
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    for what, (mine, theirs) in pairs.items():
        scale = theirs.float().square().mean().sqrt()
        error = (mine.float() - theirs.float()).square().mean().sqrt()
        if not error <= tolerance * scale:
            raise ConfigurationError(
                f"{name} computes its {what} in a way that the local engine does not: they are {error / scale:.1%} "
                f"apart where rounding explains {tolerance:.2%}. {REMEDY[0].upper()}{REMEDY[1:]}"
            )


def _read(runner: Runner, prefix: list[int], branches: list[list[int]]) -> Tensor:
    """(branches, length, hidden), hidden states of branches that fork from a stored prefix and grow unequally."""
    workspace = runner.workspace
    tree = PrefixTree(workspace.pool)
    hidden_states: list[list[Tensor]] = [[] for _ in branches]

    def feed(pieces: list[list[int]]) -> None:
        for i, _, hidden in runner.feed(0, pieces):
            hidden_states[i].append(hidden)

    workspace.append([tree.match(prefix)])
    for _ in runner.feed(0, [prefix]):
        pass
    runner.store(tree, [0], [prefix])
    workspace.clear()
    workspace.append([tree.match(prefix + branch) for branch in branches])
    feed([branch[: 3 * i + 1] for i, branch in enumerate(branches)])
    feed([branch[3 * i + 1 :] for i, branch in enumerate(branches)])
    return torch.stack([torch.cat(pieces) for pieces in hidden_states])
