"""All settings of one model in a run."""

from typing import Any, Self

from pydantic import Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.ablation import AblationSettings, TuningSettings
from ghosttrack.settings.activations import ActivationSettings
from ghosttrack.settings.corpus import CorpusSettings
from ghosttrack.settings.detection import DetectionSettings
from ghosttrack.settings.evaluation import EvaluationSettings
from ghosttrack.settings.external import ExternalSettings
from ghosttrack.settings.generation import GenerationSettings
from ghosttrack.settings.inference import InferenceSettings
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
        description="Name of a file in config/models; or `both`, which runs `gpt2-small` and "
        "`gpt2-medium`; or, together with `model_path`, a new name. It is also the name of the "
        "results folder, so it may have only letters, digits, dots, dashes and underscores.",
    )
    model_path: names.LocalPath | None = Field(
        None,
        description="Local directory with a transformers model. Its results are in results/MODEL, "
        "where MODEL is the name in `model`.",
    )
    preset: str | None = Field(
        None,
        description="Name of a file in config/presets. `laptop`: the corpus and the batch sizes "
        "of the default run, for any model; `misled`: the default data sets and seven conflict "
        "sets; `seed`: the default data sets and two of the original work and, for `gpt2-small` "
        "and `gpt2-medium`, its SAE batch sizes; `tiny`: the smallest run with all phases.",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of all random numbers.")
    strict: bool = Field(
        False,
        description='Whether the run fails if the headline claim, "the detector beats its best '
        'control", is not established. The claim must be established for the mean over the given '
        "data sets (`all_given`) and for the mean over the generated ones (`generated`). If "
        "the run has only one of these kinds, one mean is enough. The run also fails if no data "
        "set can support the claim.",
    )
    event_files: bool = Field(
        False,
        description="Whether the training of SAEs also writes its loss, FVU, L0, dead features and "
        "learning rate to event files, which TensorBoard shows while an SAE trains. They are in "
        "results/MODEL/logs/events. The setting changes no result, and reruns nothing.",
    )
    datasets: list[names.DatasetName] = Field(
        [
            "cities",
            "capitals",
            "capitals_hard",
            "continents",
            "languages",
            "borders_hard",
            "us_cities",
            "element_symbol",
            "questions",
        ],
        min_length=1,
        description="Data sets to evaluate: names of files in config/datasets. A name may have "
        "letters, digits, spaces and `_ . + - ( )`. In a file, a name that YAML does not read as "
        "text, such as `2024` or `true`, needs quotation marks.",
    )
    source: SourceSettings = Field(..., description="Where the model's weights come from.")
    dimensions: DimensionSettings | None = Field(
        None,
        description="Size of the model. With `model_path` it is read from the model's config.json.",
    )
    inference: InferenceSettings = Field(
        InferenceSettings(), description="How the model's forward pass is computed."
    )
    corpus: CorpusSettings = Field(
        CorpusSettings(), description="Text on which the SAEs are trained."
    )
    activations: ActivationSettings = Field(
        ActivationSettings(), description="Which activations are read from the model."
    )
    sae: SaeSettings = Field(SaeSettings(), description="Sparse autoencoders.")
    sweep: SweepSettings = Field(
        SweepSettings(), description="SAEs with other k and other seeds (target `sae_sweep`)."
    )
    tracking: TrackingSettings = Field(
        TrackingSettings(), description="Tracks of features across layers."
    )
    ablations: AblationSettings = Field(
        AblationSettings(), description="Ablations of the track metrics (target `ablations`)."
    )
    tuning: TuningSettings = Field(
        TuningSettings(),
        description="Values of tracking settings to try, one setting at a time (target `tuning`).",
    )
    generation: GenerationSettings = Field(
        GenerationSettings(), description="How the model answers questions."
    )
    detection: DetectionSettings = Field(
        DetectionSettings(), description="Cross-validation, controls and detectors."
    )
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(), description="Confidence intervals and claims."
    )
    external: ExternalSettings = Field(
        ExternalSettings(),
        description="Detectors from outside this project, judged by the same folds, controls and "
        "claims.",
    )
    report: ReportSettings = Field(ReportSettings(), description="Size of the pages.")
    score: ScoreSettings = Field(
        ScoreSettings(), description="User texts to score (target `scores`)."
    )
    plan: PlanSettings = Field(
        PlanSettings(),
        description="The machines, from which waves and expected hours are computed. No result "
        "depends on them.",
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
    def warm_start_layer(self) -> int | None:
        """The layer whose trained SAE initialises all others; None without `warm_start`."""
        if not self.sae.trained or self.sae.dictionaries != "warm_start":
            return None
        if self.sae.warm_start_layer is None:
            return self.layers[len(self.layers) // 2]
        return self.sae.warm_start_layer

    @property
    def keeps_training_rows(self) -> bool:
        """Whether the activations on which the SAEs were trained remain on the disk."""
        return self.sae.trained and self.activations.disk_budget_gb is None

    @property
    def _size(self) -> DimensionSettings:
        assert self.dimensions is not None  # _check_consistency requires it
        return self.dimensions

    @property
    def shards(self) -> int:
        """Extraction jobs per layer."""
        return -(-self.contexts // self.contexts_per_shard)

    @property
    def contexts(self) -> int:
        """Packed training contexts."""
        return -(-self.corpus.tokens // self.corpus.context)

    @property
    def contexts_per_shard(self) -> int:
        """Contexts per extraction job; the last job may have fewer."""
        return max(1, self.activations.rows_per_job // self.corpus.context)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for key, value in numbers(self.model_dump(), ""):
            if abs(value) > LARGEST:
                raise ValueError(f"{key}: {value:.3g} is too large; expected at most {LARGEST:,}")
        if self.shards > MOST_SHARDS:
            rows = -(-self.contexts // MOST_SHARDS) * self.corpus.context
            tokens = MOST_SHARDS * self.contexts_per_shard * self.corpus.context
            raise ValueError(
                f"activations.rows_per_job: {self.activations.rows_per_job:,} tokens per job give "
                f"{self.shards:,} extraction jobs per layer, more than {MOST_SHARDS:,}; set it to "
                f"at least {rows}, or corpus.tokens to at most {tokens}"
            )
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.dimensions is None:
            raise ValueError(
                "dimensions: missing; set n_layers and d_model in the model's file in config/models"
            )
        layers = self.activations.layers
        if layers != "all":
            wrong = [layer for layer in layers if not 0 <= layer < self.dimensions.n_layers]
            if wrong or layers != sorted(set(layers)) or not layers:
                raise ValueError(
                    f"activations.layers: {layers} must be ascending, without repeats, within "
                    f"0..{self.dimensions.n_layers - 1}"
                )
        lists: dict[str, list[Any]] = {
            "datasets": [*self.datasets],
            "tracking.variants": [*self.tracking.variants],
            "sweep.layers": self.sweep_layers,
            "sweep.k": self.sweep.k,
            "sweep.seeds": self.sweep.seeds,
            "detection.fold_seeds": self.detection.fold_seeds,
        }
        for key, values in lists.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: {values} has a value twice; remove one")
        if len({name.casefold() for name in self.datasets}) < len(self.datasets):
            raise ValueError(
                f"datasets: {self.datasets} has names that differ only in capital letters, which "
                "some file systems store as one folder; rename one"
            )
        if unknown := set(self.sweep_layers) - set(self.layers):
            raise ValueError(
                f"sweep.layers: {min(unknown)} is not one of the analysed layers "
                "(activations.layers)"
            )
        if min(self.detection.fold_seeds) < 0 or max(self.detection.fold_seeds) > LARGEST_SEED:
            raise ValueError(
                f"detection.fold_seeds: {self.detection.fold_seeds} must be within "
                f"0..{LARGEST_SEED}"
            )
        if min(self.sweep.k) < 1:
            raise ValueError(f"sweep.k: {self.sweep.k} must be 1 or more")
        if min(self.sweep.seeds) < 0:
            raise ValueError(f"sweep.seeds: {self.sweep.seeds} must be 0 or more")
        if reserved := {"all_given", "generated", "all_misled", "all_answers"} & set(self.datasets):
            raise ValueError(
                f"datasets: {min(reserved)} is the name of a mean over data sets; rename the file"
            )
        if self.tracking.links == "correlation" and "shuffled" in self.tracking.variants:
            raise ValueError(
                "tracking.variants: shuffled compares decoders, but tracking.links: correlation "
                "compares activations; change one of them"
            )
        if self.tracking.links == "identity" and self.sae.dictionaries == "independent":
            raise ValueError(
                "tracking.links: identity needs index-aligned features; set sae.dictionaries to "
                "shared_init, warm_start or shared"
            )
        tracked = [entry.name for entry in self.external.classes if "tracks" in entry.reads]
        if tracked and "default" not in self.tracking.variants:
            raise ValueError(
                f"external.classes: {tracked[0]} reads tracks, but tracking.variants has no "
                "default; add it"
            )
        if self.sae.trained and self.sae.k >= self.sae.d_sae:
            raise ValueError(f"sae.k: {self.sae.k} must be below sae.d_sae ({self.sae.d_sae})")
        # Only the target sae_sweep reads sweep.k: its default may be too large for a small
        # dictionary.
        if (
            self.sae.trained
            and "k" in self.sweep.model_fields_set
            and max(self.sweep.k) >= self.sae.d_sae
        ):
            raise ValueError(
                f"sweep.k: {max(self.sweep.k)} must be below sae.d_sae ({self.sae.d_sae})"
            )
        if (first := self.warm_start_layer) is not None:
            if first not in self.layers:
                raise ValueError(
                    f"sae.warm_start_layer: {first} must be one of the analysed layers, "
                    f"{self.layers}"
                )
            # Replace null by the number, so that a change of the middle layer retrains the SAEs.
            sae = self.sae.model_copy(update={"warm_start_layer": first})
            object.__setattr__(self, "sae", sae)
        if self.sae.shared and self.sae.batch < len(self.layers):
            raise ValueError(
                f"sae.batch: {self.sae.batch} rows are fewer than the {len(self.layers)} layers, "
                "and a shared dictionary needs a row of each layer; raise sae.batch"
            )
        return self
