# rules/common/develop.smk -- helpers of rules/develop.smk.
def promised_manifests(wildcards):
    """Param function: manifests of the stores that must exist."""
    return [
        str(path)
        for settings in SETTINGS.values()
        for path in run_state.promised_manifests(settings, Path("results"))
    ]


def released_layers(wildcards):
    """Param function: layers with an up-to-date SAE, whose stores a disk budget deletes."""
    return [
        f"results/{model}/activations/layer_{layer:02d}"
        for model, settings in SETTINGS.items()
        for layer, folder in zip(settings.layers, saes_of(model, settings.layers), strict=True)
        if settings.activations.disk_budget_gb
        and plan.has_training_digest(Path(folder), training_digest(model))
    ]
