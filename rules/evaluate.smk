# rules/evaluate.smk -- phase 5. Needs: out-of-fold scores, SAE quality, links. Gives: metric tables, claim ledger, figures, report, comparison.
rule evaluate_detectors:
    """Put an interval on every score, and hold each claim against its best control."""
    input:
        parts=per_dataset("results/{model}/detection/{dataset}/scores.parquet"),
        generated=generated_files("examples.parquet"),
        selections=per_dataset("results/{model}/detection/{dataset}/selection.csv"),
        importances=per_dataset("results/{model}/detection/{dataset}/importance.csv"),
        audits=per_dataset("results/{model}/detection/{dataset}/leak_audit.csv"),
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
    threads: 1
    resources:
        mem_mb=scaled(2000),
        runtime=scaled(60),
    params:
        datasets=property_of("datasets"),
        controls=control_datasets,
        variants=lambda wildcards: SETTINGS[wildcards.model].tracking.variants,
        evaluation=settings_of("evaluation", "evaluate_detectors"),
        seed=settings_of("seed", "evaluate_detectors"),
        code=source_digest("evaluate_detectors"),
    message:
        "Evaluating the detectors of {wildcards.model}"
    script:
        "../workflow_scripts/evaluate_detectors.py"


rule save_detector:
    """Fit the default detector on all strict data sets together and keep it, for texts of one's own."""
    input:
        audits=per_dataset("results/{model}/detection/{dataset}/leak_audit.csv"),
        examples=per_dataset("results/{model}/datasets/{dataset}/examples.parquet"),
        outputs=per_dataset("results/{model}/examples/{dataset}/outputs.parquet"),
        weights=per_layer("results/{model}/saes/layer_{layer}/sae_weights.safetensors"),
        stores=per_layer_and_dataset("results/{model}/examples/{dataset}/layer_{layer}.zarr"),
        manifests=per_layer_and_dataset("results/{model}/examples/{dataset}/layer_{layer}.json"),
        cfgs=per_layer("results/{model}/saes/layer_{layer}/cfg.json"),
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
    threads: 1
    resources:
        mem_mb=detector_memory,
        runtime=scaled(120),
    params:
        datasets=property_of("datasets"),
        layers=property_of("layers"),
        site=lambda wildcards: SETTINGS[wildcards.model].activations.site,
        positions=lambda wildcards: SETTINGS[wildcards.model].activations.positions,
        detection=settings_of("detection", "save_detector"),
        seed=settings_of("seed", "save_detector"),
        code=source_digest("save_detector"),
    message:
        "Saving the detector of {wildcards.model}"
    script:
        "../workflow_scripts/save_detector.py"


rule check_explanations:
    """Take the named reasons out of the running model, and as many others, and see how far the score moves."""
    input:
        detector="results/{model}/detection/detector.safetensors",
        about="results/{model}/detection/detector.json",
        examples=per_dataset("results/{model}/datasets/{dataset}/examples.parquet"),
        weights=per_layer("results/{model}/saes/layer_{layer}/sae_weights.safetensors"),
        cfgs=per_layer("results/{model}/saes/layer_{layer}/cfg.json"),
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
    threads: 1
    resources:
        **ACCELERATOR,
        mem_mb=splicing_memory,
        runtime=scaled(60),
    params:
        datasets=property_of("datasets"),
        evaluation=settings_of("evaluation", "check_explanations"),
        seed=settings_of("seed", "check_explanations"),
        code=source_digest("check_explanations"),
    message:
        "Testing the explanations of {wildcards.model} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/check_explanations.py"


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
    threads: 1
    resources:
        mem_mb=scaled(500),
        runtime=scaled(10),
    params:
        code=source_digest("check_claims"),
    message:
        "Holding {wildcards.model} to its headline claims"
    script:
        "../workflow_scripts/check_claims.py"


