# rules/common.smk -- settings, names and helpers of all phases. No rules.
import gc
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Planning makes many small objects that live to the end; looking for garbage among them takes a sixth of a dry run.
gc.set_threshold(200_000, 100, 100)

# current_basedir, not basedir: the helpers are found when another workflow includes this one as a module.
HOME = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(HOME / "workflow_scripts"))

from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus_sources
from ghosttrack.planning import due, job_imports, plan, run_state
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.settings import code_digest

job_imports.provide(HOME / "workflow_scripts")

try:
    due.install()
    SETTINGS = load(config, HOME / "config")
    plan.check_sources(SETTINGS, Path("results"))
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
# Models whose layers have one dictionary together.
SHARED = [model for model, settings in SETTINGS.items() if settings.sae.shared]


def one_of(names):
    """A wildcard constraint that matches exactly `names`, whatever characters they hold; nothing, if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(MODELS),
    layer=r"\d{2,3}",
    shard=r"\d{4}",
    dataset=one_of(DATASETS),
    variant="[a-z]+",
    arm="[a-z0-9_]+",


# ---- settings as params: science. What a rule's code does not read is left out (see code_digest.used_settings).
def settings_of(section, rule):
    """Param function: the values of a settings section that the rule's code reads."""

    def values(wildcards):
        found = getattr(SETTINGS[wildcards.model], section)
        return (
            code_digest.used_settings(rule, found.model_dump())
            if hasattr(found, "model_dump")
            else found
        )

    return values


def swept_settings(wildcards):
    """Param function: what every arm of a sweep takes from the run; k is its own, and it begins with no other layer's weights."""
    found = settings_of("sae", "sweep_sae")(wildcards)
    return {
        key: value
        for key, value in found.items()
        if key not in ("k", "dictionaries", "anchor", "anchored_epochs")
    }


def dataset_settings(rule):
    """Param function: the settings of the data set at hand."""
    return lambda wildcards: code_digest.used_settings(
        rule, DATASETS[wildcards.dataset].model_dump()
    )


def property_of(name):
    """Param function: a derived setting of the model, such as its analysed layers."""
    return lambda wildcards: getattr(SETTINGS[wildcards.model], name)


def chosen_settings(wildcards):
    """Param function: every setting that is not at its default, for the record in the report."""
    found = SETTINGS[wildcards.model]
    # The source is in the model's manifest; how the disk is used changes no result.
    hidden = {
        "source": True,
        "model_path": True,
        "plan": True,
        "score": True,
        "activations": {"disk_budget_gb", "rows_per_job"},
    }
    chosen = found.model_dump(mode="json", exclude_defaults=True, exclude=hidden)
    if not found.sae.trained and not found.sae.revision:
        chosen["sae"]["source"] = Path(found.sae.source).name
    if corpus_sources.is_file(
        found.corpus.source
    ):  # its folder is nobody's business, and differs between machines
        chosen["corpus"]["source"] = Path(found.corpus.source).name
    return {"seed": found.seed, **chosen}


def expected_settings(wildcards, resources):
    """Param function: the settings that a run's results must have been made with. As a function of `resources` it is
    no reason to run a job again."""
    found = SETTINGS[wildcards.model]
    sections = ("corpus", "sae", "tracking", "generation", "detection", "evaluation")
    return {
        "seed": found.seed,
        "site": found.activations.site,
        **{section: getattr(found, section).model_dump() for section in sections},
    }


source_digest = code_digest.source_digest


# ---- machine knobs as resources: they never change a result and never rerun a job.
def accelerator(settings):
    """Resources of a job with a GPU. The models of a run share a machine: the first one's settings count."""
    asked = {"gpu_model": settings.plan.gpu_model, "slurm_partition": settings.plan.gpu_partition}
    return {"gpu": 1, **{key: value for key, value in asked.items() if value is not None}}


ACCELERATOR = accelerator(SETTINGS[MODELS[0]])


def scaled(base):
    """Resource function: grows with every attempt."""
    return lambda wildcards, attempt: base * attempt


