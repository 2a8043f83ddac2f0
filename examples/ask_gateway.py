"""Ask a gateway with the `openai` client, with more particles than its default, and print the answer as it arrives.

motes serve                                    # in another shell; the bundled models
python examples/ask_gateway.py "Some friends collect plums. Carl owns 10. …" --particles 32
"""

from __future__ import annotations

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("question")
    parser.add_argument("--address", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none", help="a key of the gateway's configuration, if it has keys")
    parser.add_argument("--model", default="tiny", help="a virtual model of the gateway")
    parser.add_argument("--particles", type=int, default=32)
    options = parser.parse_args()

    client = OpenAI(base_url=options.address, api_key=options.key)
    stream = client.chat.completions.create(
        model=options.model,
        messages=[{"role": "user", "content": options.question}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"motes": {"particles": options.particles}},
    )
    for chunk in stream:  # a step is sent once all particles agree on it
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            print(f"\n\n{chunk.usage.completion_tokens} tokens of all particles")


if __name__ == "__main__":
    main()
