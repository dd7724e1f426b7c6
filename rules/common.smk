# rules/common.smk -- settings, names and helpers of all phases. No rules.
import gc
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Planning makes many small objects that live to the end; looking for garbage among them takes a sixth of a dry run.
gc.set_threshold(200_000, 100, 100)

# current_basedir, not basedir: the helpers are found when another workflow includes this one as a module.
HOME = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(HOME / "workflow_scripts"))

from ghosttrack import plan, provenance
from ghosttrack.configuration import load, load_dataset
from ghosttrack.errors import UserError

try:
    SETTINGS = load(config, HOME / "config")
    plan.check_sources(SETTINGS, Path("results"))
    WAVES = {model: plan.waves(settings) for model, settings in SETTINGS.items()}
    DATASETS = {
        name: load_dataset(name, HOME / "config") for settings in SETTINGS.values() for name in settings.datasets
    }
except UserError as error:
    raise WorkflowError(f"settings: {error}") from None

MODELS = list(SETTINGS)
GIVEN = [name for name, settings in DATASETS.items() if settings.mode == "given"]
GENERATED = [name for name, settings in DATASETS.items() if settings.mode == "generated"]


def one_of(names):
    """A wildcard constraint that matches exactly `names`; nothing, if there are none."""
    return "|".join(names) or "(?!)"


wildcard_constraints:
    model=one_of(MODELS),
    layer=r"\d{2,3}",
    shard=r"\d{4}",
    dataset=one_of(DATASETS),
    variant="[a-z]+",


# ---- settings as params: science. What a rule's code does not read is left out (see provenance.used_settings).
def settings_of(section, rule):
    """Param function: the values of a settings section that the rule's code reads."""

    def values(wildcards):
        found = getattr(SETTINGS[wildcards.model], section)
        return provenance.used_settings(rule, found.model_dump()) if hasattr(found, "model_dump") else found

    return values


def dataset_settings(rule):
    """Param function: the settings of the data set at hand."""
    return lambda wildcards: provenance.used_settings(rule, DATASETS[wildcards.dataset].model_dump())


def property_of(name):
    """Param function: a derived setting of the model, such as its analysed layers."""
    return lambda wildcards: getattr(SETTINGS[wildcards.model], name)


def chosen_settings(wildcards):
    """Param function: every setting that is not at its default, for the record in the report."""
    found = SETTINGS[wildcards.model]
    # The source is in the model's manifest; how the disk is used changes no result.
    hidden = {"source": True, "model_path": True, "plan": True, "activations": {"disk_budget_gb", "rows_per_job"}}
    chosen = found.model_dump(mode="json", exclude_defaults=True, exclude=hidden)
    if plan.is_local_file(found.corpus.source):  # its folder is nobody's business, and differs between machines
        chosen["corpus"]["source"] = Path(found.corpus.source).name
    return {"seed": found.seed, **chosen}


source_digest = provenance.source_digest


# ---- machine knobs as resources: they never change a result and never rerun a job.
def scaled(base):
    """Resource function: grows with every attempt."""
    return lambda wildcards, attempt: base * attempt


