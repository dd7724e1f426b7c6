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


def candidate_tables(wildcards):
    """Input function: controls and metrics of the candidate answers, if tracking.compare_candidates is set."""
    if not SETTINGS[wildcards.model].tracking.compare_candidates:
        return []
    folder = f"results/{wildcards.model}/candidates"
    return [f"{folder}/{wildcards.dataset}.{kind}.parquet" for kind in ("controls", "metrics")]