rule draw_figures:
    """Draw the figures of one model's run."""
    input:
        checks="results/{model}/evaluation/checks.json",
        metrics="results/{model}/evaluation/metrics.csv",
        curves="results/{model}/evaluation/curves.csv",
        calibration="results/{model}/evaluation/calibration.csv",
        quality=per_layer("results/{model}/saes/layer_{layer}/quality.json"),
        answers="results/{model}/saes/answers.csv",
        neighbours=neighbour_files,
        links="results/{model}/neighbours/links.csv",
        signals=per_dataset_and_variant("results/{model}/signals/{dataset}.{variant}.parquet"),
        explanations="results/{model}/evaluation/explanations.csv",
    output:
        figures=expand(
            "results/{{model}}/figures/{name}.{form}",
            name=["auroc", "roc", "pr", "calibration", "risk", "explanations", "sae_quality", "links", "tracks"],
            form=["png", "pdf", "svg"],
        ),
    log:
        "results/{model}/logs/draw_figures.log",
    benchmark:
        "results/{model}/benchmarks/draw_figures.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(1500),
        runtime=scaled(30),
    params:
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        variants=lambda wildcards: SETTINGS[wildcards.model].tracking.variants,
        code=source_digest("draw_figures"),
    message:
        "Drawing the figures of {wildcards.model}"
    script:
        "../workflow_scripts/draw_figures.py"


rule write_report:
    """Write the report: one self-contained page, verdict first."""
    input:
        checks="results/{model}/evaluation/checks.json",
        metrics="results/{model}/evaluation/metrics.csv",
        ledger="results/{model}/evaluation/ledger.csv",
        leak_audit="results/{model}/evaluation/leak_audit.csv",
        quality=per_layer("results/{model}/saes/layer_{layer}/quality.json"),
        answers="results/{model}/saes/answers.csv",
        neighbours=neighbour_files,
        labels=generated_files("labels.json"),
        relations="results/{model}/evaluation/relations.csv",
        figures=rules.draw_figures.output.figures,
        explanations="results/{model}/evaluation/explanations.csv",
        source="results/{model}/model/source.json",
    output:
        report=report_page("results/{model}/report.html", "report"),
    log:
        "results/{model}/logs/write_report.log",
    benchmark:
        "results/{model}/benchmarks/write_report.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(1000),
        runtime=scaled(10),
    params:
        settings=chosen_settings,
        controls=control_datasets,
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        code=source_digest("write_report", "report/templates"),
    message:
        "Writing the report of {wildcards.model}"
    script:
        "../workflow_scripts/write_report.py"


rule write_explorer:
    """Write the explorer: one self-contained page of texts, their tokens and tracks."""
    input:
        checks="results/{model}/evaluation/checks.json",
        examples=per_dataset("results/{model}/datasets/{dataset}/examples.parquet"),
        tokens=per_dataset("results/{model}/examples/{dataset}/tokens.parquet"),
        outputs=per_dataset("results/{model}/examples/{dataset}/outputs.parquet"),
        tracks=shown_tracks(".zarr"),
        tracks_manifests=shown_tracks(".json"),
        features=per_layer("results/{model}/features/layer_{layer}.parquet"),
        clusters="results/{model}/clusters.parquet",
        scores="results/{model}/detection/scores.parquet",
        tokenizer="results/{model}/model/tokenizer.json",
        beside_weights=beside_weights("{model}"),
        token_scores="results/{model}/detection/token_scores.parquet",
        effects="results/{model}/detection/feature_effects.parquet",
    output:
        explorer=report_page("results/{model}/explorer.html", "explorer"),
    log:
        "results/{model}/logs/write_explorer.log",
    benchmark:
        "results/{model}/benchmarks/write_explorer.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=scaled(2000),
        runtime=scaled(30),
    params:
        report=settings_of("report", "write_explorer"),
        datasets=property_of("datasets"),
        layers=property_of("layers"),
        code=source_digest(
            "write_explorer",
            "report/explorer/page.html",
            "report/explorer/page.css",
            "report/explorer/answer.js",
            "report/explorer/page.js",
            "report/templates/style.css",
        ),
    message:
        "Writing the explorer of {wildcards.model}"
    script:
        "../workflow_scripts/write_explorer.py"


rule summarise_costs:
    """Sum up what the run took: time and memory by rule, disk by kind of output. Times differ, so this is no part of the report."""
    input:
        # The last jobs of a run.
        report="results/{model}/report.html",
        explorer="results/{model}/explorer.html",
    output:
        page=report_page("results/{model}/benchmarks/costs.html", "cost"),
        jobs="results/{model}/benchmarks/costs.csv",
        disk="results/{model}/benchmarks/disk.csv",
    log:
        "results/{model}/logs/summarise_costs.log",
    benchmark:
        "results/{model}/benchmarks/summarise_costs.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(500),
        runtime=scaled(10),
        # Resources, not params: how the disk is used reruns nothing.
        planned_kb=planned_kb,
        budget_kb=budget_kb,
    params:
        code=source_digest("summarise_costs", "report/templates"),
    message:
        "Summing up the cost of {wildcards.model}"
    script:
        "../workflow_scripts/summarise_costs.py"


