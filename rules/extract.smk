# rules/extract.smk -- phase 1. Needs: model, corpus, data sets. Gives: limits of exact batched reading,
# activation stores of every analysed layer, and generated answers. Memory: planning/memory.py.
include: "common/extract.smk"


rule check_model:
    """Compare batched and cached forward passes with the plain one; refuse unsupported models."""
    input:
        weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
    output:
        check="results/{model}/model_check.json",
        table="results/{model}/model_check.csv",
    log:
        "results/{model}/logs/check_model.log",
    benchmark:
        "results/{model}/benchmarks/check_model.tsv"
    priority: 2  # every job with the model waits for it
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.model_check),
        runtime=scaled(30),
    params:
        site=property_of("site", "activations"),
        inference=settings_of("inference", "check_model"),
        min_scale=property_of("min_scale", "activations"),
        code=source_digest("check_model"),
    message:
        "Checking {wildcards.model} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/extract/check_model.py"


# One forward pass serves all layers of a wave. No wildcard can express outputs that are named by layer,
# so there is one rule per model and wave.
for MODEL, WAVE, LAYERS in extraction_waves():

    rule:
        name:
            f"extract_activations_{RULE_NAMES[MODEL]}_wave_{WAVE:02d}"
        input:
            weights=f"results/{MODEL}/model/model.safetensors",
            beside_weights=beside_weights(MODEL),
            check=f"results/{MODEL}/model_check.json",
            train=f"results/{MODEL}/corpus/train.zarr",
            train_manifest=f"results/{MODEL}/corpus/train.json",
            earlier=missing_saes_before(MODEL, WAVE),
        output:
            stores=[
                budgeted(
                    MODEL,
                    directory(
                        f"results/{MODEL}/activations/layer_{layer:02d}/shard_{{shard}}.zarr"
                    ),
                )
                for layer in LAYERS
            ],
            manifests=[
                budgeted(
                    MODEL, f"results/{MODEL}/activations/layer_{layer:02d}/shard_{{shard}}.json"
                )
                for layer in LAYERS
            ],
        log:
            f"results/{MODEL}/logs/extract_activations/{plan.pass_name(LAYERS)}_shard_{{shard}}.log",
        benchmark:
            f"results/{MODEL}/benchmarks/extract_activations/{plan.pass_name(LAYERS)}_shard_{{shard}}.tsv"
        priority: 1  # on the critical path: fetch_corpus, extract_activations, train_sae
        conda:
            "../envs/torch.yaml"
        resources:
            **model_accelerator(MODEL),
            mem_mb=memory_for(memory.extraction, LAYERS, model=MODEL),
            runtime=lasting(120, forecast.extraction_minutes, LAYERS, model=MODEL),
            batch=shrinking(16),
            room_kb=room_kb(MODEL),
        params:
            site=SETTINGS[MODEL].activations.site,
            storage=SETTINGS[MODEL].activations.storage,
            contexts_per_shard=SETTINGS[MODEL].contexts_per_shard,
            inference=SETTINGS[MODEL].inference.model_dump(),
            code=source_digest("extract_activations"),
        message:
            f"Extracting activations of {MODEL}, wave {WAVE}, shard {{wildcards.shard}} (GPUs: {{resources.gpu}})"
        script:
            "../workflow_scripts/extract/extract_activations.py"


