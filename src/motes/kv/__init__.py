"""Shared key/value caches: every token of every prefix is computed once and stored once. Needs torch.

`PrefixTree` finds the longest stored prefix of a token sequence; `TokenPool` holds the keys and values, one slot a
token; `Workspace` holds those of the sequences at work, contiguous; `Runner` is a transformer whose attention reads
and writes the workspace; `Worker` is the thread where concurrent calls meet in one batch; `Engine` is all of these
around one model, which `self_check` has compared with transformers' own code. The local language model and the local
reward model are engines.
"""

from motes.kv.runner import Runner
from motes.kv.tree import PrefixTree, TokenPool
from motes.kv.worker import Worker

__all__ = ["PrefixTree", "Runner", "TokenPool", "Worker"]
