"""Open language models, reward models and tasks by name."""

from motes.opening.models import check_spec, language_model, reward_model, serves_rewards
from motes.opening.once import Opened, close_models, open_once
from motes.opening.specs import attribute, is_address, parse_spec
from motes.opening.tasks import answer_rule, task

__all__ = [
    "Opened",
    "answer_rule",
    "attribute",
    "check_spec",
    "close_models",
    "is_address",
    "language_model",
    "open_once",
    "parse_spec",
    "reward_model",
    "serves_rewards",
    "task",
]
