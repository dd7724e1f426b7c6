# rules/common/ablate.smk -- helpers of rules/ablate.smk: arms of ablations and tuning.
@cache
def arms_of(model):
    """Arms of a model by name, and the names of the arms of each study."""
    # Imported here: a run does not need it.
    from ghosttrack.ablation import arms

    try:
        ablations, tuning = arms.ablation_arms(SETTINGS[model]), arms.tuning_arms(SETTINGS[model])
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return {**ablations, **tuning}, {"ablations": list(ablations), "tuning": list(tuning)}


def arm_of(wildcards):
    """The arm of the job."""
    found = arms_of(wildcards.model)[0]
    if wildcards.arm not in found:
        raise WorkflowError(
            f"ablations: unknown arm {wildcards.arm}; choose one of {', '.join(found)}"
        )
    return found[wildcards.arm]


def of_arm(name):
    """Param function: a property of the arm."""
    return lambda wildcards: getattr(arm_of(wildcards), name)


def arm_tracking(wildcards):
    """Param function: the run's tracking settings with the arm's changes."""
    own = settings_of("tracking", "track_arm")(wildcards)
    return {**own, **arm_of(wildcards).changes}


def arm_detectors(wildcards):
    """Param function: the detectors that score the arm."""
    chosen = SETTINGS[wildcards.model].ablations.detectors
    return chosen if arm_of(wildcards).thorough else chosen[:1]


def if_arm_correlates(files):
    """Input function: `files` for an arm that correlates activations anew."""

    def needed(wildcards):
        arm = arm_of(wildcards)
        links = arm.changes.get("links", SETTINGS[wildcards.model].tracking.links)
        return files(wildcards) if arm.recompute_links and links == "correlation" else []

    return needed


def arm_track_metrics(wildcards):
    """Input function: the track metrics of the arm, or of the run if the arm tracks nothing."""
    if arm_of(wildcards).tracked:
        return [f"results/{wildcards.model}/ablations/signals/{wildcards.arm}.parquet"]
    return [
        f"results/{wildcards.model}/signals/{dataset}.default.parquet"
        for dataset in SETTINGS[wildcards.model].datasets
    ]


def conflict_datasets(wildcards):
    """Param function: the model's data sets whose texts follow remarks."""
    return [
        name for name in SETTINGS[wildcards.model].datasets if DATASETS[name].conflict is not None
    ]


def per_arm(study, ending):
    """Input function: the results of every arm of a study."""
    return lambda wildcards: [
        f"results/{wildcards.model}/ablations/arms/{arm}{ending}"
        for arm in arms_of(wildcards.model)[1][study]
    ]
