"""The token that begins a text stands before a prompt once, whoever renders it and whoever adds it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engines import TGI, LlamaCpp, connect, encode
from motes import Problem, Sampling, Step, Trajectory
from motes.models.served.prompts import TokenizerRenderer
from motes.vocabulary import Vocabulary
from prm_families import llama_3

ROOT = Trajectory(Problem("How many?"))
BOS = "<user>"  # which every conversation of the scripted servers begins with
(BOS_ID,) = encode(BOS)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("spells", [False, True])
def test_llama_cpp(adds: bool, spells: bool):
    class Begins(LlamaCpp):
        def apply_template(self, body: dict[str, Any]) -> Any:
            prompt = super().apply_template(body)["prompt"]
            return {"prompt": prompt if spells else prompt.removeprefix(BOS)}

        def tokenize(self, body: dict[str, Any]) -> Any:
            ids = encode(body["content"])
            return {"tokens": [BOS_ID, *ids] if adds and body["add_special"] else ids}

    async def main() -> list[int]:
        lm = await connect(Begins())
        await lm.extend([ROOT], Sampling(max_step_tokens=2), [1])
        ids: list[int] = lm.client._transport.handler.asked[-1]["prompt"]  # type: ignore[union-attr]
        return ids

    ids = asyncio.run(main())
    assert ids.count(BOS_ID) == (1 if adds or spells else 0)
    assert ids[: ids.count(BOS_ID)] == [BOS_ID] * ids.count(BOS_ID)


@pytest.mark.parametrize("adds", [False, True])
def test_tgi(adds: bool):
    class Begins(TGI):
        def tokenize(self, body: dict[str, Any]) -> Any:
            tokens = super().tokenize(body)
            return [{"id": BOS_ID, "text": BOS}, *tokens] if adds else tokens

    async def main() -> str:
        lm = await connect(Begins())
        await lm.extend([ROOT], Sampling(max_step_tokens=2), [1])
        return str(lm.client._transport.handler.asked[-1]["inputs"])  # type: ignore[union-attr]

    assert asyncio.run(main()).startswith(BOS) != adds


def test_a_tokenizer_on_this_side_spells_what_a_server_reads_as_its_tokens():
    tokenizer = llama_3()
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id, "this one adds it by itself"
    vocabulary = Vocabulary(tokenizer)
    problem = Problem("2+2?")
    ids = vocabulary.prompt(problem)

    async def main() -> None:
        renderer = TokenizerRenderer(vocabulary, takes_ids=False)
        prompt = await renderer.prompt(problem)
        assert prompt.text is not None
        assert tokenizer.encode(prompt.text) == ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert await renderer.count(prompt.text) == len(ids)
        more = await renderer.extended(Trajectory(problem).extend(Step("so", "step")))
        assert more.text == prompt.text + "so"
        by_ids = TokenizerRenderer(vocabulary, takes_ids=True)
        assert (await by_ids.prompt(problem)).ids == tuple(ids)
        spells = await by_ids.extended(Trajectory(problem).extend(Step(f"{tokenizer.bos_token}so", "step")))
        assert spells.ids is not None
        assert spells.ids.count(tokenizer.bos_token_id) == 1, "what a step spells is text"

    asyncio.run(main())
