"""Intruscope: what a fine-tune did to a model's weights, how much the model forgot, and what to do about it.

Every command is a function here: ``intruscope.scan(base, tuned)`` compares two models, ``intruscope.forget``
measures forgetting, ``intruscope.repair`` turns intruders down. :mod:`intruscope.linalg` works on single
matrices. Names are imported when they are first used, so ``import intruscope`` is quick and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import lazy_names

if TYPE_CHECKING:
    from intruscope import guidance, linalg
    from intruscope.attribution.where import forget_where
    from intruscope.compare import compare
    from intruscope.compare.records import CompareReport
    from intruscope.compare.settings import CompareSettings
    from intruscope.diagnose import diagnose
    from intruscope.diagnose.records import DiagnoseReport
    from intruscope.diagnose.settings import DiagnoseSettings
    from intruscope.engine.settings import RunOptions
    from intruscope.errors import IntruscopeError
    from intruscope.extract import extract
    from intruscope.extract.plan import ExtractPlan
    from intruscope.fitting.repair import fitted_repair
    from intruscope.fitting.settings import FitSettings
    from intruscope.forgetting.forget import forget, forget_fleet
    from intruscope.forgetting.records import FleetForgettingReport, ForgettingReport
    from intruscope.forgetting.settings import SkillSettings
    from intruscope.forgetting.tasks import load_task
    from intruscope.forgetting.where import WhereReport
    from intruscope.guidance.records import GuideReport
    from intruscope.guidance.run import guide
    from intruscope.guidance.settings import GuideSettings
    from intruscope.inspect import inspect
    from intruscope.inspect.records import InspectReport
    from intruscope.knowledge import knowledge
    from intruscope.knowledge.records import KnowledgeReport
    from intruscope.knowledge.settings import KnowledgeSettings
    from intruscope.merge import merge
    from intruscope.merge.plan import MergePlan
    from intruscope.merge.records import MergeReport
    from intruscope.merge.settings import MergeSettings
    from intruscope.profiling.profile import profile
    from intruscope.profiling.records import ProfileReport, ProfileSettings
    from intruscope.progress import Progress
    from intruscope.repair import repair
    from intruscope.repair.plan import RepairPlan
    from intruscope.sequence.chain import chain
    from intruscope.sequence.records import ChainReport, ChainSettings
    from intruscope.spectra.records import ScanReport, ScanSettings
    from intruscope.spectra.scan import plan, scan
    from intruscope.spectra.totals import ScanTotals
    from intruscope.sweep import sweep
    from intruscope.sweep.records import SweepReport, SweepSettings
    from intruscope.sweep.settings import MeasureOptions
    from intruscope.train.settings import TuneReport, TuneSettings
    from intruscope.train.tune import tune
    from intruscope.train.watch import IntruderWatch
    from intruscope.verify import verify
    from intruscope.verify.records import VerifyReport

__all__ = [
    "ChainReport",
    "ChainSettings",
    "CompareReport",
    "CompareSettings",
    "DiagnoseReport",
    "DiagnoseSettings",
    "ExtractPlan",
    "FitSettings",
    "FleetForgettingReport",
    "ForgettingReport",
    "GuideReport",
    "GuideSettings",
    "InspectReport",
    "IntruderWatch",
    "IntruscopeError",
    "KnowledgeReport",
    "KnowledgeSettings",
    "MeasureOptions",
    "MergePlan",
    "MergeReport",
    "MergeSettings",
    "ProfileReport",
    "ProfileSettings",
    "Progress",
    "RepairPlan",
    "RunOptions",
    "ScanReport",
    "ScanSettings",
    "ScanTotals",
    "SkillSettings",
    "SweepReport",
    "SweepSettings",
    "TuneReport",
    "TuneSettings",
    "VerifyReport",
    "WhereReport",
    "chain",
    "compare",
    "diagnose",
    "extract",
    "fitted_repair",
    "forget",
    "forget_fleet",
    "forget_where",
    "guidance",
    "guide",
    "inspect",
    "knowledge",
    "linalg",
    "load_task",
    "merge",
    "plan",
    "profile",
    "repair",
    "scan",
    "sweep",
    "tune",
    "verify",
]

_HOMES = {
    "ChainReport": "intruscope.sequence.records",
    "ChainSettings": "intruscope.sequence.records",
    "CompareReport": "intruscope.compare.records",
    "CompareSettings": "intruscope.compare.settings",
    "DiagnoseReport": "intruscope.diagnose.records",
    "DiagnoseSettings": "intruscope.diagnose.settings",
    "ExtractPlan": "intruscope.extract.plan",
    "FitSettings": "intruscope.fitting.settings",
    "FleetForgettingReport": "intruscope.forgetting.records",
    "ForgettingReport": "intruscope.forgetting.records",
    "GuideReport": "intruscope.guidance.records",
    "GuideSettings": "intruscope.guidance.settings",
    "InspectReport": "intruscope.inspect.records",
    "IntruderWatch": "intruscope.train.watch",
    "IntruscopeError": "intruscope.errors",
    "KnowledgeReport": "intruscope.knowledge.records",
    "KnowledgeSettings": "intruscope.knowledge.settings",
    "MeasureOptions": "intruscope.sweep.settings",
    "MergePlan": "intruscope.merge.plan",
    "MergeReport": "intruscope.merge.records",
    "MergeSettings": "intruscope.merge.settings",
    "ProfileReport": "intruscope.profiling.records",
    "ProfileSettings": "intruscope.profiling.records",
    "Progress": "intruscope.progress",
    "RepairPlan": "intruscope.repair.plan",
    "RunOptions": "intruscope.engine.settings",
    "ScanReport": "intruscope.spectra.records",
    "ScanSettings": "intruscope.spectra.records",
    "ScanTotals": "intruscope.spectra.totals",
    "SkillSettings": "intruscope.forgetting.settings",
    "SweepReport": "intruscope.sweep.records",
    "SweepSettings": "intruscope.sweep.records",
    "TuneReport": "intruscope.train.settings",
    "TuneSettings": "intruscope.train.settings",
    "VerifyReport": "intruscope.verify.records",
    "WhereReport": "intruscope.forgetting.where",
    "chain": "intruscope.sequence.chain",
    "compare": "",
    "diagnose": "",
    "extract": "",
    "fitted_repair": "intruscope.fitting.repair",
    "forget": "intruscope.forgetting.forget",
    "forget_fleet": "intruscope.forgetting.forget",
    "forget_where": "intruscope.attribution.where",
    "guidance": "",
    "guide": "intruscope.guidance.run",
    "inspect": "",
    "knowledge": "",
    "linalg": "",
    "load_task": "intruscope.forgetting.tasks",
    "merge": "",
    "plan": "intruscope.spectra.scan",
    "profile": "intruscope.profiling.profile",
    "repair": "",
    "scan": "intruscope.spectra.scan",
    "sweep": "",
    "tune": "intruscope.train.tune",
    "verify": "",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
