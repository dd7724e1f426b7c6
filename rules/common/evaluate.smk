# rules/common/evaluate.smk -- helpers of rules/evaluate.smk.
def expected_settings(wildcards, resources):
    """Param function: settings that the results must record. As a function of `resources` it is no
    rerun trigger."""
    found = SETTINGS[wildcards.model]
    sections = ("corpus", "sae", "tracking", "generation", "detection", "evaluation")
    return {
        "seed": found.seed,
        "site": found.activations.site,
        **{section: getattr(found, section).model_dump() for section in sections},
    }
