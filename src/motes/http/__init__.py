"""What models behind HTTP share: an address, one pooled client that tries again, who answers there, and what concurrent
calls ask for, collected."""

from motes.http.address import Address
from motes.http.client import Client, Retries, Timeouts
from motes.http.server import Server, identify
from motes.http.sync import now
from motes.http.turns import Ask, Turns

__all__ = ["Address", "Ask", "Client", "Retries", "Server", "Timeouts", "Turns", "identify", "now"]