@cache
def dictionary_size(model):
    """Features of one autoencoder, for memory: of local pretrained ones what they say, else sae.d_sae."""
    found = [each.d_sae for each in plan.pretrained_locally(SETTINGS[model]).values()]
    return max(found, default=SETTINGS[model].sae.d_sae)


def detector_memory(wildcards, attempt):
    """Resource function: raw activations, codes and residuals of 2,000 texts in all layers, twice, in fp32."""
    settings = SETTINGS[wildcards.model]
    numbers = (
        2000
        * len(settings.layers)
        * 2
        * (dictionary_size(wildcards.model) + 2 * settings.dimensions.d_model)
    )
    return (1500 + 4 * numbers // 10**6) * attempt


def sweep_memory(wildcards, attempt):
    """Resource function: weights, gradients and both moments of every arm in fp32, and what training one takes."""
    settings = SETTINGS[wildcards.model]
    arms = len(settings.sweep.k) * len(settings.sweep.seeds)
    numbers = arms * 2 * 4 * settings.sae.d_sae * settings.dimensions.d_model
    return (3000 + 4 * numbers // 10**6) * attempt


def dictionary_memory(wildcards, attempt):
    """Resource function: a block of 4,096 codes with its entries, and the unembedding as stored and in fp32."""
    settings = SETTINGS[wildcards.model]
    numbers = (
        4 * 4096 * dictionary_size(wildcards.model) + 2 * 100_000 * settings.dimensions.d_model
    )
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
    """Resource function: weights in fp32, and 16 contexts: one layer as computed and a copy, every layer in fp16, twice."""
    settings, width = SETTINGS[model], SETTINGS[model].dimensions.d_model
    rows = 16 * settings.corpus.context * width * (4 + 4 + (2 + 2) * len(layers or settings.layers))
    return scaled(max(3000, 1500 + (weight_bytes(model) + rows) // 10**6))


def variants_of(model, pattern):
    """`pattern` for the tracker and each null of one model; other wildcards stay."""
    return [pattern.replace("{variant}", variant) for variant in SETTINGS[model].tracking.variants]


def layers_of(model, pattern):
    """`pattern` for every analysed layer of one model; other wildcards stay."""
    return [pattern.replace("{layer}", layer) for layer in layer_names(model)]


def shrinking(base):
    """Resource function: halves with every attempt, for batches after an out-of-memory."""
    return lambda wildcards, attempt: max(1, base >> (attempt - 1))


def first_attempt(value):
    """Resource function: `value` until a job failed, then 0."""
    return lambda wildcards, attempt: value if attempt == 1 else 0


# ---- file names
def layer_names(model):
    return [f"{layer:02d}" for layer in SETTINGS[model].layers]


def shard_names(model):
    return [f"{shard:04d}" for shard in range(SETTINGS[model].shards)]


def beside_weights(model):
    """What a job reads from the model's folder, found through its weights."""
    return [
        f"results/{model}/model/{name}" for name in ("config.json", "tokenizer.json", "source.json")
    ]


def per_layer(pattern):
    """Input function: `pattern` for every analysed layer of the model."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": layer}) for layer in layer_names(wildcards.model)
    ]


def per_dataset(pattern):
    """Input function: `pattern` for every data set of the model."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "dataset": dataset})
        for dataset in SETTINGS[wildcards.model].datasets
    ]


def per_variant(pattern):
    """Input function: `pattern` for the tracker and each of its nulls."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "variant": variant})
        for variant in SETTINGS[wildcards.model].tracking.variants
    ]


def shown_tracks(ending):
    """Input function: the tracks that pages show of every data set: the tracker's, or those of the only null there is."""

    def files(wildcards):
        settings = SETTINGS[wildcards.model]
        variant = (
            "default" if "default" in settings.tracking.variants else settings.tracking.variants[0]
        )
        return [
            f"results/{wildcards.model}/tracks/{dataset}.{variant}{ending}"
            for dataset in settings.datasets
        ]

    return files


def per_dataset_and_variant(pattern):
    """Input function: `pattern` for every data set and, within it, every variant."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "dataset": dataset, "variant": variant})
        for dataset in SETTINGS[wildcards.model].datasets
        for variant in SETTINGS[wildcards.model].tracking.variants
    ]


def per_sweep_layer(pattern):
    """Input function: `pattern` for every layer of the sweep."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": f"{layer:02d}"})
        for layer in SETTINGS[wildcards.model].sweep_layers
    ]