def detector_memory(wildcards, attempt):
    """Resource function: raw activations, codes and residuals of 2,000 texts in all layers, twice, in fp32."""
    settings = SETTINGS[wildcards.model]
    numbers = 2000 * len(settings.layers) * 2 * (settings.sae.d_sae + 2 * settings.dimensions.d_model)
    return (1500 + 4 * numbers // 10**6) * attempt


def dictionary_memory(wildcards, attempt):
    """Resource function: a block of 4,096 codes with its entries, and the unembedding as stored and in fp32."""
    settings = SETTINGS[wildcards.model]
    numbers = 4 * 4096 * settings.sae.d_sae + 2 * 100_000 * settings.dimensions.d_model
    return (1000 + 4 * numbers // 10**6) * attempt


def weight_bytes(model):
    """Bytes of a model in fp32, with a vocabulary of 100,000."""
    found = SETTINGS[model].dimensions
    return 4 * (12 * found.n_layers * found.d_model**2 + 100_000 * found.d_model)


def splicing_memory(wildcards, attempt):
    """Resource function: weights in fp32, and the logits of 2 contexts over a vocabulary of 100,000, twice and to spare."""
    logits = 3 * 4 * 2 * SETTINGS[wildcards.model].corpus.context * 100_000
    return (1500 + (weight_bytes(wildcards.model) + logits) // 10**6) * attempt


def extraction_memory(model, layers=None):
    """Resource function: weights in fp32, and 16 contexts of every layer as computed, rounded and waiting to be written."""
    settings, width = SETTINGS[model], SETTINGS[model].dimensions.d_model
    rows = 16 * settings.corpus.context * len(layers or settings.layers) * width * (4 + 2 + 2)
    return scaled(max(3000, 1500 + (weight_bytes(model) + rows) // 10**6))


def variants_of(model, pattern):
    """`pattern` for the tracker and each null of one model; other wildcards stay."""
    return [pattern.replace("{variant}", variant) for variant in SETTINGS[model].tracking.variants]


def shrinking(base):
    """Resource function: halves with every attempt, for batches after an out-of-memory."""
    return lambda wildcards, attempt: max(1, base >> (attempt - 1))


# ---- file names
def layer_names(model):
    return [f"{layer:02d}" for layer in SETTINGS[model].layers]


def shard_names(model):
    return [f"{shard:04d}" for shard in range(SETTINGS[model].shards)]


def beside_weights(model):
    """What a job reads from the model's folder, found through its weights."""
    return [f"results/{model}/model/{name}" for name in ("config.json", "tokenizer.json", "source.json")]


def per_layer(pattern):
    """Input function: `pattern` for every analysed layer of the model."""
    return lambda wildcards: [pattern.format(**{**wildcards, "layer": layer}) for layer in layer_names(wildcards.model)]


def per_dataset(pattern):
    """Input function: `pattern` for every data set of the model."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "dataset": dataset}) for dataset in SETTINGS[wildcards.model].datasets
    ]


def per_variant(pattern):
    """Input function: `pattern` for the tracker and each of its nulls."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "variant": variant}) for variant in SETTINGS[wildcards.model].tracking.variants
    ]


def per_dataset_and_variant(pattern):
    """Input function: `pattern` for every data set and, within it, every variant."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "dataset": dataset, "variant": variant})
        for dataset in SETTINGS[wildcards.model].datasets
        for variant in SETTINGS[wildcards.model].tracking.variants
    ]


def per_shard(pattern):
    """Input function: `pattern` for every shard of one layer, in row order."""
    return lambda wildcards: [pattern.format(**{**wildcards, "shard": shard}) for shard in shard_names(wildcards.model)]


def local_dataset(wildcards):
    """Input function: the user's own file behind a data set, if there is one."""
    return [path for path in [DATASETS[wildcards.dataset].path] if path]


def local_corpus(wildcards):
    """Input function: the user's own file behind the corpus, if there is one."""
    return [path for path in [SETTINGS[wildcards.model].corpus.source] if plan.is_local_file(path)]


def next_layers(wildcards, count=2):
    """A layer and up to `count` analysed layers after it."""
    names = layer_names(wildcards.model)
    start = names.index(wildcards.layer)
    return names[start : start + count + 1]


def neighbour_files(wildcards):
    """Input function: the neighbour files of every analysed layer but the last."""
    return [f"results/{wildcards.model}/neighbours/layer_{layer}.npz" for layer in layer_names(wildcards.model)[:-1]]


def label_files(wildcards):
    """Input function: how the model's own answers were marked, for every generated data set."""
    names = [name for name in SETTINGS[wildcards.model].datasets if name in GENERATED]
    return [f"results/{wildcards.model}/datasets/{name}/labels.json" for name in names]


def drawn_answers(wildcards):
    """Input function: the answers drawn beside the greedy ones, for a generated data set of a run that draws any."""
    drawn = getattr(SETTINGS[wildcards.model].generation, "samples", 0) and wildcards.dataset in GENERATED
    return [f"results/{wildcards.model}/datasets/{wildcards.dataset}/samples.parquet"] if drawn else []


def control_datasets(wildcards):
    """Param function: the model's data sets that are positive controls."""
    return [name for name in SETTINGS[wildcards.model].datasets if DATASETS[name].control]


def strict_checks(wildcards):
    """Target helper: under `strict: true` a run is finished only when its headline claims hold."""
    return [f"results/{model}/evaluation/claims.json" for model in MODELS if SETTINGS[model].strict]


def report_page(path):
    """`path`, shown in `snakemake --report` too."""
    return report(path, category="Report", labels={"page": "report"})


# ---- waves under a disk budget
@cache
def show_plan():
    """Say once what the disk will hold, when jobs are planned: not for graphs, lists or lint, nor inside a job."""
    if workflow.is_main_process and workflow.executor_plugin:
        sys.stderr.writelines(plan.summary(SETTINGS[model], WAVES[model]) for model in MODELS)


def extraction_waves():
    """(model, wave, layers) of every extraction rule."""
    return [(model, wave, layers) for model in MODELS for wave, layers in enumerate(WAVES[model])]


@cache
def made_from(model):
    """Digest of everything that one model's SAEs follow from: settings, and the code of every rule before them."""
    found = SETTINGS[model]
    return plan.training_digest(
        found, [source_digest(rule) for rule in ("fetch_model", "fetch_corpus", "extract_activations", "train_sae")]
    )


def missing_saes_before(model, wave):
    """Input function: what a wave waits for so that the disk never holds more than the budget.

    Only a wave that still has SAEs to train waits, and only for those of earlier waves that are missing or
    follow from other settings: a finished SAE named here would make a lost one re-extract every later wave.
    Where Snakemake trains finished SAEs again for reasons of its own, plan.require_room keeps the budget.
    """

    def files(wildcards):
        show_plan()  # only now Snakemake knows that it will run, or pretend to
        wanted = made_from(model)
        missing = [
            [folder for folder in saes_of(model, layers) if not plan.is_made_from(Path(folder), wanted)]
            for layers in WAVES[model][: wave + 1]
        ]
        return [f"{folder}/sae_weights.safetensors" for folders in missing[:-1] for folder in folders if missing[-1]]

    return files


def saes_of(model, layers):
    return [f"results/{model}/saes/layer_{layer:02d}" for layer in layers]


def room_kb(model):
    """What the disk budget leaves for training activations, in kB; 0 without one."""
    budget = SETTINGS[model].activations.disk_budget_gb
    return int((budget * 1e9 - plan.heldout_bytes(SETTINGS[model])) / 1000) if budget else 0


def budgeted(model, path):
    """temp() under a disk budget; kept without one."""
    return temp(path) if SETTINGS[model].activations.disk_budget_gb else path


# ---- what the aggregate targets ask for
def sae_files(name):
    return [f"results/{model}/saes/layer_{layer}/{name}" for model in MODELS for layer in layer_names(model)]


def all_features(wildcards):
    return [f"results/{model}/features/layer_{layer}.parquet" for model in MODELS for layer in layer_names(model)]


def all_activations(wildcards):
    if limited := [model for model in MODELS if SETTINGS[model].activations.disk_budget_gb]:
        raise WorkflowError(
            f"activations: {limited[0]} has a disk budget, under which no activations stay once the SAEs are trained. "
            "Ask for saes, or keep them all with --config 'activations={disk_budget_gb: null}'"
        )
    return [
        f"results/{model}/activations/layer_{layer}/shard_{shard}.json"
        for model in MODELS
        for layer in layer_names(model)
        for shard in shard_names(model)
    ]


def all_tracks(wildcards):
    return [
        f"results/{model}/tracks/{dataset}.{variant}.json"
        for model in MODELS
        for dataset in SETTINGS[model].datasets
        for variant in SETTINGS[model].tracking.variants
    ]


def reports(wildcards):
    return [f"results/{model}/report.html" for model in MODELS]


def comparison(wildcards):
    return ["results/comparison/comparison.html"] if len(MODELS) > 1 else []
