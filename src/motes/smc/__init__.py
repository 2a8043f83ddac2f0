"""Sequential Monte Carlo in numpy: weights as values, resampling as functions. Knows nothing of language models."""

from motes.smc.resampling import RESAMPLING, Resampling, resample
from motes.smc.weights import Weights

__all__ = ["RESAMPLING", "Resampling", "Weights", "resample"]
