# rules/common/sae.smk -- helpers of rules/sae.smk.
def warm_start_files(wildcards):
    """Input function: weights and cfg of the autoencoder that this layer's begins with, if it begins with one."""
    first = SETTINGS[wildcards.model].warm_start_layer
    if first is None or first == int(wildcards.layer):
        return []
    folder = f"results/{wildcards.model}/saes/layer_{first:02d}"
    return [f"{folder}/sae_weights.safetensors", f"{folder}/cfg.json"]


def event_folder(name):
    """Param function: the folder of a training's event file, or None if the run writes none.

    As a function of `resources` it is no rerun trigger.
    """

    def folder(wildcards, resources):
        if not SETTINGS[wildcards.model].event_files:
            return None
        return f"results/{wildcards.model}/logs/events/{name.format(**wildcards)}"

    return folder


def null_rows_differ(wildcards):
    """Param function: whether there are random decoders that were fitted on other rows than the SAEs."""
    settings = SETTINGS[wildcards.model]
    compared = any(
        settings.tracking.compares(DATASETS[name].conflict is not None)
        for name in settings.datasets
    )
    return compared and not settings.keeps_training_rows


def null_rows(ending):
    """Input function: the rows that a random decoder is fitted on.

    They are the training activations if the run keeps them, else the held-out ones.
    """

    def files(wildcards):
        if SETTINGS[wildcards.model].keeps_training_rows:
            pattern = f"results/{{model}}/activations/layer_{{layer}}/shard_{{shard}}{ending}"
            return per(pattern, "shard")(wildcards)
        return [f"results/{wildcards.model}/heldout/layer_{wildcards.layer}{ending}"]

    return files
