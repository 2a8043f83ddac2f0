"""Hide keys in the texts that an evaluation writes about itself: its configuration, its provenance."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "[API key]"

SECRET = r"api[_-]?key|access[_-]?key|token|secret|password|passwd|credentials?"
NAMED = re.compile(rf"([\w-]*(?:{SECRET})=|[?&]key=|--[\w-]*(?:{SECRET})\s+)(['\"]?)[^\s&'\"]+", re.IGNORECASE)
"""A key that follows its name: `?api_key=…`, `HF_TOKEN=…`, `--api-key …`."""
IN_ADDRESS = re.compile(r"(?<=//)[^/\s@#?'\"]*:[^/\s@'\"]*(?=@)")
"""A user name and password in an address."""
BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
ISSUED = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{16}\b"
)
"""Keys that can be recognised by their form."""
VARIABLE = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE)
"""Names of environment variables that hold keys."""
MIN_LENGTH = 8
"""Only values of variables with at least so many characters are hidden: shorter ones occur in ordinary words."""


def without_keys(text: str) -> str:
    """A text with its keys hidden; a key is recognised by its name, by its form or by an environment variable.

    The name of a variable that holds a key, as in `api_key_env=NAME`, stays.
    """
    for name, value in os.environ.items():
        if len(value) >= MIN_LENGTH and VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    text = NAMED.sub(rf"\1\2{HIDDEN}", text.replace(HIDDEN, "\0")).replace("\0", HIDDEN)
    text = IN_ADDRESS.sub(HIDDEN, text)
    text = BEARER.sub(rf"\1{HIDDEN}", text)
    return ISSUED.sub(HIDDEN, text)


def without_keys_in(value: Any) -> Any:
    """A value that JSON can hold, with the keys in all its texts hidden."""
    if isinstance(value, str):
        return without_keys(value)
    if isinstance(value, dict):
        return {name: without_keys_in(item) for name, item in value.items()}
    return [without_keys_in(item) for item in value] if isinstance(value, (list, tuple)) else value
