"""The common base of models behind HTTP: addresses, a pooled client with retries, and the identity of servers."""

from motes.transport.address import Address, flag, whole_number
from motes.transport.client import Client, Retries, Timeouts
from motes.transport.events import Events
from motes.transport.failures import MALFORMED, excerpt, may_be_of_one, unknown_form, value_at, whole_number_of
from motes.transport.served import ServedModel, now
from motes.transport.server import Server, identify

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
    "whole_number_of",
]
