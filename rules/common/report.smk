# rules/common/report.smk -- helpers of rules/report.smk.
def chosen_settings(wildcards):
    """Param function: settings that differ from their defaults, for the report."""
    found = SETTINGS[wildcards.model]
    # The model's manifest names its source; the disk budget and the event files change no result.
    hidden = {
        "source": True,
        "model_path": True,
        "plan": True,
        "score": True,
        "event_files": True,
        "activations": {"disk_budget_gb", "rows_per_job"},
    }
    chosen = found.model_dump(mode="json", exclude_defaults=True, exclude=hidden)
    if found.sae.local:
        chosen["sae"]["source"] = Path(found.sae.source).name
    if corpus_sources.is_file(found.corpus.source):  # omit the local directory
        chosen["corpus"]["source"] = Path(found.corpus.source).name
    return {"seed": found.seed, **chosen}


def shown_tracks(ending):
    """Input function: tracks for the explorer: the tracker's, or the first null's without a tracker."""

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


def remarked_sets(wildcards):
    """Data sets with remarks and given texts whose candidate answers are compared."""
    settings = SETTINGS[wildcards.model]
    return [
        name
        for name in settings.datasets
        if DATASETS[name].conflict is not None
        and DATASETS[name].mode == "given"
        and settings.tracking.compares(True)
    ]


def remarked_examples(wildcards):
    """Input function: the texts of `remarked_sets`."""
    folder = f"results/{wildcards.model}/datasets"
    return [f"{folder}/{name}/examples.parquet" for name in remarked_sets(wildcards)]


def remarked_controls(wildcards):
    """Input function: the comparisons of `remarked_sets`."""
    folder = f"results/{wildcards.model}/candidates"
    return [f"{folder}/{name}.controls.parquet" for name in remarked_sets(wildcards)]


def shown_candidates(wildcards):
    """Input function: tables for the explorer of the data sets whose candidate answers are compared."""
    settings = SETTINGS[wildcards.model]
    return [
        f"results/{wildcards.model}/candidates/{dataset}.{kind}.parquet"
        for dataset in settings.datasets
        if settings.tracking.compares(DATASETS[dataset].conflict is not None)
        for kind in ("controls", "metrics", "tracks", "tokens")
    ]


def report_page(path, page):
    """`path`, shown in `snakemake --report` too."""
    return report(path, category="Pages", labels={"page": page})


def planned_kb(wildcards):
    """Resource function: peak of training and held-out activations in kB; 0 for pretrained SAEs."""
    settings, waves = SETTINGS[wildcards.model], WAVES[wildcards.model]
    return (
        int((plan.peak_bytes(settings, waves) + plan.heldout_bytes(settings)) / 1000)
        if waves
        else 0
    )


def budget_kb(wildcards):
    """Resource function: the disk budget in kB; 0 without a budget."""
    return int((SETTINGS[wildcards.model].activations.disk_budget_gb or 0) * 1e6)


def all_examples(wildcards):
    """Input function: the texts of every data set of every model."""
    return [
        f"results/{model}/datasets/{name}/examples.parquet"
        for model in MODELS
        for name in SETTINGS[model].datasets
    ]
