"""Problems, partial answers, sampling, costs and results: the values that everything else works with."""

from motes.core.certainty import Certainty
from motes.core.hidden import HiddenStates
from motes.core.problem import Problem, Role
from motes.core.result import FloatArray, IntArray, Moves, Record, Result
from motes.core.sampling import LONGEST_TEXT, MOST_TEXTS, Sampling, SamplingOptions
from motes.core.trajectory import ANCHORED, STOPS, Failure, Finish, Step, StepEnd, Stop, Trajectory
from motes.core.usage import NEUTRAL, Reads, Scores, Usage

__all__ = [
    "ANCHORED",
    "LONGEST_TEXT",
    "MOST_TEXTS",
    "NEUTRAL",
    "STOPS",
    "Certainty",
    "Failure",
    "Finish",
    "FloatArray",
    "HiddenStates",
    "IntArray",
    "Moves",
    "Problem",
    "Reads",
    "Record",
    "Result",
    "Role",
    "Sampling",
    "SamplingOptions",
    "Scores",
    "Step",
    "StepEnd",
    "Stop",
    "Trajectory",
    "Usage",
]
