# rules/common/track.smk -- helpers of rules/track.smk.
def next_layers(wildcards, count=2):
    """A layer and up to `count` analysed layers after it."""
    names = layer_names(wildcards.model)
    start = names.index(wildcards.layer)
    return names[start : start + count + 1]


def per_next_layer(pattern):
    """Input function: `pattern` for a layer and the two analysed layers after it."""
    return lambda wildcards: [
        pattern.format(**{**wildcards, "layer": layer}) for layer in next_layers(wildcards)
    ]


def if_correlated(files):
    """Input function: `files` if links are correlations of activations; else nothing."""
    return lambda wildcards: (
        files(wildcards) if SETTINGS[wildcards.model].tracking.links == "correlation" else []
    )


def compares_candidates(wildcards):
    """Whether the candidate answers of a data set are compared (tracking.compare_candidates)."""
    conflict = DATASETS[wildcards.dataset].conflict is not None
    return SETTINGS[wildcards.model].tracking.compares(conflict)


def candidate_tables(wildcards):
    """Input function: controls and metrics of the candidate answers, if these are compared."""
    if not compares_candidates(wildcards):
        return []
    folder = f"results/{wildcards.model}/candidates"
    return [f"{folder}/{wildcards.dataset}.{kind}.parquet" for kind in ("controls", "metrics")]


def null_decoders(name):
    """Input function: a file of every layer's SAE with a random decoder, if candidates are compared."""

    def files(wildcards):
        if not compares_candidates(wildcards):
            return []
        folder = f"results/{wildcards.model}/random_decoders"
        return all_of(wildcards.model, f"{folder}/layer_{{layer}}/{name}", "layer")

    return files
