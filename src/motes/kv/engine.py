"""The base of the local language model and the local reward model: one model, its runner, its stored prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from motes.arguments import whole_number
from motes.errors import ConfigurationError, MotesError
from motes.kv.checkpoint import cache_budget
from motes.kv.runner import Runner
from motes.kv.selfcheck import self_check
from motes.kv.tree import PrefixTree
from motes.kv.worker import RequestT, Worker
from motes.vocabulary import Vocabulary

EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "moe_top_k")
"""Names that configurations use for the number of experts per token."""


class Engine(Worker[RequestT]):
    """A worker that runs one model.

    Args:
        model: in evaluation mode.
        head: hidden states → logits.
        vocabulary: the model's tokenizer.
        max_cached_tokens: tokens whose keys and values are kept for reuse; by default as many as fit in an eighth of
            the free memory. The least recently used prefixes are evicted, and computed again when needed.
        max_batch_tokens: rows × length of the batch's keys and values; by default another eighth. A request that does
            not fit beside the others waits; a single request always runs.
        num_threads: torch's threads; see `Worker`.

    Attributes:
        num_parameters: the number of parameters that each token is multiplied by: all except an embedding that is only
            looked up; of a mixture of experts those that a token is sent to.
        origin, revision: the folder or hub name that the model was loaded from, "" if it was made in memory, and the
            hub's commit, if any. dtype, device: names of its weights' type and device.

    Raises:
        ConfigurationError: the engine does not compute what the model computes (see `self_check`).
        MotesError: the model's logits are not finite. Its type is `error`.
    """

    role: ClassVar[str]
    """Its name in messages."""
    error: ClassVar[type[MotesError]]
    """The type of error that callers get when it fails."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Callable[[Tensor], Tensor],
        vocabulary: Vocabulary,
        max_cached_tokens: int | None,
        max_batch_tokens: int | None,
        num_threads: int | None,
        name: str,
    ) -> None:
        for option, number in (
            ("max_cached_tokens", max_cached_tokens),
            ("max_batch_tokens", max_batch_tokens),
            ("num_threads", num_threads),
        ):
            if number is not None:
                whole_number(option, number, least=0)
        super().__init__(f"motes-{name}", num_threads)
        body, dtype, device = model.get_decoder(), model.dtype, model.device
        fits = cache_budget(Runner.bytes_per_token(body.config, dtype), device)
        self.name = name
        self.origin: str = model.name_or_path or ""
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self.dtype, self.device = str(dtype).removeprefix("torch."), device.type
        self.vocabulary = vocabulary
        self.context_length = Runner.context_length(body.config)
        self.num_parameters = _count_parameters(model)
        self.max_batch_tokens = max_batch_tokens or fits
        self.tree = PrefixTree(Runner.pool_for(body.config, max_cached_tokens or fits, dtype, device))
        self._head = head
        self._num_tokens = int(body.config.vocab_size)
        self._runner = Runner(body, self.tree.pool, self.max_batch_tokens)
        try:
            self_check(model, head)
        except FloatingPointError as error:
            raise self.failure(error) from error

    def require_known(self, ids: Sequence[int]) -> None:
        """Check that the model has these tokens: its tokenizer may have more.

        Raises:
            ConfigurationError: it lacks one.
        """
        if (largest := max(ids, default=0)) >= self._num_tokens:
            token = self.vocabulary.tokenizer.convert_ids_to_tokens(largest)
            raise ConfigurationError(
                f"the text has token {largest}, {token!r}, and {self.name!r} knows {self._num_tokens}: its tokenizer "
                "or its chat template is another model's"
            )

    def failure(self, error: BaseException) -> MotesError:
        return self.error(f"the {self.role} {self.name!r} failed: {type(error).__name__}: {error}")

    def abandon(self) -> None:
        self.tree.clear()  # the failed round may have corrupted some of it
        self._runner.workspace.clear()

    def rest(self) -> None:
        self._runner.workspace.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError if the stored prefixes or the workspace are inconsistent. For tests, between calls."""
        with self._round:
            self.tree.check_integrity()
            assert self.busy or self._runner.workspace.num_rows == 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Text(Protocol):
    """A request about a text, of these tokens."""

    ids: list[int]

    @property
    def settled(self) -> bool: ...


TextT = TypeVar("TextT", bound=Text)


def take_similar(waiting: list[TextT], max_rows: int, max_tokens: int) -> list[TextT]:
    """Take the next batch out of the waiting requests: the one that has waited longest, and as many of about its length
    as fit, with rows × length at most `max_tokens`. So a request waits for no more batches than there are requests
    before it. Settled ones are dropped."""
    pending = [request for request in waiting if not request.settled]
    nearest = sorted(pending, key=lambda request: abs(len(request.ids) - len(pending[0].ids)))
    group: list[TextT] = []
    longest = 0
    for request in nearest[:max_rows]:
        longest = max(longest, len(request.ids))
        if group and (len(group) + 1) * longest > max_tokens:
            break
        group.append(request)
    in_group = set(map(id, group))
    waiting[:] = [request for request in pending if id(request) not in in_group]
    return group


def _count_parameters(model: PreTrainedModel) -> int:
    total = sum(
        _active_size(name, parameter, model.get_decoder().config) for name, parameter in model.named_parameters()
    )
    embedding = next(model.get_input_embeddings().parameters())
    head = model.get_output_embeddings()
    shared = head is not None and any(parameter is embedding for parameter in head.parameters())
    return total if shared else total - embedding.numel()


def _active_size(name: str, parameter: Tensor, config: PretrainedConfig) -> int:
    """The size of a parameter; of stacked experts only the share that each token is sent to. Routers and shared experts
    count in full."""
    if ".experts." not in name:
        return parameter.numel()
    sent_to = next(
        (number for field in EXPERTS_PER_TOKEN if isinstance(number := getattr(config, field, None), int)),
        len(parameter),
    )
    return parameter.numel() // len(parameter) * min(sent_to, len(parameter))
