"""What models behind HTTP share: addresses, a pooled client with retries, and the identity of servers."""

from motes.http.address import Address
from motes.http.client import Client, Retries, Timeouts
from motes.http.events import Events
from motes.http.failures import may_be_of_one
from motes.http.options import flag, whole_number
from motes.http.parsing import MALFORMED, excerpt, unknown_form, value_at
from motes.http.served import ServedModel
from motes.http.server import Server, identify
from motes.http.sync import now

__all__ = [
    "MALFORMED",
    "Address",
    "Client",
    "Events",
    "Retries",
    "ServedModel",
    "Server",
    "Timeouts",
    "excerpt",
    "flag",
    "identify",
    "may_be_of_one",
    "now",
    "unknown_form",
    "value_at",
    "whole_number",
]
