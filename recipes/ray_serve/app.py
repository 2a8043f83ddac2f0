"""A language model in several replicas of vLLM behind Ray Serve. Each particle goes to the replica that has its prefix.

    pip install 'ray[serve,llm]' vllm                      # on every node, which `ray start` joins to one cluster
    MODEL=Qwen/Qwen2.5-Math-1.5B-Instruct REPLICAS=4 serve run --working-dir . app:app
    motes doctor 'http://HEAD:8000/v1#lm?engine=vllm&tokenizer=Qwen/Qwen2.5-Math-1.5B-Instruct'

MODEL: a name or folder; REPLICAS: number of engines, a GPU each; ENGINE: more arguments of vLLM, as JSON; CPU=1:
engines without GPUs, for a trial.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.llm import LLMConfig, build_openai_app
from ray.serve.llm.request_router import PrefixCacheAffinityRouter


class TokenPrefixRouter(PrefixCacheAffinityRouter):  # type: ignore[misc]  # Ray's is untyped
    """Ray's prefix-affine router, extended to prompts of token ids.

    The original reads text only. For token ids it uses the empty text, finds no prefix and divides by its length
    (Ray 2.60). This one turns each token into a character, so that prefixes of tokens are prefixes of text. If a
    request has several prompts, which belong to one problem, the first one decides.
    """

    def _normalize_prompt_to_string(self, prompt: Any) -> str:
        while isinstance(prompt, list) and prompt and isinstance(prompt[0], list):
            prompt = prompt[0]
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return "".join(chr(0xE000 + token) for token in prompt)  # beyond the surrogates, which are no characters
        return super()._normalize_prompt_to_string(prompt)  # type: ignore[no-any-return]


CPU = {"accelerator_config": {"kind": "cpu"}, "placement_group_config": {"bundles": [{"CPU": 1}]}}

app = build_openai_app(
    {
        "llm_configs": [
            LLMConfig(
                model_loading_config={"model_id": "lm", "model_source": os.environ["MODEL"]},
                engine_kwargs=json.loads(os.environ.get("ENGINE", "{}")),
                deployment_config={
                    "num_replicas": int(os.environ.get("REPLICAS", "1")),
                    "max_ongoing_requests": 512,
                    "request_router_config": RequestRouterConfig(
                        request_router_class=TokenPrefixRouter,
                        # A replica with so many more requests than another gets no new ones, cached or not.
                        request_router_kwargs={"imbalanced_threshold": 64},
                    ),
                },
                **(CPU if os.environ.get("CPU") == "1" else {}),
            )
        ]
    }
)
