# rules/track.smk -- phase 3. Needs: SAEs, activations of the examples. Gives: links between layers,
# tracks, and track metrics.
include: "common/track.smk"


rule find_neighbours:
    """Find each feature's nearest features in the next layers, and the chance level of a link."""
    input:
        weights=per_next_layer("results/{model}/saes/layer_{layer}/sae_weights.safetensors"),
        cfgs=per_next_layer("results/{model}/saes/layer_{layer}/cfg.json"),
        stores=if_correlated(per_next_layer("results/{model}/heldout/layer_{layer}.zarr")),
        manifests=if_correlated(per_next_layer("results/{model}/heldout/layer_{layer}.json")),
    output:
        neighbours="results/{model}/neighbours/layer_{layer}.npz",
    log:
        "results/{model}/logs/find_neighbours/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/find_neighbours/layer_{layer}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.neighbours),
        runtime=scaled(30),
    params:
        layers=next_layers,
        tracking=settings_of("tracking", "find_neighbours"),
        seed=settings_of("seed", "find_neighbours"),
        code=source_digest("find_neighbours"),
    message:
        "Linking the features of {wildcards.model} layer {wildcards.layer} to the next layers"
    script:
        "../workflow_scripts/track/find_neighbours.py"


rule cluster_features:
    """Cluster and name the features of all layers, and measure the links on held-out text."""
    input:
        neighbours=neighbour_files,
        features=per("results/{model}/features/layer_{layer}.parquet", "layer"),
        stores=per("results/{model}/heldout/layer_{layer}.zarr", "layer"),
        manifests=per("results/{model}/heldout/layer_{layer}.json", "layer"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
    output:
        table="results/{model}/clusters.parquet",
        labels="results/{model}/cluster_labels.parquet",
        links="results/{model}/neighbours/links.csv",
    log:
        "results/{model}/logs/cluster_features.log",
    benchmark:
        "results/{model}/benchmarks/cluster_features.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.clusters),
        runtime=scaled(60),
    params:
        layers=property_of("layers"),
        tracking=settings_of("tracking", "cluster_features"),
        seed=settings_of("seed", "cluster_features"),
        code=source_digest("cluster_features"),
    message:
        "Clustering the features of {wildcards.model}"
    script:
        "../workflow_scripts/track/cluster_features.py"


rule attribute_candidates:
    """Attribute the logit difference of two candidate answers to features, and track these."""
    input:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
        saes=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        random_decoders=per(
            "results/{model}/random_decoders/layer_{layer}/sae_weights.safetensors", "layer"
        ),
        random_cfgs=per("results/{model}/random_decoders/layer_{layer}/cfg.json", "layer"),
        neighbours=neighbour_files,
    output:
        controls="results/{model}/candidates/{dataset}.controls.parquet",
        metrics="results/{model}/candidates/{dataset}.metrics.parquet",
        completeness="results/{model}/candidates/{dataset}.completeness.csv",
        tracks="results/{model}/candidates/{dataset}.tracks.parquet",
        tokens="results/{model}/candidates/{dataset}.tokens.parquet",
    log:
        "results/{model}/logs/attribute_candidates/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/attribute_candidates/{dataset}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.attribution),
        runtime=scaled(60),
    params:
        layers=property_of("layers"),
        site=property_of("site", "activations"),
        tracking=settings_of("tracking", "attribute_candidates"),
        seed=settings_of("seed", "attribute_candidates"),
        inference=settings_of("inference", "attribute_candidates"),
        code=source_digest("attribute_candidates"),
    message:
        "Comparing candidate answers inside {wildcards.model} on {wildcards.dataset} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/track/attribute_candidates.py"


# Tracker and nulls read the same activations, so one job makes them all. The model's settings name them.
for MODEL in MODELS:

    rule:
        """Track the features of every answer token across layers, with the tracker and its nulls."""
        name:
            f"track_features_{RULE_NAMES[MODEL]}"
        input:
            stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer"),
            manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer"),
            weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
            cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
            neighbours=neighbour_files,
        output:
            tracks=directory(
                all_of(MODEL, "results/{model}/tracks/{dataset}.{variant}.zarr", "variant")
            ),
            tracks_manifests=all_of(
                MODEL, "results/{model}/tracks/{dataset}.{variant}.json", "variant"
            ),
            errors="results/{model}/tracks/{dataset}.errors.parquet",
        log:
            "results/{model}/logs/track_features/{dataset}.log",
        benchmark:
            "results/{model}/benchmarks/track_features/{dataset}.tsv"
        wildcard_constraints:
            model=one_of([MODEL]),
        conda:
            "../envs/torch.yaml"
        resources:
            mem_mb=memory_for(memory.tracking),
            runtime=scaled(60),
        params:
            layers=property_of("layers"),
            variants=SETTINGS[MODEL].tracking.variants,
            tracking=settings_of("tracking", "track_features"),
            seed=settings_of("seed", "track_features"),
            code=source_digest("track_features"),
        message:
            "Tracking features of {wildcards.model} on {wildcards.dataset}"
        script:
            "../workflow_scripts/track/track_features.py"

    rule:
        """Compute the track metrics of one data set, one row per example."""
        name:
            f"measure_signals_{RULE_NAMES[MODEL]}"
        input:
            tracks=all_of(MODEL, "results/{model}/tracks/{dataset}.{variant}.zarr", "variant"),
            tracks_manifests=all_of(
                MODEL, "results/{model}/tracks/{dataset}.{variant}.json", "variant"
            ),
            outputs="results/{model}/examples/{dataset}/outputs.parquet",
            errors="results/{model}/tracks/{dataset}.errors.parquet",
            clusters="results/{model}/clusters.parquet",
        output:
            track_metrics=all_of(
                MODEL, "results/{model}/signals/{dataset}.{variant}.parquet", "variant"
            ),
            redundant="results/{model}/signals/{dataset}.redundancy.csv",
        log:
            "results/{model}/logs/measure_signals/{dataset}.log",
        benchmark:
            "results/{model}/benchmarks/measure_signals/{dataset}.tsv"
        wildcard_constraints:
            model=one_of([MODEL]),
        conda:
            "../envs/analysis.yaml"
        resources:
            mem_mb=memory_for(memory.signals),
            runtime=scaled(30),
        params:
            variants=SETTINGS[MODEL].tracking.variants,
            code=source_digest("measure_signals"),
        message:
            "Measuring the tracks of {wildcards.model} on {wildcards.dataset}"
        script:
            "../workflow_scripts/track/measure_signals.py"
