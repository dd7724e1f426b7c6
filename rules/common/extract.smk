# rules/common/extract.smk -- helpers of rules/extract.smk: conflict sets, waves under a disk budget.
# Data sets whose texts follow a remark.
CONFLICT = [name for name, settings in DATASETS.items() if settings.conflict]
# Data sets whose texts follow a context, and those with hallucinated spans.
IN_CONTEXT = [name for name, settings in DATASETS.items() if settings.has_contexts]
WITH_SPANS = [name for name, settings in DATASETS.items() if settings.has_spans]


def model_accelerator(model=None):
    """Resources of a job that runs a model, by default `wildcards.model`, over gpus_per_model GPUs."""
    return {
        **ACCELERATOR,
        "gpu": lambda wildcards: SETTINGS[model or wildcards.model].plan.gpus_per_model,
    }


@cache
def show_plan():
    """Print the plan of disk use once, when jobs are planned; not for graphs, lists, lint or in a job."""
    if workflow.is_main_process and workflow.executor_plugin:
        sys.stderr.writelines(
            plan.summary(SETTINGS[model], WAVES[model]) for model in MODELS if WAVES[model]
        )


def extraction_waves():
    """(model, wave, layers) of every extraction rule."""
    return [(model, wave, layers) for model in MODELS for wave, layers in enumerate(WAVES[model])]


@cache
def training_digest(model):
    """Digest of the settings and code that a model's SAEs depend on."""
    training = "train_shared_sae" if model in SHARED else "train_sae"
    rules = ("fetch_model", "fetch_corpus", "check_model", "extract_activations", training)
    return plan.training_digest(SETTINGS[model], [source_digest(rule) for rule in rules])


def missing_saes_before(model, wave):
    """Input function: SAEs that a wave waits for, so that activations never exceed the disk budget.

    Only a wave with SAEs to train waits, and only for SAEs of earlier waves that are missing or stale.
    If finished SAEs were inputs too, one lost SAE would re-extract every later wave. Where Snakemake
    trains finished SAEs again for other reasons, plan.require_room enforces the budget.
    """

    def files(wildcards):
        show_plan()  # only now it is known that jobs are planned
        return waited_for(model, wave)

    return files


@cache
def waited_for(model, wave):
    """SAEs that a wave waits for; cached, because planning asks for every shard."""
    wanted = training_digest(model)
    missing = [
        [
            layer
            for layer in layers
            if not plan.has_training_digest(Path(f"results/{model}/saes/layer_{layer:02d}"), wanted)
        ]
        for layers in WAVES[model][: wave + 1]
    ]
    folders = saes_of(
        model, plan.layers_waited_for(missing, lambda layer: may_start_at_once(model, layer))
    )
    return [f"{folder}/sae_weights.safetensors" for folder in folders]


@cache
def may_start_at_once(model, layer):
    """Whether a layer may need no extraction: all its stores exist, or its SAE does."""
    folder = Path(f"results/{model}/activations/layer_{layer:02d}")
    stores = [
        folder / f"shard_{shard}{ending}"
        for shard in shard_names(model)
        for ending in (".json", ".zarr")
    ]
    return Path(f"{saes_of(model, [layer])[0]}/sae_weights.safetensors").exists() or all(
        map(Path.exists, stores)
    )


def room_kb(model):
    """Training activations that the disk budget allows, in kB; 0 without a budget."""
    budget = SETTINGS[model].activations.disk_budget_gb
    return int((budget * 1e9 - plan.heldout_bytes(SETTINGS[model])) / 1000) if budget else 0


def budgeted(model, path):
    """`path`, as temp() under a disk budget."""
    return temp(path) if SETTINGS[model].activations.disk_budget_gb else path


def asked_whether_true(model, dataset):
    """Whether P(True) is computed for a data set: the model is asked whether its texts are true."""
    return SETTINGS[model].detection.p_true in ("all", DATASETS[dataset].mode)
