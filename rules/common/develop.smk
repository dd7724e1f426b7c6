# rules/common/develop.smk -- helpers of rules/develop.smk.
def promised_manifests(wildcards):
    """Param function: manifests of the stores that must stand."""
    return [
        str(path)
        for each in SETTINGS.values()
        for path in monitor.promised_manifests(each, Path("results"))
    ]


def released_layers(wildcards):
    """Param function: layers whose SAE is trained as the settings say, so that a disk budget lets their stores go."""
    return [
        f"results/{model}/activations/layer_{layer:02d}"
        for model, settings in SETTINGS.items()
        for layer, folder in zip(settings.layers, saes_of(model, settings.layers), strict=True)
        if settings.activations.disk_budget_gb and plan.is_made_from(Path(folder), made_from(model))
    ]
