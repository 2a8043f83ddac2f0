"""The lab: plan an evaluation, run it so that nothing is lost, summarise it honestly, draw it."""

from motes.lab.advice import Advice, advise, write_advice
from motes.lab.calibration import HeldOut, Labelled, calibrate, read_labelled, score_labelled
from motes.lab.comparing import Comparison, compare, write_comparison
from motes.lab.corruption import CorruptedReward
from motes.lab.evaluation import Evaluation, PlannedRun, Shard, derive_seed
from motes.lab.exporting import export
from motes.lab.grading import Regraded, regrade
from motes.lab.labelled_steps import LabelledSteps, StepFile
from motes.lab.merging import Merged, merge
from motes.lab.method_spec import method_from_spec
from motes.lab.planning import Estimate, estimate
from motes.lab.presets import Preset
from motes.lab.racing import Race, race
from motes.lab.rating import Rating, write_rating
from motes.lab.rating_run import rate
from motes.lab.records import RecordStore, RunRecord, read_records
from motes.lab.regime import Regime
from motes.lab.report import Cell, Report, write_report
from motes.lab.run import Progress, evaluate
from motes.lab.statistics import Interval, proportion_interval
from motes.lab.traces import Trace, TraceStore, read_traces

__all__ = [
    "Advice",
    "Cell",
    "Comparison",
    "CorruptedReward",
    "Estimate",
    "Evaluation",
    "HeldOut",
    "Interval",
    "Labelled",
    "LabelledSteps",
    "Merged",
    "PlannedRun",
    "Preset",
    "Progress",
    "Race",
    "Rating",
    "RecordStore",
    "Regime",
    "Regraded",
    "Report",
    "RunRecord",
    "Shard",
    "StepFile",
    "Trace",
    "TraceStore",
    "advise",
    "calibrate",
    "compare",
    "derive_seed",
    "estimate",
    "evaluate",
    "export",
    "merge",
    "method_from_spec",
    "proportion_interval",
    "race",
    "rate",
    "read_labelled",
    "read_records",
    "read_traces",
    "regrade",
    "score_labelled",
    "write_advice",
    "write_comparison",
    "write_rating",
    "write_report",
]
