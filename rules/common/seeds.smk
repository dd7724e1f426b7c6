# rules/common/seeds.smk -- helpers of rules/seeds.smk.
def swept_arms(wildcards):
    """Param function: folder name -> seed of the swept SAEs with the run's k."""
    settings = SETTINGS[wildcards.model]
    if (
        not settings.sae.trained
        or settings.sweep_layers != settings.layers
        or settings.sae.k not in settings.sweep.k
    ):
        return {}
    return {f"k_{settings.sae.k:03d}_seed_{seed}": seed for seed in settings.sweep.seeds}


def swept_saes(wildcards):
    """Input function: the folders of these SAEs, if every analysed layer is swept."""
    if not swept_arms(wildcards):
        return []
    require_sweep_fits(wildcards.model)
    return all_of(wildcards.model, f"results/{wildcards.model}/sweep/layer_{{layer}}/saes", "layer")
