"""Why servers say that an answer ended, and what that means for a step."""

from __future__ import annotations

from motes.errors import BadResponseError, UnknownFormError
from motes.types import StepEnd

ENDED = frozenset(
    {
        # The model ended its answer. None and "" are said by servers that give no reason.
        *("", "stop", "eos", "eos_token", "eos_found", "end_turn", "endoftext", "stop_token", "complete", "completed"),
        *("finished", "done"),
        # A stop text did, in formats that do not say which: what they are sent ends answers, not steps.
        *("stop_sequence", "stop_str", "word", "matched_stop"),
        # It called a tool: none was offered, but its turn has ended.
        *("tool_calls", "tool_call", "tool_use", "function_call", "malformed_function_call"),
        # The server wants nothing more of this answer: what is there is the answer.
        *("content_filter", "content_filtered", "safety", "recitation", "refusal", "blocklist", "prohibited_content"),
        *("spii", "sensitive", "guardrail_intervened", "error_toxic", "repetition", "repetition_detected"),
    }
)
"""Reasons of an answer that is over. Letters count as small ones."""

CUT = frozenset(
    {
        *("length", "max_tokens", "max_length", "max_output_tokens", "max_new_tokens", "limit", "token_limit"),
        *("model_length", "model_context_window_exceeded", "context_length", "max_context", "incomplete"),
    }
)
"""Reasons of an answer that a limit on tokens cut."""

BROKEN = frozenset(
    {
        *("abort", "aborted", "cancel", "cancelled", "canceled", "error", "failed", "timeout", "time_limit", "none"),
        *("network_error", "insufficient_system_resource", "internal_error", "overloaded", "load", "unload"),
        *("not_finished", "error_limit"),
    }
)
"""Reasons of an answer that the server did not bring to its end: it is asked for again."""


def end_of(reason: object, url: str, *, is_full: bool = False, by_text: bool = False) -> StepEnd:
    """What ended an answer.

    Args:
        reason: in the server's words.
        is_full: whether the answer has as many tokens as it may have, for servers that give no reason.
        by_text: whether a text that ends a step is known to have ended it.

    Raises:
        BadResponseError: the server broke the answer off.
        UnknownFormError: no such reason is known.
    """
    name = "" if reason is None else str(reason).strip().lower()
    if name in CUT or (not name and is_full and not by_text):
        return "length"
    if name in ENDED:
        return "step" if by_text else "eos"
    if name in BROKEN:
        raise BadResponseError(f"{url} broke off an answer ({name}): look into its log")
    raise UnknownFormError(
        f"{url} ended an answer for the reason {name[:80]!r}, which motes does not know: name the right `engine`, or "
        "use another server"
    )
