"""All settings of one model in a run."""

from typing import Any, Self

from pydantic import Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.ablation import AblationSettings, TuningSettings
from ghosttrack.settings.activations import ActivationSettings
from ghosttrack.settings.corpus import CorpusSettings
from ghosttrack.settings.detection import DetectionSettings
from ghosttrack.settings.evaluation import EvaluationSettings
from ghosttrack.settings.generation import GenerationSettings
from ghosttrack.settings.model import DimensionSettings, SourceSettings
from ghosttrack.settings.plan import PlanSettings
from ghosttrack.settings.report import ReportSettings
from ghosttrack.settings.sae import SaeSettings, SweepSettings
from ghosttrack.settings.score import ScoreSettings
from ghosttrack.settings.section import LARGEST, LARGEST_SEED, MOST_SHARDS, Section, numbers
from ghosttrack.settings.tracking import TrackingSettings


class Settings(Section):
    """All settings of one model's run."""

    model: names.ModelName = Field(
        "smollm2-135m",
        description="A file in config/models, `both`, or a new name together with `model_path`. Names the results folder: letters, digits, dots, dashes and underscores.",
    )
    model_path: names.LocalPath | None = Field(
        None,
        description="Local directory with a transformers model; its results go to results/MODEL.",
    )
    preset: str | None = Field(
        None,
        description="A file in config/presets. `laptop`: little text and small batches, as in the embedded default; `seed`: the original work's data sets and, for the two GPT-2 models, its SAE batches.",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of everything random.")
    strict: bool = Field(
        False, description="Fail the run when a headline claim is not established."
    )
    datasets: list[names.DatasetName] = Field(
        [
            "cities", "capitals", "capitals_hard", "continents", "languages", "borders_hard", "us_cities",
            "element_symbol", "questions",
        ],
        min_length=1,
        description="Data sets to evaluate: files in config/datasets. A name has letters, digits, spaces and `_ . + - ( )`; `2024` or `true` needs quotation marks in a file.",
    )  # fmt: skip
    source: SourceSettings = Field(..., description="Where the model's weights come from.")
    dimensions: DimensionSettings | None = Field(
        None, description="Size of the model; read from config.json with `model_path`."
    )
    corpus: CorpusSettings = Field(
        CorpusSettings(), description="Text that the SAEs are trained on."
    )
    activations: ActivationSettings = Field(
        ActivationSettings(), description="What is read from the model."
    )
    sae: SaeSettings = Field(SaeSettings(), description="Sparse autoencoders.")
    sweep: SweepSettings = Field(
        SweepSettings(), description="Other k and other seeds beside the run's own (`sae_sweep`)."
    )
    tracking: TrackingSettings = Field(
        TrackingSettings(), description="Following features across layers."
    )
    ablations: AblationSettings = Field(
        AblationSettings(), description="Metrics of tracks, part by part (`ablations`)."
    )
    tuning: TuningSettings = Field(
        TuningSettings(), description="Other tracking settings beside the run's own (`tuning`)."
    )
    generation: GenerationSettings = Field(
        GenerationSettings(), description="The model's own answers."
    )
    detection: DetectionSettings = Field(
        DetectionSettings(), description="Detectors and their folds."
    )
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(), description="Intervals and verdicts."
    )
    report: ReportSettings = Field(ReportSettings(), description="What the pages show.")
    score: ScoreSettings = Field(
        ScoreSettings(), description="Scoring one's own texts: the target `scores`."
    )
    plan: PlanSettings = Field(
        PlanSettings(), description="What the machine offers, for waves and expected hours."
    )

    @property
    def layers(self) -> list[int]:
        """Analysed layers, ascending."""
        chosen = self.activations.layers
        return list(range(self._size.n_layers)) if chosen == "all" else list(chosen)

    @property
    def sweep_layers(self) -> list[int]:
        """Layers of the sweep, ascending."""
        return self.sweep.layers or [self.layers[len(self.layers) // 2]]

    @property
    def anchor(self) -> int | None:
        """The layer that all others' autoencoders begin with; None where none does."""
        if not self.sae.trained or self.sae.dictionaries != "anchored":
            return None
        return self.layers[len(self.layers) // 2] if self.sae.anchor is None else self.sae.anchor

    @property
    def _size(self) -> DimensionSettings:
        assert self.dimensions is not None  # the validator below has seen to it
        return self.dimensions

    @property
    def shards(self) -> int:
        """Extraction jobs of one layer."""
        return -(-self.contexts // self.contexts_per_shard)

    @property
    def contexts(self) -> int:
        """Packed training contexts."""
        return -(-self.corpus.tokens // self.corpus.context)

    @property
    def contexts_per_shard(self) -> int:
        """Contexts of a full extraction job."""
        return max(1, self.activations.rows_per_job // self.corpus.context)

    @model_validator(mode="after")
    def _plannable(self) -> Self:
        for key, value in numbers(self.model_dump(), ""):
            if abs(value) > LARGEST:
                raise ValueError(f"{key}: {value:.3g} is too large; expected at most {LARGEST:,}")
        if self.shards > MOST_SHARDS:
            rows = -(-self.contexts // MOST_SHARDS) * self.corpus.context
            tokens = MOST_SHARDS * self.contexts_per_shard * self.corpus.context
            raise ValueError(
                f"activations.rows_per_job: {self.activations.rows_per_job:,} tokens a job make {self.shards:,} extraction "
                f"jobs a layer, more than {MOST_SHARDS:,}; set it to at least {rows}, or corpus.tokens to at most {tokens}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dimensions is None:
            raise ValueError(
                "dimensions: n_layers and d_model of the model are needed in its file in config/models"
            )
        layers = self.activations.layers
        if layers != "all":
            wrong = [layer for layer in layers if not 0 <= layer < self.dimensions.n_layers]
            if wrong or layers != sorted(set(layers)) or not layers:
                raise ValueError(
                    f"activations.layers: {layers} must be ascending, without repeats, within 0..{self.dimensions.n_layers - 1}"
                )
        named: dict[str, list[Any]] = {
            "datasets": [*self.datasets], "tracking.variants": [*self.tracking.variants], "sweep.layers": self.sweep_layers,
            "sweep.k": self.sweep.k, "sweep.seeds": self.sweep.seeds, "detection.fold_seeds": self.detection.fold_seeds,
        }  # fmt: skip
        for key, values in named.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: {values} names one twice")
        if len({name.casefold() for name in self.datasets}) < len(self.datasets):
            raise ValueError(
                f"datasets: {self.datasets} holds names that differ only in capital letters, which some disks store as "
                "one folder; rename one"
            )
        if foreign := set(self.sweep_layers) - set(self.layers):
            raise ValueError(
                f"sweep.layers: {min(foreign)} is not among the analysed layers (activations.layers)"
            )
        if min(self.detection.fold_seeds) < 0 or max(self.detection.fold_seeds) > LARGEST_SEED:
            raise ValueError(
                f"detection.fold_seeds: {self.detection.fold_seeds} must lie within 0..{LARGEST_SEED}"
            )
        if min(self.sweep.k) < 1 or min(self.sweep.seeds) < 0:
            raise ValueError(
                f"sweep: k {self.sweep.k} must be above 0, seeds {self.sweep.seeds} not below it"
            )
        if reserved := {"all_given", "generated", "all_answers"} & set(self.datasets):
            raise ValueError(
                f"datasets: {min(reserved)} is the name of a mean over data sets; call the file otherwise"
            )
        if self.tracking.links == "correlation" and "shuffled" in self.tracking.variants:
            raise ValueError(
                "tracking.variants: shuffled compares decoders, and tracking.links: correlation compares activations; drop one"
            )
        if self.tracking.links == "identity" and self.sae.dictionaries == "independent":
            raise ValueError(
                "tracking.links: identity needs features that share their numbers: any sae.dictionaries but independent"
            )
        if self.sae.trained and self.sae.k >= self.sae.d_sae:
            raise ValueError(f"sae.k: {self.sae.k} must be below sae.d_sae ({self.sae.d_sae})")
        # The default values may be too large for a small dictionary: only the target sae_sweep reads them.
        if (
            self.sae.trained
            and "k" in self.sweep.model_fields_set
            and max(self.sweep.k) >= self.sae.d_sae
        ):
            raise ValueError(
                f"sweep.k: {max(self.sweep.k)} must be below sae.d_sae ({self.sae.d_sae})"
            )
        if self.anchor is not None and self.sae.anchor is None:  # an implied setting is a setting
            object.__setattr__(self, "sae", self.sae.model_copy(update={"anchor": self.anchor}))
        if self.anchor is not None and self.anchor not in self.layers:
            raise ValueError(
                f"sae.anchor: {self.anchor} must be one of the analysed layers, {self.layers}"
            )
        if self.sae.shared and self.sae.batch < len(self.layers):
            raise ValueError(
                f"sae.batch: {self.sae.batch} rows cannot hold one of each of the {len(self.layers)} layers"
            )
        return self
