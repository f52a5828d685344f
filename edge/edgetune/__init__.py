"""From records to boxes on a device: fine-tune, merge, calibrate, export, measure.

Each verb of the command line is a function here, with the same options by the same names:

    import edgetune

    adapter = edgetune.train(checkpoint="base", data="train.jsonl", output="runs/adapter", epochs=3)
    merged = edgetune.merge(checkpoint="base", adapter=adapter.folder, output="runs/merged")

Two names differ from their verbs: `eval`, a builtin of Python, is `evaluate`; and `run` is `load`, which returns what
answers. docs/python.md goes through all of it.

Importing this package loads nothing heavy; a function is imported when it is first asked for. What the stages remark
goes to the logger "edgetune".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetune_runtime._version import __version__

if TYPE_CHECKING:
    from edgetune.api import data as data
    from edgetune.api.bench import BenchOptions as BenchOptions
    from edgetune.api.bench import MergeResultsOptions as MergeResultsOptions
    from edgetune.api.bench import bench as bench
    from edgetune.api.bench import merge_results as merge_results
    from edgetune.api.calibrate import CalibrateOptions as CalibrateOptions
    from edgetune.api.calibrate import calibrate as calibrate
    from edgetune.api.demo import Demo as Demo
    from edgetune.api.demo import DemoOptions as DemoOptions
    from edgetune.api.demo import demo as demo
    from edgetune.api.evaluate import EvaluateOptions as EvaluateOptions
    from edgetune.api.evaluate import Evaluation as Evaluation
    from edgetune.api.evaluate import ExportAnswersOptions as ExportAnswersOptions
    from edgetune.api.evaluate import evaluate as evaluate
    from edgetune.api.evaluate import export_answers as export_answers
    from edgetune.api.export import Exported as Exported
    from edgetune.api.export import ExportOptions as ExportOptions
    from edgetune.api.export import export as export
    from edgetune.api.export import export_formats as export_formats
    from edgetune.api.gate import Gated as Gated
    from edgetune.api.gate import GateOptions as GateOptions
    from edgetune.api.gate import gate as gate
    from edgetune.api.grpo import GrpoOptions as GrpoOptions
    from edgetune.api.grpo import grpo as grpo
    from edgetune.api.label import LabelOptions as LabelOptions
    from edgetune.api.label import MergeProposalsOptions as MergeProposalsOptions
    from edgetune.api.label import label as label
    from edgetune.api.label import merge_proposals as merge_proposals
    from edgetune.api.load import LoadOptions as LoadOptions
    from edgetune.api.load import load as load
    from edgetune.api.measure import Measurement as Measurement
    from edgetune.api.merge import MergeOptions as MergeOptions
    from edgetune.api.merge import merge as merge
    from edgetune.api.train import TrainOptions as TrainOptions
    from edgetune.api.train import train as train
    from edgetune.api.tune_budget import TuneBudgetOptions as TuneBudgetOptions
    from edgetune.api.tune_budget import TunedBudget as TunedBudget
    from edgetune.api.tune_budget import tune_budget as tune_budget
    from edgetune_core.stage import StageResult as StageResult

_HOME = {
    "data": "edgetune.api.data",
    "CalibrateOptions": "edgetune.api.calibrate",
    "calibrate": "edgetune.api.calibrate",
    "Demo": "edgetune.api.demo",
    "DemoOptions": "edgetune.api.demo",
    "demo": "edgetune.api.demo",
    "ExportOptions": "edgetune.api.export",
    "export": "edgetune.api.export",
    "export_formats": "edgetune.api.export",
    "Exported": "edgetune.api.export",
    "GrpoOptions": "edgetune.api.grpo",
    "grpo": "edgetune.api.grpo",
    "GateOptions": "edgetune.api.gate",
    "Gated": "edgetune.api.gate",
    "gate": "edgetune.api.gate",
    "LabelOptions": "edgetune.api.label",
    "MergeProposalsOptions": "edgetune.api.label",
    "label": "edgetune.api.label",
    "merge_proposals": "edgetune.api.label",
    "LoadOptions": "edgetune.api.load",
    "load": "edgetune.api.load",
    "BenchOptions": "edgetune.api.bench",
    "EvaluateOptions": "edgetune.api.evaluate",
    "Evaluation": "edgetune.api.evaluate",
    "ExportAnswersOptions": "edgetune.api.evaluate",
    "Measurement": "edgetune.api.measure",
    "MergeResultsOptions": "edgetune.api.bench",
    "bench": "edgetune.api.bench",
    "evaluate": "edgetune.api.evaluate",
    "export_answers": "edgetune.api.evaluate",
    "merge_results": "edgetune.api.bench",
    "MergeOptions": "edgetune.api.merge",
    "merge": "edgetune.api.merge",
    "TrainOptions": "edgetune.api.train",
    "train": "edgetune.api.train",
    "TuneBudgetOptions": "edgetune.api.tune_budget",
    "TunedBudget": "edgetune.api.tune_budget",
    "tune_budget": "edgetune.api.tune_budget",
    "StageResult": "edgetune_core.stage",
}

_MODULES = ("data",)
"""Names that are modules of several functions."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_HOME[name])
    return module if name in _MODULES else getattr(module, name)
