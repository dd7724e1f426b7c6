# rules/sae.smk -- phase 2. Needs: activations of one layer, or of all. Gives: weights, loss history,
# held-out quality and feature descriptions of one SAE per layer.
include: "common/sae.smk"


rule train_sae:
    """Train one sparse autoencoder (SAE) on the activations of one layer."""
    input:
        stores=per("results/{model}/activations/layer_{layer}/shard_{shard}.zarr", "shard"),
        manifests=per("results/{model}/activations/layer_{layer}/shard_{shard}.json", "shard"),
        model_source="results/{model}/model/source.json",
        warm_start_layer=warm_start_files,
    output:
        weights="results/{model}/saes/layer_{layer}/sae_weights.safetensors",
        cfg="results/{model}/saes/layer_{layer}/cfg.json",
        history="results/{model}/saes/layer_{layer}/history.csv",
    log:
        "results/{model}/logs/train_sae/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/train_sae/layer_{layer}.tsv"
    wildcard_constraints:
        model=one_of(
            [model for model in MODELS if SETTINGS[model].sae.trained and model not in SHARED]
        ),
    priority: 1
    conda:
        "../envs/torch.yaml"
    resources:
        **ACCELERATOR,
        mem_mb=memory_for(memory.training),
        runtime=lasting(120, forecast.training_minutes),
        # After an out-of-memory: read rows window by window, in smaller micro-batches.
        resident_mb=first_attempt(1536),
        micro_batch=shrinking(4096),
        checkpoint_seconds=60,  # work lost when a job is killed without a signal
        cuda_graph=0,  # 1: a GPU runs a step's pass as one graph; not measured
    params:
        sae=settings_of("sae", "train_sae"),
        seed=settings_of("seed", "train_sae"),
        state="results/{model}/state/train_sae/layer_{layer}",
        events=event_folder("train_sae/layer_{layer}"),
        # The waves of extraction read it to recognise a stale SAE. As a function of `resources` it is
        # no rerun trigger.
        training_digest=lambda wildcards, resources: training_digest(wildcards.model),
        code=source_digest("train_sae"),
    message:
        "Training the SAE of {wildcards.model} layer {wildcards.layer} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/sae/train_sae.py"


# One dictionary for all layers: one job, whose output files depend on the model's layers.
for MODEL in SHARED:

    rule:
        """Train one SAE on the activations of all layers of a model."""
        name:
            f"train_shared_sae_{RULE_NAMES[MODEL]}"
        input:
            stores=per(
                "results/{model}/activations/layer_{layer}/shard_{shard}.zarr", "layer", "shard"
            ),
            manifests=per(
                "results/{model}/activations/layer_{layer}/shard_{shard}.json", "layer", "shard"
            ),
            model_source="results/{model}/model/source.json",
        output:
            weights=all_of(
                MODEL, "results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"
            ),
            cfg=all_of(MODEL, "results/{model}/saes/layer_{layer}/cfg.json", "layer"),
            history=all_of(MODEL, "results/{model}/saes/layer_{layer}/history.csv", "layer"),
        log:
            "results/{model}/logs/train_shared_sae.log",
        benchmark:
            "results/{model}/benchmarks/train_shared_sae.tsv"
        wildcard_constraints:
            model=one_of([MODEL]),
        priority: 1
        conda:
            "../envs/torch.yaml"
        resources:
            **ACCELERATOR,
            mem_mb=memory_for(memory.shared_training),
            runtime=lasting(
                120 * len(SETTINGS[MODEL].layers),
                forecast.training_minutes,
                len(SETTINGS[MODEL].layers),
                model=MODEL,
            ),
            resident_mb=first_attempt(1536),
            micro_batch=shrinking(4096),
            cuda_graph=0,  # 1: a GPU runs a step's pass as one graph; not measured
        params:
            layers=property_of("layers"),
            sae=settings_of("sae", "train_shared_sae"),
            seed=settings_of("seed", "train_shared_sae"),
            state="results/{model}/state/train_shared_sae",
            events=event_folder("train_shared_sae"),
            # As in train_sae.
            training_digest=lambda wildcards, resources: training_digest(wildcards.model),
            code=source_digest("train_shared_sae"),
        message:
            "Training one SAE for all layers of {wildcards.model} (GPUs: {resources.gpu})"
        script:
            "../workflow_scripts/sae/train_shared_sae.py"


