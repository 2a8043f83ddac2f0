"""What models behind HTTP share: an address, one pooled client that tries again, who answers there, and what concurrent
calls ask for, collected."""

from motes.http.address import Address
from motes.http.client import Client, Retries, Timeouts
from motes.http.events import Events
from motes.http.options import flag, whole_number
from motes.http.server import Server, identify
from motes.http.sync import now
from motes.http.turns import Ask, Turns

__all__ = [
    "Address",
    "Ask",
    "Client",
    "Events",
    "Retries",
    "Server",
    "Timeouts",
    "Turns",
    "flag",
    "identify",
    "now",
    "whole_number",
]
