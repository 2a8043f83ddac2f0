"""What models behind HTTP share: an address, one pooled client that tries again, who answers there."""

from motes.http.address import Address
from motes.http.client import Client, Retries, Timeouts
from motes.http.server import Server, identify

__all__ = ["Address", "Client", "Retries", "Server", "Timeouts", "identify"]
