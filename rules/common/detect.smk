# rules/common/detect.smk -- helpers of rules/detect.smk.
def closed_book(wildcards):
    """Input function: output on the statements without their remarks, of a conflict set."""
    folder = f"results/{wildcards.model}/examples/{wildcards.dataset}"
    return [f"{folder}/closed_book.parquet"] if wildcards.dataset in CONFLICT else []


def without_context(wildcards):
    """Input function: output on the texts without their contexts, of a data set with contexts."""
    folder = f"results/{wildcards.model}/examples/{wildcards.dataset}"
    return [f"{folder}/without_context.parquet"] if wildcards.dataset in IN_CONTEXT else []


def per_spans(pattern):
    """Input function: `pattern` for the model's data sets with hallucinated spans."""
    return lambda wildcards: [
        pattern.format(model=wildcards.model, dataset=name)
        for name in SETTINGS[wildcards.model].datasets
        if name in WITH_SPANS
    ]


def if_spans(path):
    """Input function: `path` if the model has a data set with hallucinated spans; else nothing."""
    return lambda wildcards: per_spans(path)(wildcards)[:1]
