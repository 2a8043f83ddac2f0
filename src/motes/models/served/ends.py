"""Finish reasons of servers, and what each means for a step."""

from __future__ import annotations

from motes.core import StepEnd
from motes.errors import BadResponseError, UnknownFormError

ENDED = frozenset(
    {
        # The model ended its answer. Servers that give no reason send null or "".
        *("", "stop", "eos", "eos_token", "eos_found", "end_turn", "endoftext", "stop_token", "complete", "completed"),
        *("finished", "done"),
        # A stop string ended it, in formats that do not name the string. Requests in these formats contain stop texts
        # but no delimiters, so the answer has ended.
        *("stop_sequence", "stop_str", "word", "matched_stop"),
        # The model called a tool. No request offers one, but the model's turn is over.
        *("tool_calls", "tool_call", "tool_use", "function_call", "malformed_function_call"),
        # The server stopped the answer for its content: the text so far is the answer.
        *("content_filter", "content_filtered", "safety", "recitation", "refusal", "blocklist", "prohibited_content"),
        *("spii", "sensitive", "guardrail_intervened", "error_toxic", "repetition", "repetition_detected"),
    }
)
"""Reasons of a complete answer, in lower case."""

CUT = frozenset(
    {
        *("length", "max_tokens", "max_length", "max_output_tokens", "max_new_tokens", "limit", "token_limit"),
        *("model_length", "model_context_window_exceeded", "context_length", "max_context", "incomplete"),
    }
)
"""Reasons of an answer that reached a limit on tokens."""

BROKEN = frozenset(
    {
        *("abort", "aborted", "cancel", "cancelled", "canceled", "error", "failed", "timeout", "time_limit", "none"),
        *("network_error", "insufficient_system_resource", "internal_error", "overloaded", "load", "unload"),
        *("not_finished", "error_limit"),
    }
)
"""Reasons of an answer that the server did not complete: the request is sent again."""


def end_of(reason: object, url: str, *, is_full: bool = False, by_text: bool = False) -> StepEnd:
    """What ended an answer, by the server's finish reason, which may be of any type.

    Args:
        is_full: whether the answer has reached its limit of tokens; decides where the server gives no reason.
        by_text: whether the server says that a stop string ended the answer.

    Raises:
        BadResponseError: the server did not complete the answer.
        UnknownFormError: the reason is in none of the tables above.
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
