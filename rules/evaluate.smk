# rules/evaluate.smk -- phase 5. Needs: out-of-fold scores, SAE quality. Gives: metric tables, the claim
# ledger, a test of the explanations, and checks of the results.
include: "common/evaluate.smk"


rule evaluate_detectors:
    """Compute AUROC with intervals for every score, and test each claim against its best control."""
    input:
        parts=per("results/{model}/detection/{dataset}/scores.parquet", "dataset"),
        external=external_scores,
        generated=generated_files("examples.parquet"),
        selections=per("results/{model}/detection/{dataset}/selection.csv", "dataset"),
        importances=per("results/{model}/detection/{dataset}/importance.csv", "dataset"),
        audits=per("results/{model}/detection/{dataset}/leak_audit.csv", "dataset"),
    output:
        scores="results/{model}/detection/scores.parquet",
        selection="results/{model}/detection/selection.csv",
        importance="results/{model}/detection/importance.csv",
        metrics="results/{model}/evaluation/metrics.csv",
        ledger="results/{model}/evaluation/ledger.csv",
        leak_audit="results/{model}/evaluation/leak_audit.csv",
        calibration="results/{model}/evaluation/calibration.csv",
        curves="results/{model}/evaluation/curves.csv",
        relations="results/{model}/evaluation/relations.csv",
    log:
        "results/{model}/logs/evaluate_detectors.log",
    benchmark:
        "results/{model}/benchmarks/evaluate_detectors.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.evaluation),
        runtime=scaled(60),
    params:
        datasets=property_of("datasets"),
        controls=control_datasets,
        variants=property_of("variants", "tracking"),
        null_rows_differ=null_rows_differ,
        evaluation=settings_of("evaluation", "evaluate_detectors"),
        seed=settings_of("seed", "evaluate_detectors"),
        code=source_digest("evaluate_detectors"),
    message:
        "Evaluating the detectors of {wildcards.model}"
    script:
        "../workflow_scripts/evaluate/evaluate_detectors.py"


rule evaluate_token_detectors:
    """Measure the scores of tokens, and test the claims about them."""
    input:
        scores=per_spans("results/{model}/detection/{dataset}/span_scores.parquet"),
        choices=per_spans("results/{model}/detection/{dataset}/span_choices.csv"),
    output:
        metrics="results/{model}/evaluation/token_metrics.csv",
        claims="results/{model}/evaluation/token_claims.csv",
    log:
        "results/{model}/logs/evaluate_token_detectors.log",
    benchmark:
        "results/{model}/benchmarks/evaluate_token_detectors.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.token_evaluation),
        runtime=scaled(30),
    params:
        datasets=per_spans("{dataset}"),
        controls=control_datasets,
        evaluation=settings_of("evaluation", "evaluate_token_detectors"),
        seed=settings_of("seed", "evaluate_token_detectors"),
        code=source_digest("evaluate_token_detectors"),
    message:
        "Evaluating the token detectors of {wildcards.model}"
    script:
        "../workflow_scripts/evaluate/evaluate_token_detectors.py"


rule check_explanations:
    """Ablate the features that explain a score, and as many random ones, in the running model."""
    input:
        detector="results/{model}/detection/detector.safetensors",
        about="results/{model}/detection/detector.json",
        examples=per("results/{model}/datasets/{dataset}/examples.parquet", "dataset"),
        features=per("results/{model}/features/layer_{layer}.parquet", "layer"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        model_weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
    output:
        explanations="results/{model}/evaluation/explanations.csv",
    log:
        "results/{model}/logs/check_explanations.log",
    benchmark:
        "results/{model}/benchmarks/check_explanations.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        **model_accelerator(),
        mem_mb=memory_for(memory.scoring),
        runtime=scaled(60),
    params:
        datasets=property_of("datasets"),
        evaluation=settings_of("evaluation", "check_explanations"),
        seed=settings_of("seed", "check_explanations"),
        code=source_digest("check_explanations"),
    message:
        "Testing the explanations of {wildcards.model} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/evaluate/check_explanations.py"


rule check_claims:
    """Fail when a headline claim is not established (strict: true)."""
    input:
        ledger="results/{model}/evaluation/ledger.csv",
    output:
        passed="results/{model}/evaluation/claims.json",
    log:
        "results/{model}/logs/check_claims.log",
    benchmark:
        "results/{model}/benchmarks/check_claims.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.page),
        runtime=scaled(10),
    params:
        code=source_digest("check_claims"),
    message:
        "Holding {wildcards.model} to its headline claims"
    script:
        "../workflow_scripts/evaluate/check_claims.py"


rule check_results:
    """Check the finished tables for impossible or missing values."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        scores="results/{model}/detection/scores.parquet",
        quality=per("results/{model}/saes/layer_{layer}/quality.json", "layer"),
        answers="results/{model}/saes/answers.csv",
        examples=per("results/{model}/datasets/{dataset}/examples.parquet", "dataset"),
    output:
        checks="results/{model}/evaluation/checks.json",
    log:
        "results/{model}/logs/check_results.log",
    benchmark:
        "results/{model}/benchmarks/check_results.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.checks),
        runtime=scaled(10),
    params:
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        controls=control_datasets,
        expected=expected_settings,
        code=source_digest("check_results"),
    message:
        "Checking the results of {wildcards.model}"
    script:
        "../workflow_scripts/evaluate/check_results.py"
