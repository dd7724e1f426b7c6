# rules/common/sweep.smk -- helpers of rules/sweep.smk.
def swept_settings(wildcards):
    """Param function: SAE settings of the run that every swept SAE shares."""
    found = settings_of("sae", "sweep_sae")(wildcards)
    return {
        key: value
        for key, value in found.items()
        if key not in ("k", "dictionaries", "warm_start_layer", "warm_start_epochs")
    }


def per_sweep_layer(pattern):
    """Input function: `pattern` for every layer of the sweep."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": f"{layer:02d}"})
        for layer in SETTINGS[wildcards.model].sweep_layers
    ]