def swept_arms(wildcards):
    """Param function: seed by folder name of the swept autoencoders that are like the run's own: of its k."""
    settings = SETTINGS[wildcards.model]
    if (
        not settings.sae.trained
        or settings.sweep_layers != settings.layers
        or settings.sae.k not in settings.sweep.k
    ):
        return {}
    return {f"k_{settings.sae.k:03d}_seed_{seed}": seed for seed in settings.sweep.seeds}


def swept_saes(wildcards):
    """Input function: the folders of those autoencoders, if the sweep is of every analysed layer; a single one does not compare."""
    pattern = f"results/{wildcards.model}/sweep/layer_{{layer}}/saes"
    return layers_of(wildcards.model, pattern) if swept_arms(wildcards) else []


def per_layer_and_dataset(pattern):
    """Input function: `pattern` for every analysed layer and, within it, every data set."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": layer, "dataset": dataset})
        for layer in layer_names(wildcards.model)
        for dataset in SETTINGS[wildcards.model].datasets
    ]


def per_shard(pattern):
    """Input function: `pattern` for every shard of one layer, in row order."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "shard": shard}) for shard in shard_names(wildcards.model)
    ]


def per_layer_and_shard(pattern):
    """Input function: `pattern` for every analysed layer and, within it, every shard in row order."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": layer, "shard": shard})
        for layer in layer_names(wildcards.model)
        for shard in shard_names(wildcards.model)
    ]


def anchor_files(wildcards):
    """Input function: weights and cfg of the autoencoder that this layer's begins with, if it begins with one."""
    anchor = SETTINGS[wildcards.model].anchor
    if anchor is None or anchor == int(wildcards.layer):
        return []
    folder = f"results/{wildcards.model}/saes/layer_{anchor:02d}"
    return [f"{folder}/sae_weights.safetensors", f"{folder}/cfg.json"]


def local_dataset(wildcards):
    """Input function: the user's own file behind a data set, if there is one."""
    return [path for path in [DATASETS[wildcards.dataset].path] if path]


def chat_tokenizer(wildcards):
    """Input function: the model's folder, for the chat template of its tokenizer; nothing with generation.prompt: plain."""
    found = SETTINGS[wildcards.model]
    return beside_weights(wildcards.model) if found.generation.prompt == "chat" else []


def local_corpus(wildcards):
    """Input function: the user's own file behind the corpus, if there is one."""
    return [
        path for path in [SETTINGS[wildcards.model].corpus.source] if corpus_sources.is_file(path)
    ]


def pretrained_files(wildcards):
    """Input function: the user's own files behind the autoencoder of a layer; none of what a hub has."""
    found = plan.pretrained_locally(SETTINGS[wildcards.model])
    return found[int(wildcards.layer)].files if found else []


def next_layers(wildcards, count=2):
    """A layer and up to `count` analysed layers after it."""
    names = layer_names(wildcards.model)
    start = names.index(wildcards.layer)
    return names[start : start + count + 1]


def per_next_layer(pattern):
    """Input function: `pattern` for a layer and the two analysed layers after it."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": layer}) for layer in next_layers(wildcards)
    ]


def if_correlated(files):
    """Input function: `files` where links come from activations; nothing where they come from decoders."""
    return lambda wildcards: (
        files(wildcards) if SETTINGS[wildcards.model].tracking.links == "correlation" else []
    )


def neighbour_files(wildcards):
    """Input function: the neighbour files of every analysed layer but the last."""
    return [
        f"results/{wildcards.model}/neighbours/layer_{layer}.npz"
        for layer in layer_names(wildcards.model)[:-1]
    ]


def generated_files(ending):
    """Input function: a file of every data set whose answers are the model's own."""
    return lambda wildcards: [
        f"results/{wildcards.model}/datasets/{name}/{ending}"
        for name in SETTINGS[wildcards.model].datasets
        if name in GENERATED
    ]


