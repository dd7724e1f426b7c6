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


rule read_score_table:
    """Join one table of scores that were made elsewhere (external.tables) with the texts."""
    input:
        table=score_table,
        audited=per("results/{model}/detection/{dataset}/controls.parquet", "dataset"),
        examples=per("results/{model}/datasets/{dataset}/examples.parquet", "dataset"),
    output:
        scores="results/{model}/external/tables/{score_table}.parquet",
    log:
        "results/{model}/logs/read_score_table/{score_table}.log",
    benchmark:
        "results/{model}/benchmarks/read_score_table/{score_table}.tsv"
    wildcard_constraints:
        score_table=one_of(SCORE_TABLES),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.score_table),
        runtime=scaled(10),
    params:
        datasets=property_of("datasets"),
        lower_is_hallucinated=table_setting("lower_is_hallucinated"),
        tokens=table_setting("tokens"),
        code=source_digest("read_score_table"),
    message:
        "Joining the scores {wildcards.score_table} with the texts of {wildcards.model}"
    script:
        "../workflow_scripts/detect/read_score_table.py"


rule fit_detector_class:
    """Fit one Python class (external.classes) on one data set in the audited folds."""
    input:
        source=class_file,
        imports=class_imports,
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        outputs="results/{model}/examples/{dataset}/outputs.parquet",
        audited="results/{model}/detection/{dataset}/controls.parquet",
        stores=class_reads(
            "results/{model}/examples/{dataset}/layer_{layer}.zarr", *ACTIVATION_PARTS
        ),
        manifests=class_reads(
            "results/{model}/examples/{dataset}/layer_{layer}.json", *ACTIVATION_PARTS
        ),
        weights=class_reads("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "codes"),
        cfgs=class_reads("results/{model}/saes/layer_{layer}/cfg.json", "codes"),
        track_metrics=class_reads("results/{model}/signals/{dataset}.default.parquet", "tracks"),
        tokens=class_reads("results/{model}/examples/{dataset}/tokens.parquet", "tokens"),
    output:
        scores="results/{model}/external/classes/{detector_class}/{dataset}.parquet",
    log:
        "results/{model}/logs/fit_detector_class/{detector_class}.{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/fit_detector_class/{detector_class}.{dataset}.tsv"
    wildcard_constraints:
        detector_class=one_of(DETECTOR_CLASSES),
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.detector_class),
        runtime=scaled(120),
    params:
        reads=class_setting("reads"),
        module=class_module,
        class_name=class_name,
        layers=property_of("layers"),
        seed=settings_of("seed", "fit_detector_class"),
        code=source_digest("fit_detector_class"),
    message:
        "Fitting the class {wildcards.detector_class} on {wildcards.dataset} ({wildcards.model})"
    script:
        "../workflow_scripts/detect/fit_detector_class.py"


rule train_token_detectors:
    """Train detectors of hallucinated tokens of one data set, with their controls."""
    input:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        tokens="results/{model}/examples/{dataset}/tokens.parquet",
        audited="results/{model}/detection/{dataset}/controls.parquet",
        without_context=without_context,
        lookback="results/{model}/examples/{dataset}/lookback.npz",
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


rule save_statement_detector:
    """Fit the detector of whole statements, test it on left-out kinds, and save it for user texts."""
    input:
        statements="results/{model}/statements/statements.parquet",
        pooled="results/{model}/statements/pooled.safetensors",
        manifest="results/{model}/statements/pooled.json",
        source="results/{model}/model/source.json",
    output:
        detector="results/{model}/detection/statements.safetensors",
        about="results/{model}/detection/statements.json",
        kinds="results/{model}/detection/kinds.csv",
        curve="results/{model}/detection/risk_coverage.csv",
    log:
        "results/{model}/logs/save_statement_detector.log",
    benchmark:
        "results/{model}/benchmarks/save_statement_detector.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.statement_detector),
        runtime=scaled(60),
    params:
        code=source_digest("save_statement_detector"),
    message:
        "Saving the detector of statements of {wildcards.model}"
    script:
        "../workflow_scripts/detect/save_statement_detector.py"