rule check_results:
    """Check the finished tables, so that a bad run fails here and not in a reader's hands."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        scores="results/{model}/detection/scores.parquet",
        quality=per_layer("results/{model}/saes/layer_{layer}/quality.json"),
        answers="results/{model}/saes/answers.csv",
        examples=per_dataset("results/{model}/datasets/{dataset}/examples.parquet"),
    output:
        checks="results/{model}/evaluation/checks.json",
    log:
        "results/{model}/logs/check_results.log",
    benchmark:
        "results/{model}/benchmarks/check_results.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(1000),
        runtime=scaled(10),
    params:
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        expected=expected_settings,
        code=source_digest("check_results"),
    message:
        "Checking the results of {wildcards.model}"
    script:
        "../workflow_scripts/check_results.py"


rule score_texts:
    """Score the texts of one's own file with the saved detector. Not part of `all`: ask for `scores`."""
    input:
        texts=own_texts,
        context=own_context,
        detector="results/{model}/detection/detector.safetensors",
        about="results/{model}/detection/detector.json",
        features=per_layer("results/{model}/features/layer_{layer}.parquet"),
        weights=per_layer("results/{model}/saes/layer_{layer}/sae_weights.safetensors"),
        cfgs=per_layer("results/{model}/saes/layer_{layer}/cfg.json"),
        model_weights="results/{model}/model/model.safetensors",
        beside_weights=beside_weights("{model}"),
        check="results/{model}/model_check.json",
    output:
        scores=multiext("results/{model}/scores/texts", ".jsonl", ".csv", ".html"),
    log:
        "results/{model}/logs/score_texts.log",
    benchmark:
        "results/{model}/benchmarks/score_texts.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        **ACCELERATOR,
        mem_mb=splicing_memory,
        runtime=scaled(120),
    params:
        score=settings_of("score", "score_texts"),
        code=source_digest("score_texts", "report/templates"),
    message:
        "Scoring texts with the detector of {wildcards.model} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/score_texts.py"


rule write_paper:
    """Write the run as parts of a paper: LaTeX tables, pdf figures, citation. Not part of `all`: ask for `paper`."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        ledger="results/{model}/evaluation/ledger.csv",
        quality=per_layer("results/{model}/saes/layer_{layer}/quality.json"),
        figures=rules.draw_figures.output.figures,
    output:
        paper=directory("results/{model}/paper"),
    log:
        "results/{model}/logs/write_paper.log",
    benchmark:
        "results/{model}/benchmarks/write_paper.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(500),
        runtime=scaled(10),
    params:
        layers=property_of("layers"),
        code=source_digest("write_paper"),
    message:
        "Writing the paper's parts of {wildcards.model}"
    script:
        "../workflow_scripts/write_paper.py"


rule compare_models:
    """Set the models of one run side by side, and pair them where they have texts in common."""
    input:
        metrics=expand("results/{model}/evaluation/metrics.csv", model=MODELS),
        ledgers=expand("results/{model}/evaluation/ledger.csv", model=MODELS),
        scores=expand("results/{model}/detection/scores.parquet", model=MODELS),
        examples=all_examples,
    output:
        table="results/comparison/metrics.csv",
        differences="results/comparison/differences.csv",
        page="results/comparison/comparison.html",
    log:
        "results/comparison/logs/compare_models.log",
    benchmark:
        "results/comparison/benchmarks/compare_models.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(1000),
        runtime=scaled(10),
    params:
        models=MODELS,
        controls=[name for name, settings in DATASETS.items() if settings.control],
        evaluation=SETTINGS[MODELS[0]].evaluation.model_dump(),
        seed=SETTINGS[MODELS[0]].seed,
        code=source_digest("compare_models", "report/templates"),
    message:
        "Comparing the models"
    script:
        "../workflow_scripts/compare_models.py"
