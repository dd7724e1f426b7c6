# rules/common/targets.smk -- files of the targets in the Snakefile; checks before and after a run.
def strict_checks(wildcards):
    """Files that exist only if the headline claims hold, for models with `strict: true`."""
    return [f"results/{model}/evaluation/claims.json" for model in MODELS if SETTINGS[model].strict]


def sae_files(*names, models=MODELS):
    return [
        f"results/{model}/saes/layer_{layer}/{name}"
        for model in models
        for layer in layer_names(model)
        for name in names
    ]


def all_sweeps(wildcards):
    if pretrained := [model for model in MODELS if not SETTINGS[model].sae.trained]:
        raise WorkflowError(
            f"sae_sweep: {pretrained[0]} has pretrained SAEs (sae.source); leave it out, a sweep trains its own"
        )
    for model in MODELS:
        require_sweep_fits(model)
    return [f"results/{model}/sweep/arms.csv" for model in MODELS]


def require_sweep_fits(model):
    """Refuse a sweep whose largest k the dictionary cannot hold."""
    swept, size = max(SETTINGS[model].sweep.k), SETTINGS[model].sae.d_sae
    if swept >= size:
        raise WorkflowError(
            f"sweep.k: {swept} must be below sae.d_sae ({size}) of {model}; name other values, as in --config "
            f"'sweep={{k: {sorted({max(1, size // 8), max(1, size // 4)})}}}'"
        )


def all_leaks(wildcards):
    if unfit := [model for model in MODELS if not set(GIVEN) & set(SETTINGS[model].datasets)]:
        raise WorkflowError(
            f"reproduce_leak: {unfit[0]} has no data set of given texts; name one in datasets, as in --config "
            "'datasets=[cities]'"
        )
    return [f"results/{model}/evaluation/leak_reproduction.csv" for model in MODELS]


def all_features(wildcards):
    return [
        f"results/{model}/features/layer_{layer}.parquet"
        for model in MODELS
        for layer in layer_names(model)
    ]


def all_histories(wildcards):
    return sae_files(
        "history.csv", models=[model for model in MODELS if SETTINGS[model].sae.trained]
    )


def all_activations(wildcards):
    if pretrained := [model for model in MODELS if not SETTINGS[model].sae.trained]:
        raise WorkflowError(
            f"activations: {pretrained[0]} has pretrained SAEs (sae.source), so no activations to train on are kept"
        )
    if limited := [model for model in MODELS if SETTINGS[model].activations.disk_budget_gb]:
        raise WorkflowError(
            f"activations: {limited[0]} has a disk budget, under which no activations stay once the SAEs are trained. "
            "Ask for saes, or keep them all with --config 'activations={disk_budget_gb: null}'"
        )
    return [
        f"results/{model}/activations/layer_{layer}/shard_{shard}.json"
        for model in MODELS
        for layer in layer_names(model)
        for shard in shard_names(model)
    ]


def all_tracks(wildcards):
    return [
        f"results/{model}/tracks/{dataset}.{variant}.json"
        for model in MODELS
        for dataset in SETTINGS[model].datasets
        for variant in SETTINGS[model].tracking.variants
    ]


def reports(wildcards):
    return [f"results/{model}/report.html" for model in MODELS]


def reports_of_run():
    """Reports that this run made or found current; those of other targets may be of other settings."""
    planned = {str(path) for job in workflow.dag.jobs for path in job.output}
    return [path for path in reports(None) if path in planned and Path(path).exists()]


def comparison(wildcards):
    return ["results/comparison/comparison.html"] if len(MODELS) > 1 else []


def refuse_orphans():
    """Stop if another run, or jobs of a killed run, work in this folder: Slurm would run them twice."""
    # Imported here: a dry run does not need them.
    from ghosttrack.planning import orphans
    from ghosttrack.runtime import lease

    try:
        lease.hold_for_this_process(Path.cwd())
    except UserError as error:
        workflow.persistence.unlock = lambda: None  # it would also remove the other run's lock
        raise WorkflowError(str(error)) from None
    try:
        orphans.refuse(Path.cwd(), require_slurm=workflow.executor_plugin.name == "slurm")
    except UserError as error:
        raise WorkflowError(str(error)) from None


def refuse_disagreement():
    """Stop with an error after the last job if a result does not match its inputs or code of now.

    This happens when a lost file was computed again with other bytes, as on another processor, and
    when code was edited during the run.
    """
    if found := sorted(set(workflow.dag.disagreements())):
        listed = "\n".join(f"  {reason}" for reason in found[:12])
        raise WorkflowError(
            f"results do not match their inputs or code:\n{listed}\nRun the same command again: it computes them again"
        )
