"""All settings with their defaults and descriptions, one file per section.

`make docs` generates config/schema.json and config/README.md from them. Settings determine results;
the resources of rules and the profiles determine how jobs use a machine (micro-batches, workers,
memory, time).
"""

from ghosttrack.settings.ablation import AblationSettings, TuningSettings
from ghosttrack.settings.activations import ActivationSettings
from ghosttrack.settings.corpus import CorpusSettings
from ghosttrack.settings.dataset import ConflictSettings, DatasetSettings
from ghosttrack.settings.detection import DetectionSettings
from ghosttrack.settings.evaluation import EvaluationSettings
from ghosttrack.settings.external import DetectorClass, ExternalSettings, ScoreTable
from ghosttrack.settings.generation import GenerationSettings
from ghosttrack.settings.inference import DEFAULT_INFERENCE, InferenceSettings
from ghosttrack.settings.model import DimensionSettings, SourceSettings
from ghosttrack.settings.plan import PlanSettings
from ghosttrack.settings.report import ReportSettings
from ghosttrack.settings.run import Settings
from ghosttrack.settings.sae import SaeSettings, SweepSettings
from ghosttrack.settings.score import ScoreSettings
from ghosttrack.settings.section import MOST_SHARDS, Section, section_type
from ghosttrack.settings.tracking import OriginalTrackingSettings, TrackingSettings

__all__ = [
    "DEFAULT_INFERENCE",
    "MOST_SHARDS",
    "AblationSettings",
    "ActivationSettings",
    "ConflictSettings",
    "CorpusSettings",
    "DatasetSettings",
    "DetectionSettings",
    "DetectorClass",
    "DimensionSettings",
    "EvaluationSettings",
    "ExternalSettings",
    "GenerationSettings",
    "InferenceSettings",
    "OriginalTrackingSettings",
    "PlanSettings",
    "ReportSettings",
    "SaeSettings",
    "ScoreSettings",
    "ScoreTable",
    "Section",
    "Settings",
    "SourceSettings",
    "SweepSettings",
    "TrackingSettings",
    "TuningSettings",
    "section_type",
]
