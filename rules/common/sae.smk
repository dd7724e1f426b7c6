# rules/common/sae.smk -- helpers of rules/sae.smk.
def anchor_files(wildcards):
    """Input function: weights and cfg of the autoencoder that this layer's begins with, if it begins with one."""
    anchor = SETTINGS[wildcards.model].anchor
    if anchor is None or anchor == int(wildcards.layer):
        return []
    folder = f"results/{wildcards.model}/saes/layer_{anchor:02d}"
    return [f"{folder}/sae_weights.safetensors", f"{folder}/cfg.json"]
