# rules/common/sae.smk -- helpers of rules/sae.smk.
def warm_start_files(wildcards):
    """Input function: weights and cfg of the autoencoder that this layer's begins with, if it begins with one."""
    first = SETTINGS[wildcards.model].warm_start_layer
    if first is None or first == int(wildcards.layer):
        return []
    folder = f"results/{wildcards.model}/saes/layer_{first:02d}"
    return [f"{folder}/sae_weights.safetensors", f"{folder}/cfg.json"]
