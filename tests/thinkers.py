"""Scripted servers of a model that thinks before it answers, with the manners of vLLM, SGLang and llama.cpp.

The model is a rule: a token for each character, and one for each tag and each of harmony's special tokens. It goes on
from wherever its text stands, so that a thought can be ended, or prolonged, from outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from engines import VLLM, Engine, LlamaCpp, SGLang
from motes.thoughts import FINAL, HARMONY, TAGS

EOS = "<eos>"
MARKS = (*TAGS, *TAGS.values(), *HARMONY)
TOKENS = (EOS, "<user>", "<end>", "<assistant>", "assistant", *MARKS, *map(chr, range(32, 127)), "\n")
IDS = {token: i for i, token in enumerate(TOKENS)}
SPECIAL = {EOS, "<user>", "<end>", "<assistant>", *HARMONY}


def encode(text: str, *, special: bool = True) -> list[int]:
    ids = []
    while text:
        known = (*SPECIAL, *TAGS, *TAGS.values()) if special else ()
        token = next((t for t in (*known, "assistant") if text.startswith(t)), text[0])
        ids.append(IDS[token])
        text = text[len(token) :]
    return ids


def decode(ids: list[int], *, special: bool) -> str:
    return "".join(TOKENS[i] for i in ids if special or TOKENS[i] not in SPECIAL)


def at_length(n: int, letters: str = "hm, ") -> Callable[[str], str | None]:
    """Thinks n characters, and then until its thought does not end with "Wait"."""

    def think(thought: str) -> str | None:
        return letters[len(thought) % len(letters)] if len(thought) < n or thought.endswith("Wait") else None

    return think


@dataclass
class Mind:
    """A model.

    Attributes:
        thinks: the next character of a thought after this much of it; None: it ends.
        answer: what it says then.
        opening: the tag that opens its thoughts; harmony's first token for that format; "" if it does not think.
        opened: whether its chat template opens the thought.
    """

    thinks: Callable[[str], str | None] = field(default_factory=lambda: at_length(40))
    answer: str = "So \\boxed{4}."
    opening: str = "<think>"
    opened: bool = False

    def prompt(self, messages: Any) -> str:
        turns = "".join(f"<user>{message['content']}<end>" for message in messages)
        begun = "<|start|>assistant" if self.opening == HARMONY[1] else "<assistant>"
        return turns + begun + (f"{self.opening}\n" if self.opened else "")

    def answer_in(self, prompt: str) -> str:
        begun = "<|start|>assistant" if self.opening == HARMONY[1] else "<assistant>"
        return prompt.partition(f"<end>{begun}")[2]

    def next(self, text: str) -> str:
        """The token after the answer so far."""
        if self.opening == HARMONY[1]:
            return self._next_in_harmony(text)
        if not self.opening:
            return self._say(text)
        if not text:
            return self.opening
        after = text.rpartition(TAGS[self.opening])[2]
        if self.opening in after:
            return self.thinks(after.partition(self.opening)[2]) or TAGS[self.opening]
        return self._say(after)

    def _next_in_harmony(self, text: str) -> str:
        start = "<|channel|>analysis<|message|>"
        if start.startswith(text) and text != start:
            return decode(encode(start)[len(encode(text)) :][:1], special=True)
        if FINAL in text:
            return self._say(text.partition(FINAL)[2], "<|return|>")
        begun = next(n for n in range(len(FINAL), -1, -1) if text.endswith(FINAL[:n]))
        if begun:
            return decode(encode(FINAL[begun:])[:1], special=True)
        return self.thinks(text.removeprefix(start)) or "<|end|>"

    def _say(self, said: str, end: str = EOS) -> str:
        said = said.lstrip("\n")
        return self.answer[len(said)] if len(said) < len(self.answer) else end

    def write(
        self, ids: list[int], limit: int, stops: list[str], *, special: bool
    ) -> tuple[list[int], str, str | None]:
        """The next tokens, how they end ("eos", "stop" or "length"), and the stop string."""
        answer = self.answer_in(decode(ids, special=True))
        written: list[int] = []
        for _ in range(limit):
            token = self.next(answer + decode(written, special=True))
            written.append(IDS[token])
            if token in (EOS, "<|return|>"):
                return written, "eos", None
            text = decode(written, special=special)
            if found := next((stop for stop in stops if stop in text), None):
                return written, "stop", found
        return written, "length", None


class Thinker(Engine):
    """What the three servers share."""

    mind = Mind()

    def draw_text(self, ids: list[int], limit: int, stops: Any, *, special: bool) -> Any:
        return self.mind.write(ids, limit, list(stops or ()), special=special)


class ThinkingVLLM(Thinker, VLLM):
    """Attributes: budgets: the values of `thinking_token_budget` that it was sent."""

    def tokenize(self, body: dict[str, Any]) -> Any:
        text = self.mind.prompt(body["messages"]) if "messages" in body else body["prompt"]
        return {"tokens": encode(text)}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"prompt": decode(body["tokens"], special=True)}

    def v1_completions(self, body: dict[str, Any]) -> Any:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        special = body.get("skip_special_tokens") is False
        drawn = [
            (ids, *self.draw_text(ids, body["max_tokens"], body.get("stop"), special=special))
            for ids in prompts
            for _ in range(body.get("n", 1))
        ]
        choices, events = [], []
        for i, (_, written, end, stop) in enumerate(drawn):
            shown = written[:-1] if end == "eos" and not body.get("include_stop_str_in_output") else written
            reason = {"finish_reason": "length" if end == "length" else "stop", "stop_reason": stop}
            text = decode(shown, special=special)
            choices.append({"index": i, "text": text, "token_ids": written, **reason})
            if "logprobs" in body:
                choices[-1]["logprobs"] = {"token_logprobs": [-0.5] * len(written)}
            for k, token in enumerate(written):
                last = reason if k == len(written) - 1 else {"finish_reason": None}
                piece = decode([token], special=special) if k < len(shown) else ""
                events.append({"choices": [{"index": i, "text": piece, "token_ids": [token], **last}]})
        completion = sum(len(written) for _, written, _, _ in drawn)
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": completion}
        if not body.get("stream"):
            return {"choices": choices, "usage": usage}
        return httpx2.Response(200, content=self.stream([*events, {"choices": [], "usage": usage}]))


class ThinkingSGLang(Thinker, SGLang):
    def tokenize(self, body: dict[str, Any]) -> Any:
        return {"tokens": encode(self.mind.prompt(body["messages"]) if "messages" in body else body["prompt"])}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"text": decode(body["tokens"], special=not body.get("skip_special_tokens", True))}

    def generate(self, body: dict[str, Any]) -> Any:
        sampling = body["sampling_params"]
        special = sampling.get("skip_special_tokens") is False
        limit, stops = sampling["max_new_tokens"], sampling["stop"]
        written, end, stop = self.draw_text(body["input_ids"], limit, stops, special=special)
        reason = {"type": "length"} if end == "length" else {"type": "stop", "matched": stop or written[-1]}

        def so_far(n: int) -> dict[str, Any]:
            meta = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": n}
            meta["finish_reason"] = reason if n == len(written) else None
            return {"text": decode(written[:n], special=special), "output_ids": written[:n], "meta_info": meta}

        events = [so_far(n) for n in range(1, len(written) + 1)]
        return httpx2.Response(200, content=self.stream(events)) if body["stream"] else events[-1]


class ThinkingLlamaCpp(Thinker, LlamaCpp):
    def apply_template(self, body: dict[str, Any]) -> Any:
        return {"prompt": self.mind.prompt(body["messages"])}

    def tokenize(self, body: dict[str, Any]) -> Any:
        return {"tokens": encode(body["content"], special=body["parse_special"])}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"content": decode(body["tokens"], special=True)}

    def completion(self, body: dict[str, Any]) -> Any:
        kept = {IDS[token] for token in body.get("preserved_tokens", ())}

        def text_of(ids: list[int]) -> str:
            return "".join(TOKENS[i] for i in ids if TOKENS[i] not in SPECIAL or i in kept)

        answers, events = [], []
        for i in range(body.get("n_cmpl", 1)):
            written, end, stop = self.draw_text(body["prompt"], body["n_predict"], body["stop"], special=bool(kept))
            last = {
                "index": i,
                "stop_type": {"eos": "eos", "stop": "word", "length": "limit"}[end],
                "stopping_word": stop or "",
                "tokens_predicted": len(written),
                "tokens_evaluated": len(body["prompt"]),
            }
            answers.append({**last, "content": text_of(written).removesuffix(stop or ""), "tokens": written})
            counts = itertools.count(1)
            events += [
                {"index": i, "content": text_of([t]), "tokens": [t], "stop": False, "tokens_predicted": next(counts)}
                for t in written
            ]
            events.append({**last, "content": "", "tokens": [], "stop": True})
        if body.get("stream"):
            return httpx2.Response(200, content=self.stream(events))
        return answers[::-1] if len(answers) > 1 else answers[0]


SERVERS: dict[str, Callable[[], Thinker]] = {
    "vllm": ThinkingVLLM,
    "sglang": type("Renders", (ThinkingSGLang,), {}),
    "llama.cpp": ThinkingLlamaCpp,
}