for MODEL in MODELS:

    rule:
        name:
            f"extract_heldout_{RULE_NAMES[MODEL]}"
        input:
            weights=f"results/{MODEL}/model/model.safetensors",
            beside_weights=beside_weights(MODEL),
            check=f"results/{MODEL}/model_check.json",
            heldout=f"results/{MODEL}/corpus/heldout.zarr",
            heldout_manifest=f"results/{MODEL}/corpus/heldout.json",
        output:
            stores=[
                directory(f"results/{MODEL}/heldout/layer_{layer}.zarr")
                for layer in layer_names(MODEL)
            ],
            manifests=[
                f"results/{MODEL}/heldout/layer_{layer}.json" for layer in layer_names(MODEL)
            ],
        log:
            f"results/{MODEL}/logs/extract_heldout.log",
        benchmark:
            f"results/{MODEL}/benchmarks/extract_heldout.tsv"
        conda:
            "../envs/torch.yaml"
        resources:
            **model_accelerator(MODEL),
            mem_mb=memory_for(memory.extraction, model=MODEL),
            runtime=scaled(60),
            batch=shrinking(16),
        params:
            site=SETTINGS[MODEL].activations.site,
            inference=SETTINGS[MODEL].inference.model_dump(),
            code=source_digest("extract_heldout"),
        message:
            f"Extracting held-out activations of {MODEL} (GPUs: {{resources.gpu}})"
        script:
            "../workflow_scripts/extract/extract_heldout.py"

    rule:
        name:
            f"extract_examples_{RULE_NAMES[MODEL]}"
        input:
            weights=f"results/{MODEL}/model/model.safetensors",
            beside_weights=beside_weights(MODEL),
            check=f"results/{MODEL}/model_check.json",
            examples=f"results/{MODEL}/datasets/{{dataset}}/examples.parquet",
        output:
            stores=[
                directory(f"results/{MODEL}/examples/{{dataset}}/layer_{layer}.zarr")
                for layer in layer_names(MODEL)
            ],
            manifests=[
                f"results/{MODEL}/examples/{{dataset}}/layer_{layer}.json"
                for layer in layer_names(MODEL)
            ],
            embedding=directory(f"results/{MODEL}/examples/{{dataset}}/embedding.zarr"),
            embedding_manifest=f"results/{MODEL}/examples/{{dataset}}/embedding.json",
            counterfactual_mean=f"results/{MODEL}/examples/{{dataset}}/background.npz",
            prompt_states=f"results/{MODEL}/examples/{{dataset}}/prompts.npz",
            lookback=f"results/{MODEL}/examples/{{dataset}}/lookback.npz",
            tokens=f"results/{MODEL}/examples/{{dataset}}/tokens.parquet",
            outputs=f"results/{MODEL}/examples/{{dataset}}/outputs.parquet",
        log:
            f"results/{MODEL}/logs/extract_examples/{{dataset}}.log",
        benchmark:
            f"results/{MODEL}/benchmarks/extract_examples/{{dataset}}.tsv"
        conda:
            "../envs/torch.yaml"
        resources:
            **model_accelerator(MODEL),
            mem_mb=memory_for(memory.examples, model=MODEL),
            runtime=scaled(60),
            batch=shrinking(32),
        params:
            site=SETTINGS[MODEL].activations.site,
            positions=SETTINGS[MODEL].activations.positions,
            prompts=SETTINGS[MODEL].detection.pmi_prompts,
            whether_true=lambda wildcards, model=MODEL: asked_whether_true(model, wildcards.dataset),
            seed=SETTINGS[MODEL].seed,
            inference=SETTINGS[MODEL].inference.model_dump(),
            code=source_digest("extract_examples"),
        message:
            f"Extracting activations of {MODEL} on {{wildcards.dataset}} (GPUs: {{resources.gpu}})"
        script:
            "../workflow_scripts/extract/extract_examples.py"


rule read_statements:
    """Read training statements of many kinds, for the detector of whole statements."""
    input:
        weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
    output:
        statements="results/{model}/statements/statements.parquet",
        pooled="results/{model}/statements/pooled.safetensors",
        manifest="results/{model}/statements/pooled.json",
    log:
        "results/{model}/logs/read_statements.log",
    benchmark:
        "results/{model}/benchmarks/read_statements.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.statements),
        runtime=scaled(60),
        batch=shrinking(32),
    params:
        layers=property_of("layers"),
        site=property_of("site", "activations"),
        texts_per_kind=property_of("statements_per_kind", "detection"),
        seed=property_of("seed"),
        inference=settings_of("inference", "read_statements"),
        code=source_digest("read_statements", "data"),
    message:
        "Reading statements of many kinds with {wildcards.model} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/extract/read_statements.py"


rule extract_closed_book:
    """Read the statements of a conflict set without their remarks, for the closed-book controls."""
    input:
        weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
        examples="results/{model}/datasets/{dataset}/examples.parquet",
    output:
        closed_book="results/{model}/examples/{dataset}/closed_book.parquet",
    log:
        "results/{model}/logs/extract_closed_book/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/extract_closed_book/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(CONFLICT),
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.extraction),
        runtime=scaled(60),
        batch=shrinking(32),
    params:
        prompts=property_of("pmi_prompts", "detection"),
        seed=settings_of("seed", "extract_closed_book"),
        inference=settings_of("inference", "extract_closed_book"),
        code=source_digest("extract_closed_book"),
    message:
        "Reading {wildcards.dataset} without remarks (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/extract/extract_closed_book.py"


rule extract_without_context:
    """Read the texts of a data set without their contexts, for controls of the detectors."""
    input:
        weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
        examples="results/{model}/datasets/{dataset}/examples.parquet",
    output:
        without_context="results/{model}/examples/{dataset}/without_context.parquet",
    log:
        "results/{model}/logs/extract_without_context/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/extract_without_context/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(IN_CONTEXT),
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.examples),
        runtime=scaled(60),
        batch=shrinking(32),
    params:
        inference=settings_of("inference", "extract_without_context"),
        code=source_digest("extract_without_context"),
    message:
        "Reading {wildcards.dataset} without contexts (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/extract/extract_without_context.py"


rule generate_answers:
    """Generate answers to the questions, and label them by the gold answers."""
    input:
        weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
        questions="results/{model}/datasets/{dataset}/questions.parquet",
    output:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        labels="results/{model}/datasets/{dataset}/labels.json",
        samples="results/{model}/datasets/{dataset}/samples.parquet",
    log:
        "results/{model}/logs/generate_answers/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/generate_answers/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(GENERATED),
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.generation),
        runtime=scaled(60),
        batch=shrinking(32),
    params:
        generation=settings_of("generation", "generate_answers"),
        seed=settings_of("seed", "generate_answers"),
        inference=settings_of("inference", "generate_answers"),
        code=source_digest("generate_answers"),
    message:
        "Generating answers of {wildcards.model} to {wildcards.dataset} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/extract/generate_answers.py"
