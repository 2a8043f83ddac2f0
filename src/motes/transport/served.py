"""What all models behind a server can do."""

from __future__ import annotations

from motes.transport.address import Address
from motes.transport.client import Client


class ServedModel:
    """A model behind a server.

    Args:
        client, address: of the server.
    """

    def __init__(self, client: Client, address: Address) -> None:
        self.client = client
        self.address = address

    async def ready(self) -> None:
        """Check once that the server answers.

        Raises:
            ServerError, UnauthorizedError: it does not.
        """
        await self.client.get(f"{self.address.base}/models", attempts=1)

    async def aclose(self) -> None:
        """Close this event loop's connections; otherwise they are closed with the loop."""
        await self.client.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r})"