rule fit_random_decoder:
    """Fit the null of one SAE : the same L0 and encoder fit, a random decoder."""
    input:
        stores=null_rows(".zarr"),
        manifests=null_rows(".json"),
        trained="results/{model}/saes/layer_{layer}/sae_weights.safetensors",
        trained_cfg="results/{model}/saes/layer_{layer}/cfg.json",
        quality="results/{model}/saes/layer_{layer}/quality.json",
    output:
        weights="results/{model}/random_decoders/layer_{layer}/sae_weights.safetensors",
        cfg="results/{model}/random_decoders/layer_{layer}/cfg.json",
        history="results/{model}/random_decoders/layer_{layer}/history.csv",
    log:
        "results/{model}/logs/fit_random_decoder/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/fit_random_decoder/layer_{layer}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        **ACCELERATOR,
        mem_mb=memory_for(memory.training),
        runtime=lasting(120, forecast.training_minutes),
        resident_mb=first_attempt(1536),
        micro_batch=shrinking(4096),
    params:
        sae=settings_of("sae", "fit_random_decoder"),
        seed=settings_of("seed", "fit_random_decoder"),
        state="results/{model}/state/fit_random_decoder/layer_{layer}",
        code=source_digest("fit_random_decoder"),
    message:
        "Fitting a random decoder of {wildcards.model} layer {wildcards.layer} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/sae/fit_random_decoder.py"


rule evaluate_sae:
    """Measure one SAE on held-out documents: reconstruction, and loss recovered when spliced in."""
    input:
        weights="results/{model}/saes/layer_{layer}/sae_weights.safetensors",
        cfg="results/{model}/saes/layer_{layer}/cfg.json",
        store="results/{model}/heldout/layer_{layer}.zarr",
        manifest="results/{model}/heldout/layer_{layer}.json",
        heldout="results/{model}/corpus/heldout.zarr",
        heldout_manifest="results/{model}/corpus/heldout.json",
        model_weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
    output:
        quality="results/{model}/saes/layer_{layer}/quality.json",
    log:
        "results/{model}/logs/evaluate_sae/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/evaluate_sae/layer_{layer}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.splicing),
        runtime=scaled(30),
        batch=shrinking(2),
    params:
        inference=settings_of("inference", "evaluate_sae"),
        code=source_digest("evaluate_sae"),
    message:
        "Evaluating the SAE of {wildcards.model} layer {wildcards.layer} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/sae/evaluate_sae.py"


rule measure_answers:
    """Measure every SAE on the answer tokens of every data set."""
    input:
        stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer", "dataset"),
        manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer", "dataset"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
    output:
        answers="results/{model}/saes/answers.csv",
    log:
        "results/{model}/logs/measure_answers.log",
    benchmark:
        "results/{model}/benchmarks/measure_answers.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.answers),
        runtime=scaled(60),
    params:
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        code=source_digest("measure_answers"),
    message:
        "Measuring the SAEs of {wildcards.model} on answer tokens"
    script:
        "../workflow_scripts/sae/measure_answers.py"


rule describe_features:
    """Describe every feature of one layer: top contexts, promoted tokens, similar features."""
    input:
        weights="results/{model}/saes/layer_{layer}/sae_weights.safetensors",
        cfg="results/{model}/saes/layer_{layer}/cfg.json",
        store="results/{model}/heldout/layer_{layer}.zarr",
        manifest="results/{model}/heldout/layer_{layer}.json",
        heldout="results/{model}/corpus/heldout.zarr",
        heldout_manifest="results/{model}/corpus/heldout.json",
        model_weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
    output:
        features="results/{model}/features/layer_{layer}.parquet",
    log:
        "results/{model}/logs/describe_features/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/describe_features/layer_{layer}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.dictionary),
        runtime=scaled(30),
    params:
        code=source_digest("describe_features"),
    message:
        "Describing the features of {wildcards.model} layer {wildcards.layer}"
    script:
        "../workflow_scripts/sae/describe_features.py"