def given_datasets(wildcards):
    """The model's data sets of given texts."""
    return [name for name in SETTINGS[wildcards.model].datasets if name in GIVEN]


def drawn_answers(wildcards):
    """Input function: the answers drawn beside the greedy ones, for a generated data set of a run that draws any."""
    drawn = (
        getattr(SETTINGS[wildcards.model].generation, "samples", 0)
        and wildcards.dataset in GENERATED
    )
    return (
        [f"results/{wildcards.model}/datasets/{wildcards.dataset}/samples.parquet"] if drawn else []
    )


def asked_whether_true(model, dataset):
    """Whether the model is asked about the texts of a data set (P(True))."""
    return SETTINGS[model].detection.p_true in ("all", DATASETS[dataset].mode)


def control_datasets(wildcards):
    """Param function: the model's data sets that are positive controls."""
    return [name for name in SETTINGS[wildcards.model].datasets if DATASETS[name].control]


def strict_checks(wildcards):
    """Target helper: under `strict: true` a run is finished only when its headline claims hold."""
    return [f"results/{model}/evaluation/claims.json" for model in MODELS if SETTINGS[model].strict]


def own_texts(wildcards):
    """Input function: the file of texts that the target `scores` is asked to score."""
    path = SETTINGS[wildcards.model].score.texts
    if not path or not Path(path).is_file():
        found = f"{path} is not there" if path else "none is given"
        raise WorkflowError(
            f"score.texts: {found}; name a file of texts, as in --config 'score={{texts: mine.csv}}'"
        )
    return path


def own_context(wildcards):
    """Input function: the file of statements that stand before the texts, if one is named."""
    path = SETTINGS[wildcards.model].score.context
    if path and not Path(path).is_file():
        raise WorkflowError(
            f"score.context: {path} is not there; name a text file of a few true statements, one a line"
        )
    return [path] if path else []


def report_page(path, page):
    """`path`, shown in `snakemake --report` too."""
    return report(path, category="Pages", labels={"page": page})


# ---- waves under a disk budget
@cache
def show_plan():
    """Say once what the disk will hold, when jobs are planned: not for graphs, lists or lint, nor inside a job."""
    if workflow.is_main_process and workflow.executor_plugin:
        sys.stderr.writelines(
            plan.summary(SETTINGS[model], WAVES[model]) for model in MODELS if WAVES[model]
        )


def extraction_waves():
    """(model, wave, layers) of every extraction rule."""
    return [(model, wave, layers) for model in MODELS for wave, layers in enumerate(WAVES[model])]


@cache
def made_from(model):
    """Digest of everything that one model's SAEs follow from: settings, and the code of every rule before them."""
    training = "train_shared_sae" if model in SHARED else "train_sae"
    rules = ("fetch_model", "fetch_corpus", "extract_activations", training)
    return plan.training_digest(SETTINGS[model], [source_digest(rule) for rule in rules])


def missing_saes_before(model, wave):
    """Input function: what a wave waits for so that the disk never holds more than the budget.

    Only a wave that still has SAEs to train waits, and only for those of earlier waves that are missing or
    follow from other settings: a finished SAE named here would make a lost one re-extract every later wave.
    Where Snakemake trains finished SAEs again for reasons of its own, plan.require_room keeps the budget.
    """

    def files(wildcards):
        show_plan()  # only now Snakemake knows that it will run, or pretend to
        return waited_for(model, wave)

    return files


