# rules/common/transfer.smk -- helpers of rules/transfer.smk: conflict sets.
def misled_datasets(model):
    """The model's conflict sets of given texts, without positive controls."""
    given = [name for name in SETTINGS[model].datasets if name in CONFLICT and name in GIVEN]
    return [name for name in given if not DATASETS[name].control]


def per_misled(ending):
    """Input function: a file of every conflict set of given texts, of every layer if it names one."""

    def files(wildcards):
        model = wildcards.model
        return [
            path.replace("{dataset}", name)
            for path in all_of(
                model, f"results/{model}/{ending}", *(["layer"] if "{layer}" in ending else [])
            )
            for name in misled_datasets(model)
        ]

    return files


def if_misled_compared(files):
    """Input function: `files` if candidate answers are compared in conflict sets; else nothing."""
    return lambda wildcards: (
        files(wildcards) if SETTINGS[wildcards.model].tracking.compares(conflict=True) else []
    )


def all_transfer(wildcards):
    """Input function: transfer between data sets without remarks, and between those with remarks."""
    plain = [model for model in MODELS if set(SETTINGS[model].datasets) - set(CONFLICT)]
    return [
        *(
            path
            for model in plain
            for path in expand(rules.draw_transfer.output.figures, model=model)
        ),
        *(
            f"results/{model}/evaluation/misled_left_out.csv"
            for model in MODELS
            if misled_datasets(model)
        ),
    ]
