# rules/common/ablate.smk -- helpers of rules/ablate.smk: arms of ablations and tuning.
@cache
def arms_of(model):
    """Every arm of a model by name, and the names of the two studies' arms; only now, for a run has no use for them."""
    from ghosttrack.ablation import arms

    try:
        ablations, tuning = arms.ablation_arms(SETTINGS[model]), arms.tuning_arms(SETTINGS[model])
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return {**ablations, **tuning}, {"ablations": list(ablations), "tuning": list(tuning)}


def arm_of(wildcards):
    """The arm at hand."""
    found = arms_of(wildcards.model)[0]
    if wildcards.arm not in found:
        raise WorkflowError(
            f"ablations: no arm is called {wildcards.arm}; there are {', '.join(found)}"
        )
    return found[wildcards.arm]


def of_arm(name):
    """Param function: a property of the arm at hand."""
    return lambda wildcards: getattr(arm_of(wildcards), name)


def arm_tracking(wildcards):
    """Param function: the run's tracking settings with the arm's changes."""
    own = settings_of("tracking", "track_arm")(wildcards)
    return {**own, **arm_of(wildcards).changes}


def arm_detectors(wildcards):
    """Param function: the detectors that score the arm at hand."""
    chosen = SETTINGS[wildcards.model].ablations.detectors
    return chosen if arm_of(wildcards).thorough else chosen[:1]


def if_arm_correlates(files):
    """Input function: `files` where an arm compares activations of its own."""

    def needed(wildcards):
        arm = arm_of(wildcards)
        links = arm.changes.get("links", SETTINGS[wildcards.model].tracking.links)
        return files(wildcards) if arm.relinked and links == "correlation" else []

    return needed


def arm_signals(wildcards):
    """Input function: metrics that an arm is scored on, its own or the run's."""
    if arm_of(wildcards).tracked:
        return [f"results/{wildcards.model}/ablations/signals/{wildcards.arm}.parquet"]
    return [
        f"results/{wildcards.model}/signals/{dataset}.default.parquet"
        for dataset in SETTINGS[wildcards.model].datasets
    ]


def per_arm(study, ending):
    """Input function: what every arm of a study came to."""
    return lambda wildcards: [
        f"results/{wildcards.model}/ablations/arms/{arm}{ending}"
        for arm in arms_of(wildcards.model)[1][study]
    ]
