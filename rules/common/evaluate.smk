# rules/common/evaluate.smk -- helpers of rules/evaluate.smk.
def external_scores(wildcards):
    """Input function: the scores of the user's tables and classes."""
    found, folder = SETTINGS[wildcards.model], f"results/{wildcards.model}/external"
    return [
        *(f"{folder}/tables/{entry.name}.parquet" for entry in found.external.tables),
        *(
            f"{folder}/classes/{entry.name}/{dataset}.parquet"
            for entry in found.external.classes
            for dataset in found.datasets
        ),
    ]


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
