"""Language models behind HTTP: any OpenAI-compatible server, each used by the best of its routes."""

from motes.models.served.model import HTTPLanguageModel
from motes.models.served.probe import Capabilities

__all__ = ["Capabilities", "HTTPLanguageModel"]
