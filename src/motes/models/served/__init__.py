"""Language models behind HTTP: any OpenAI-compatible server, each at the best that it can do."""

from motes.models.served.capabilities import Capabilities
from motes.models.served.model import HTTPLanguageModel

__all__ = ["Capabilities", "HTTPLanguageModel"]
