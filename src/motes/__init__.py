"""Inference-time scaling of language models by particle-based Monte Carlo."""

from motes import aliases
from motes.api import answer_rule, asolve, close_models, language_model, reward_model, solve
from motes.conformance import acheck_language_model, acheck_reward_model, check_language_model, check_reward_model
from motes.core import Failure, Problem, Record, Result, Sampling, Scores, Step, Trajectory, Usage
from motes.errors import MotesError
from motes.methods import (
    DVTS,
    METHODS,
    AdaptiveFilter,
    AdaptiveMajority,
    BeamSearch,
    BestOfN,
    DeepConf,
    EntropicParticleFilter,
    Greedy,
    Islands,
    Majority,
    ParallelDistillRefine,
    ParallelTempering,
    ParticleFilter,
    ParticleGibbs,
    PowerFilter,
    Rebase,
    Refine,
    WeightedBestOfN,
)
from motes.models.tabular import TabularLanguageModel
from motes.prompts import Prompt, prompt
from motes.protocols import LanguageModel, RewardModel
from motes.rewards.calibration import CalibratedReward, Calibration
from motes.rewards.confidence import ConfidenceReward
from motes.rewards.function import FunctionReward
from motes.rewards.judge import Judge
from motes.rewards.mixture import MixedReward, Mixture
from motes.rewards.rubric import Rubric
from motes.rewards.tabular import TabularReward

__version__ = "0.2.0"
aliases.install()

__all__ = [
    "DVTS",
    "METHODS",
    "AdaptiveFilter",
    "AdaptiveMajority",
    "BeamSearch",
    "BestOfN",
    "CalibratedReward",
    "Calibration",
    "ConfidenceReward",
    "DeepConf",
    "EntropicParticleFilter",
    "Failure",
    "FunctionReward",
    "Greedy",
    "Islands",
    "Judge",
    "LanguageModel",
    "Majority",
    "MixedReward",
    "Mixture",
    "MotesError",
    "ParallelDistillRefine",
    "ParallelTempering",
    "ParticleFilter",
    "ParticleGibbs",
    "PowerFilter",
    "Problem",
    "Prompt",
    "Rebase",
    "Record",
    "Refine",
    "Result",
    "RewardModel",
    "Rubric",
    "Sampling",
    "Scores",
    "Step",
    "TabularLanguageModel",
    "TabularReward",
    "Trajectory",
    "Usage",
    "WeightedBestOfN",
    "acheck_language_model",
    "acheck_reward_model",
    "answer_rule",
    "asolve",
    "check_language_model",
    "check_reward_model",
    "close_models",
    "language_model",
    "prompt",
    "reward_model",
    "solve",
]