@cache
def waited_for(model, wave):
    """The same for every shard of a wave: planning asks a thousand times."""
    wanted = made_from(model)
    missing = [
        [
            layer
            for layer in layers
            if not plan.is_made_from(Path(f"results/{model}/saes/layer_{layer:02d}"), wanted)
        ]
        for layers in WAVES[model][: wave + 1]
    ]
    folders = saes_of(
        model, plan.layers_waited_for(missing, lambda layer: may_start_at_once(model, layer))
    )
    return [f"{folder}/sae_weights.safetensors" for folder in folders]


@cache
def may_start_at_once(model, layer):
    """Whether no extraction is surely due for a layer: its stores all stand, or it has an SAE that Snakemake may keep."""
    folder = Path(f"results/{model}/activations/layer_{layer:02d}")
    stores = [
        folder / f"shard_{shard}{ending}"
        for shard in shard_names(model)
        for ending in (".json", ".zarr")
    ]
    return Path(f"{saes_of(model, [layer])[0]}/sae_weights.safetensors").exists() or all(
        map(Path.exists, stores)
    )


def saes_of(model, layers):
    return [f"results/{model}/saes/layer_{layer:02d}" for layer in layers]


def room_kb(model):
    """What the disk budget leaves for training activations, in kB; 0 without one."""
    budget = SETTINGS[model].activations.disk_budget_gb
    return int((budget * 1e9 - plan.heldout_bytes(SETTINGS[model])) / 1000) if budget else 0


def planned_kb(wildcards):
    """Resource function: training activations at once at most, and held-out ones, in kB; 0 where SAEs are pretrained."""
    settings, waves = SETTINGS[wildcards.model], WAVES[wildcards.model]
    return (
        int((plan.peak_bytes(settings, waves) + plan.heldout_bytes(settings)) / 1000)
        if waves
        else 0
    )


def budget_kb(wildcards):
    """Resource function: the disk budget in kB; 0 without one."""
    return int((SETTINGS[wildcards.model].activations.disk_budget_gb or 0) * 1e6)


def budgeted(model, path):
    """temp() under a disk budget; kept without one."""
    return temp(path) if SETTINGS[model].activations.disk_budget_gb else path


# ---- what verify_activations may and may not find
def promised_manifests(wildcards):
    """Param function: manifests of the stores that must stand."""
    return [
        str(path)
        for each in SETTINGS.values()
        for path in run_state.promised_manifests(each, Path("results"))
    ]


def released_layers(wildcards):
    """Param function: layers whose SAE is trained as the settings say, so that a disk budget lets their stores go."""
    return [
        f"results/{model}/activations/layer_{layer:02d}"
        for model, settings in SETTINGS.items()
        for layer, folder in zip(settings.layers, saes_of(model, settings.layers), strict=True)
        if settings.activations.disk_budget_gb and plan.is_made_from(Path(folder), made_from(model))
    ]


# ---- before anything is submitted
def refuse_orphans():
    """End here if another run, or jobs of a killed one, work in this folder: Slurm would get them a second time."""
    from ghosttrack.planning import orphans  # only now: a dry run has no use for it
    from ghosttrack.runtime import lease

    try:
        lease.hold_for_this_process(Path.cwd())
    except UserError as error:
        workflow.persistence.unlock = lambda: None  # it would remove the other run's lock as well
        raise WorkflowError(str(error)) from None
    try:
        orphans.refuse(Path.cwd(), require_slurm=workflow.executor_plugin.name == "slurm")
    except UserError as error:
        raise WorkflowError(str(error)) from None


def refuse_disagreement():
    """After the last job: end with an error if a result no longer matches what it was made from.

    So it is when a lost file was made again with other bytes, as on another processor: what follows from it stands.
    """
    if found := sorted(set(workflow.dag.disagreements())):
        listed = "\n".join(f"  {reason}" for reason in found[:12])
        raise WorkflowError(
            f"results disagree with what they were made from:\n{listed}\nRun the same command again: it makes them anew"
        )


# ---- arms of ablations and tuning
@cache
def arms_of(model):
    """Every arm of a model by name, and the names of the two studies' arms; only now, for a run has no use for them."""
    from ghosttrack.ablation import arms

    try:
        ablations, tuning = arms.ablation_arms(SETTINGS[model]), arms.tuning_arms(SETTINGS[model])
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return {**ablations, **tuning}, {"ablations": list(ablations), "tuning": list(tuning)}


