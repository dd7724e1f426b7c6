# rules/common.smk -- settings, wildcards and helpers of several phases. No rules.
# Helpers of one phase: rules/common/PHASE.smk.
import gc
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Planning makes many small objects that live to the end; collecting garbage costs a sixth of it.
gc.set_threshold(200_000, 100, 100)

# current_basedir, not basedir: right too when another workflow includes this one as a module.
HOME = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(HOME / "workflow_scripts"))

from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus_sources
from ghosttrack.planning import (
    data_sizes,
    due,
    forecast,
    forked_jobs,
    job_imports,
    memory,
    plan,
    run_state,
    scheduling,
)
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.settings import code_digest

job_imports.provide(HOME / "workflow_scripts")
scheduling.install()
forked_jobs.install(workflow)
try:
    due.install()
    SETTINGS = load(config, HOME / "config")
    plan.check_sources(SETTINGS, Path("results"), own_environments=due.own_environments(workflow))
    WAVES = {model: plan.waves(settings) for model, settings in SETTINGS.items()}
    DATASETS = {
        name: load_dataset(name, HOME / "config")
        for settings in SETTINGS.values()
        for name in settings.datasets
    }
except UserError as error:
    raise WorkflowError(f"settings: {error}") from None

MODELS = list(SETTINGS)
RULE_NAMES = plan.rule_names(MODELS)
GIVEN = [name for name, settings in DATASETS.items() if settings.mode == "given"]
GENERATED = [name for name, settings in DATASETS.items() if settings.mode == "generated"]
# Models whose layers share one dictionary.
SHARED = [model for model, settings in SETTINGS.items() if settings.sae.shared]


def one_of(names):
    """Wildcard constraint: exactly one of `names`, whatever characters they hold; nothing if empty."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(MODELS),
    layer=r"\d{2,3}",
    shard=r"\d{4}",
    dataset=one_of(DATASETS),
    variant="[a-z]+",
    arm="[a-z0-9_]+",


# ---- params: settings that results depend on
source_digest = code_digest.source_digest


def settings_of(section, script):
    """Param function: the values of a settings section that the script's code reads.

    A value that no line of the code names is left out, so that a new setting reruns only the rules
    that use it. See `settings/code_digest.py: used_settings`.
    """

    def values(wildcards):
        value = getattr(SETTINGS[wildcards.model], section)
        if not hasattr(value, "model_dump"):
            return value
        return code_digest.used_settings(script, value.model_dump())

    return values


def dataset_settings(script):
    """Param function: the settings of the data set that the script's code reads."""
    return lambda wildcards: code_digest.used_settings(
        script, DATASETS[wildcards.dataset].model_dump()
    )


def property_of(name, section=None):
    """Param function: one value of the model's settings, or of one section of them."""

    def value(wildcards):
        settings = SETTINGS[wildcards.model]
        return getattr(getattr(settings, section) if section else settings, name)

    return value


def given_datasets(wildcards):
    """Param function: the model's data sets of given texts."""
    return [name for name in SETTINGS[wildcards.model].datasets if name in GIVEN]


def control_datasets(wildcards):
    """Param function: the model's data sets that are positive controls."""
    return [name for name in SETTINGS[wildcards.model].datasets if DATASETS[name].control]


# ---- resources: they never change a result and never rerun a job
def accelerator(settings):
    """Resources of a job with a GPU. The models of a run share a machine: the first one's count."""
    asked = {"gpu_model": settings.plan.gpu_model, "slurm_partition": settings.plan.gpu_partition}
    return {"gpu": 1, **{key: value for key, value in asked.items() if value is not None}}


ACCELERATOR = accelerator(SETTINGS[MODELS[0]])


def scaled(base):
    """Resource function: grows with every attempt."""
    return lambda wildcards, attempt: base * attempt


def shrinking(base):
    """Resource function: halves with every attempt, for batches after an out-of-memory."""
    return lambda wildcards, attempt: max(1, base >> (attempt - 1))


def first_attempt(value):
    """Resource function: `value` until a job failed, then 0."""
    return lambda wildcards, attempt: value if attempt == 1 else 0


include: "common/memory.smk"


# ---- file names
def layer_names(model):
    return [f"{layer:02d}" for layer in SETTINGS[model].layers]


def shard_names(model):
    return [f"{shard:04d}" for shard in range(SETTINGS[model].shards)]


# The values of a wildcard that a job may need all of, in the order of its files.
VALUES = {
    "layer": layer_names,
    "shard": shard_names,
    "dataset": lambda model: SETTINGS[model].datasets,
    "variant": lambda model: SETTINGS[model].tracking.variants,
}


def all_of(model, pattern, *names):
    """`pattern` for all values of the wildcards `names`, the last one varying fastest."""
    paths = [pattern]
    for name in names:
        values = VALUES[name](model)
        paths = [path.replace(f"{{{name}}}", value) for path in paths for value in values]
    return paths


def per(pattern, *names):
    """Input function: `pattern` for the job's wildcards and all values of the wildcards `names`."""

    def files(wildcards):
        filled = pattern
        for name, value in wildcards.items():
            filled = filled.replace(f"{{{name}}}", value)
        return all_of(wildcards.model, filled, *names)

    return files


def beside_weights(model):
    """Files beside the weights in the model's folder that every job with the model reads."""
    names = ("config.json", "tokenizer.json", "source.json")
    return [f"results/{model}/model/{name}" for name in names]


def neighbour_files(wildcards):
    """Input function: the neighbour files of every analysed layer but the last."""
    folder = f"results/{wildcards.model}/neighbours"
    return [f"{folder}/layer_{layer}.npz" for layer in layer_names(wildcards.model)[:-1]]


def generated_files(ending):
    """Input function: a file of every data set whose answers the model generates."""
    return lambda wildcards: [
        f"results/{wildcards.model}/datasets/{name}/{ending}"
        for name in SETTINGS[wildcards.model].datasets
        if name in GENERATED
    ]


def drawn_answers(wildcards):
    """Input function: the sampled answers of a generated data set, if the run samples any."""
    samples = getattr(SETTINGS[wildcards.model].generation, "samples", 0)
    if not samples or wildcards.dataset not in GENERATED:
        return []
    return [f"results/{wildcards.model}/datasets/{wildcards.dataset}/samples.parquet"]


def saes_of(model, layers):
    return [f"results/{model}/saes/layer_{layer:02d}" for layer in layers]
