"""The lab: plan an evaluation, run it without losing results, summarise it, plot it."""

from motes.lab.corruption import CorruptedReward
from motes.lab.measure.advice import Advice, advise
from motes.lab.measure.calibration import HeldOut, Labelled, calibrate, read_labelled, score_labelled
from motes.lab.measure.cells import Cell
from motes.lab.measure.diagnosis import Diagnosis, diagnose
from motes.lab.measure.examination import Finding
from motes.lab.measure.labelled_steps import LabelledSteps, StepFile
from motes.lab.measure.racing import Race, race
from motes.lab.measure.rating import Rating
from motes.lab.measure.rating_run import rate
from motes.lab.measure.regime import Regime
from motes.lab.measure.statistics import Interval, proportion_interval
from motes.lab.run.evaluation import Evaluation, PlannedRun, Shard, derive_seed
from motes.lab.run.execution import Progress, evaluate
from motes.lab.run.grading import Regraded, regrade
from motes.lab.run.merging import Merged, merge
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.planning import Estimate, estimate
from motes.lab.run.presets import Preset
from motes.lab.run.records import RecordStore, RunRecord, read_records
from motes.lab.run.traces import Trace, TraceStore, read_traces
from motes.lab.show.comparing import Comparison, compare
from motes.lab.show.exporting import export
from motes.lab.show.report import Report
from motes.lab.show.writing import write_advice, write_comparison, write_rating, write_report

__all__ = [
    "Advice",
    "Cell",
    "Comparison",
    "CorruptedReward",
    "Diagnosis",
    "Estimate",
    "Evaluation",
    "Finding",
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
    "diagnose",
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
