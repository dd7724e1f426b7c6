# rules/detect.smk -- phase 4. Needs: activations, SAEs, track metrics and model outputs of one data set.
# Gives: its leak audit, out-of-fold scores of every control and detector, and the saved detector.
include: "common/detect.smk"


rule audit_dataset:
    """Audit one data set for label leaks, and score the text-only controls, before any training."""
    input:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        outputs="results/{model}/examples/{dataset}/outputs.parquet",
        embedding="results/{model}/examples/{dataset}/embedding.zarr",
        embedding_manifest="results/{model}/examples/{dataset}/embedding.json",
    output:
        scores="results/{model}/detection/{dataset}/controls.parquet",
        checks="results/{model}/detection/{dataset}/leak_audit.csv",
    log:
        "results/{model}/logs/audit_dataset/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/audit_dataset/{dataset}.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.audit),
        runtime=scaled(60),
    params:
        control=lambda wildcards: DATASETS[wildcards.dataset].control,
        detection=settings_of("detection", "audit_dataset"),
        evaluation=settings_of("evaluation", "audit_dataset"),
        seed=settings_of("seed", "audit_dataset"),
        code=source_digest("audit_dataset"),
    message:
        "Auditing {wildcards.dataset} for leaks ({wildcards.model})"
    script:
        "../workflow_scripts/detect/audit_dataset.py"


rule train_detectors:
    """Train every detector of one data set in the audited folds; write out-of-fold scores."""
    input:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        outputs="results/{model}/examples/{dataset}/outputs.parquet",
        audited="results/{model}/detection/{dataset}/controls.parquet",
        stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer"),
        manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        counterfactual_mean="results/{model}/examples/{dataset}/background.npz",
        prompt_states="results/{model}/examples/{dataset}/prompts.npz",
        track_metrics=per("results/{model}/signals/{dataset}.{variant}.parquet", "variant"),
        samples=drawn_answers,
        candidates=candidate_tables,
        random_decoders=null_decoders("sae_weights.safetensors"),
        null_cfgs=null_decoders("cfg.json"),
        closed_book=closed_book,
        without_context=without_context,
    output:
        scores="results/{model}/detection/{dataset}/scores.parquet",
        selection="results/{model}/detection/{dataset}/selection.csv",
        importance="results/{model}/detection/{dataset}/importance.csv",
    log:
        "results/{model}/logs/train_detectors/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/train_detectors/{dataset}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.detectors),
        runtime=scaled(120),
    params:
        layers=property_of("layers"),
        variants=property_of("variants", "tracking"),
        detection=settings_of("detection", "train_detectors"),
        seed=settings_of("seed", "train_detectors"),
        code=source_digest("train_detectors"),
    message:
        "Training the detectors of {wildcards.model} on {wildcards.dataset}"
    script:
        "../workflow_scripts/detect/train_detectors.py"


rule train_token_detectors:
    """Train detectors of hallucinated tokens of one data set, with their controls."""
    input:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        tokens="results/{model}/examples/{dataset}/tokens.parquet",
        audited="results/{model}/detection/{dataset}/controls.parquet",
        without_context=without_context,
        stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer"),
        manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
    output:
        scores="results/{model}/detection/{dataset}/span_scores.parquet",
        choices="results/{model}/detection/{dataset}/span_choices.csv",
    log:
        "results/{model}/logs/train_token_detectors/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/train_token_detectors/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(WITH_SPANS),
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.token_detectors),
        runtime=scaled(120),
    params:
        layers=property_of("layers"),
        code=source_digest("train_token_detectors"),
    message:
        "Training the token detectors of {wildcards.model} on {wildcards.dataset}"
    script:
        "../workflow_scripts/detect/train_token_detectors.py"


rule save_detector:
    """Fit the default detector on all text-controlled data sets together and save it for user texts."""
    input:
        audits=per("results/{model}/detection/{dataset}/leak_audit.csv", "dataset"),
        examples=per("results/{model}/datasets/{dataset}/examples.parquet", "dataset"),
        outputs=per("results/{model}/examples/{dataset}/outputs.parquet", "dataset"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer", "dataset"),
        manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer", "dataset"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        source="results/{model}/model/source.json",
    output:
        detector="results/{model}/detection/detector.safetensors",
        about="results/{model}/detection/detector.json",
        token_scores="results/{model}/detection/token_scores.parquet",
        effects="results/{model}/detection/feature_effects.parquet",
    log:
        "results/{model}/logs/save_detector.log",
    benchmark:
        "results/{model}/benchmarks/save_detector.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.saved_detector),
        runtime=scaled(120),
    params:
        datasets=property_of("datasets"),
        layers=property_of("layers"),
        site=property_of("site", "activations"),
        positions=property_of("positions", "activations"),
        detection=settings_of("detection", "save_detector"),
        seed=settings_of("seed", "save_detector"),
        code=source_digest("save_detector"),
    message:
        "Saving the detector of {wildcards.model}"
    script:
        "../workflow_scripts/detect/save_detector.py"
