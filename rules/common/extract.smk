# rules/common/extract.smk -- helpers of rules/extract.smk: waves under a disk budget.
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


def room_kb(model):
    """What the disk budget leaves for training activations, in kB; 0 without one."""
    budget = SETTINGS[model].activations.disk_budget_gb
    return int((budget * 1e9 - plan.heldout_bytes(SETTINGS[model])) / 1000) if budget else 0


def budgeted(model, path):
    """temp() under a disk budget; kept without one."""
    return temp(path) if SETTINGS[model].activations.disk_budget_gb else path


def asked_whether_true(model, dataset):
    """Whether the model is asked about the texts of a data set (P(True))."""
    return SETTINGS[model].detection.p_true in ("all", DATASETS[dataset].mode)