def arm_of(wildcards):
    """The arm at hand."""
    found = arms_of(wildcards.model)[0]
    if wildcards.arm not in found:
        raise WorkflowError(
            f"ablations: no arm is called {wildcards.arm}; there are {', '.join(found)}"
        )
    return found[wildcards.arm]


def of_arm(name):
    """Param function: a property of the arm at hand."""
    return lambda wildcards: getattr(arm_of(wildcards), name)


def arm_tracking(wildcards):
    """Param function: the run's tracking settings with the arm's changes."""
    own = settings_of("tracking", "track_arm")(wildcards)
    return {**own, **arm_of(wildcards).changes}


def arm_detectors(wildcards):
    """Param function: the detectors that score the arm at hand."""
    chosen = SETTINGS[wildcards.model].ablations.detectors
    return chosen if arm_of(wildcards).thorough else chosen[:1]


def if_arm_correlates(files):
    """Input function: `files` where an arm compares activations of its own."""

    def needed(wildcards):
        arm = arm_of(wildcards)
        links = arm.changes.get("links", SETTINGS[wildcards.model].tracking.links)
        return files(wildcards) if arm.recompute_links and links == "correlation" else []

    return needed


def arm_signals(wildcards):
    """Input function: metrics that an arm is scored on, its own or the run's."""
    if arm_of(wildcards).tracked:
        return [f"results/{wildcards.model}/ablations/signals/{wildcards.arm}.parquet"]
    return [
        f"results/{wildcards.model}/signals/{dataset}.default.parquet"
        for dataset in SETTINGS[wildcards.model].datasets
    ]


def per_arm(study, ending):
    """Input function: what every arm of a study came to."""
    return lambda wildcards: [
        f"results/{wildcards.model}/ablations/arms/{arm}{ending}"
        for arm in arms_of(wildcards.model)[1][study]
    ]


# ---- what the aggregate targets ask for
def sae_files(*names, models=MODELS):
    return [
        f"results/{model}/saes/layer_{layer}/{name}"
        for model in models
        for layer in layer_names(model)
        for name in names
    ]


def all_sweeps(wildcards):
    if pretrained := [model for model in MODELS if not SETTINGS[model].sae.trained]:
        raise WorkflowError(
            f"sae_sweep: {pretrained[0]} has pretrained SAEs (sae.source); leave it out, a sweep trains its own"
        )
    for model in MODELS:
        swept, size = max(SETTINGS[model].sweep.k), SETTINGS[model].sae.d_sae
        if swept >= size:
            raise WorkflowError(
                f"sweep.k: {swept} must be below sae.d_sae ({size}) of {model}; name other values, as in --config "
                f"'sweep={{k: {sorted({max(1, size // 8), max(1, size // 4)})}}}'"
            )
    return [f"results/{model}/sweep/arms.csv" for model in MODELS]


def all_features(wildcards):
    return [
        f"results/{model}/features/layer_{layer}.parquet"
        for model in MODELS
        for layer in layer_names(model)
    ]


def all_histories(wildcards):
    return sae_files(
        "history.csv", models=[model for model in MODELS if SETTINGS[model].sae.trained]
    )


def all_activations(wildcards):
    if pretrained := [model for model in MODELS if not SETTINGS[model].sae.trained]:
        raise WorkflowError(
            f"activations: {pretrained[0]} has pretrained SAEs (sae.source), so no activations to train on are kept"
        )
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


def all_examples(wildcards):
    """Input function: the texts of every data set of every model."""
    return [
        f"results/{model}/datasets/{name}/examples.parquet"
        for model in MODELS
        for name in SETTINGS[model].datasets
    ]


def reports(wildcards):
    return [f"results/{model}/report.html" for model in MODELS]


def comparison(wildcards):
    return ["results/comparison/comparison.html"] if len(MODELS) > 1 else []
