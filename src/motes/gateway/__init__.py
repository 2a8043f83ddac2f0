"""The gateway: one OpenAI-compatible endpoint that makes the models behind it answer better."""

from importlib.util import find_spec

from motes.errors import MissingExtraError

if not (find_spec("fastapi") and find_spec("prometheus_client")):
    raise MissingExtraError("the gateway", "serve")
