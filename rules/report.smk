# rules/report.smk -- phase 6. Needs: metric tables, ledger, links, tracks. Gives: figures, report,
# explorer, costs, the comparison of several models, and parts of a paper (target paper).
include: "common/report.smk"


rule draw_figures:
    """Draw the figures of one model."""
    input:
        checks="results/{model}/evaluation/checks.json",
        metrics="results/{model}/evaluation/metrics.csv",
        curves="results/{model}/evaluation/curves.csv",
        calibration="results/{model}/evaluation/calibration.csv",
        quality=per("results/{model}/saes/layer_{layer}/quality.json", "layer"),
        answers="results/{model}/saes/answers.csv",
        neighbours=neighbour_files,
        links="results/{model}/neighbours/links.csv",
        track_metrics=per(
            "results/{model}/signals/{dataset}.{variant}.parquet", "dataset", "variant"
        ),
        explanations="results/{model}/evaluation/explanations.csv",
        verdicts="results/{model}/detection/risk_coverage.csv",
    output:
        figures=expand(
            "results/{{model}}/figures/{name}.{form}",
            name=[
                "summary",
                "auroc",
                "roc",
                "pr",
                "calibration",
                "risk",
                "verdicts",
                "explanations",
                "sae_quality",
                "links",
                "tracks",
            ],
            form=["png", "pdf", "svg"],
        ),
    log:
        "results/{model}/logs/draw_figures.log",
    benchmark:
        "results/{model}/benchmarks/draw_figures.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.figures),
        runtime=scaled(30),
    params:
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        variants=property_of("variants", "tracking"),
        code=source_digest("draw_figures"),
    message:
        "Drawing the figures of {wildcards.model}"
    script:
        "../workflow_scripts/report/draw_figures.py"


rule write_report:
    """Write the report: one self-contained HTML page."""
    input:
        checks="results/{model}/evaluation/checks.json",
        metrics="results/{model}/evaluation/metrics.csv",
        ledger="results/{model}/evaluation/ledger.csv",
        leak_audit="results/{model}/evaluation/leak_audit.csv",
        quality=per("results/{model}/saes/layer_{layer}/quality.json", "layer"),
        answers="results/{model}/saes/answers.csv",
        neighbours=neighbour_files,
        labels=generated_files("labels.json"),
        relations="results/{model}/evaluation/relations.csv",
        figures=rules.draw_figures.output.figures,
        explanations="results/{model}/evaluation/explanations.csv",
        kinds="results/{model}/detection/kinds.csv",
        source="results/{model}/model/source.json",
        remarked=remarked_examples,
        candidates=remarked_controls,
        token_metrics=if_spans("results/{model}/evaluation/token_metrics.csv"),
        token_claims=if_spans("results/{model}/evaluation/token_claims.csv"),
        span_examples=per_spans("results/{model}/datasets/{dataset}/examples.parquet"),
        span_scores=per_spans("results/{model}/detection/{dataset}/span_scores.parquet"),
        span_choices=per_spans("results/{model}/detection/{dataset}/span_choices.csv"),
    output:
        report=report_page("results/{model}/report.html", "report"),
    log:
        "results/{model}/logs/write_report.log",
    benchmark:
        "results/{model}/benchmarks/write_report.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.page),
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
        "../workflow_scripts/report/write_report.py"


rule write_explorer:
    """Write the explorer: one self-contained HTML page of texts, tokens and tracks."""
    input:
        checks="results/{model}/evaluation/checks.json",
        examples=per("results/{model}/datasets/{dataset}/examples.parquet", "dataset"),
        tokens=per("results/{model}/examples/{dataset}/tokens.parquet", "dataset"),
        outputs=per("results/{model}/examples/{dataset}/outputs.parquet", "dataset"),
        tracks=shown_tracks(".zarr"),
        tracks_manifests=shown_tracks(".json"),
        features=per("results/{model}/features/layer_{layer}.parquet", "layer"),
        clusters="results/{model}/clusters.parquet",
        scores="results/{model}/detection/scores.parquet",
        tokenizer="results/{model}/model/tokenizer.json",
        beside_weights=beside_weights("{model}"),
        token_scores="results/{model}/detection/token_scores.parquet",
        effects="results/{model}/detection/feature_effects.parquet",
        candidates=shown_candidates,
        span_scores=per_spans("results/{model}/detection/{dataset}/span_scores.parquet"),
        span_choices=per_spans("results/{model}/detection/{dataset}/span_choices.csv"),
    output:
        explorer=report_page("results/{model}/explorer.html", "explorer"),
    log:
        "results/{model}/logs/write_explorer.log",
    benchmark:
        "results/{model}/benchmarks/write_explorer.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.explorer),
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
            "report/explorer/candidates.js",
            "report/explorer/page.js",
            "report/templates/style.css",
        ),
    message:
        "Writing the explorer of {wildcards.model}"
    script:
        "../workflow_scripts/report/write_explorer.py"


rule summarise_costs:
    """Sum up the cost of the run: time and memory by rule, disk by kind of output.

    Times differ from run to run, so the report does not contain them.
    """
    input:
        # The last jobs of a run
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
    resources:
        mem_mb=memory_for(memory.costs),
        runtime=scaled(10),
        # Resources, not params: a change of the disk budget reruns nothing.
        planned_kb=planned_kb,
        budget_kb=budget_kb,
    params:
        code=source_digest("summarise_costs", "report/templates"),
    message:
        "Summing up the cost of {wildcards.model}"
    script:
        "../workflow_scripts/report/summarise_costs.py"


rule compare_models:
    """Compare the models of one run, with paired differences on common texts."""
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
    resources:
        mem_mb=memory_for(memory.comparison, len(MODELS)),
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
        "../workflow_scripts/report/compare_models.py"


rule write_paper:
    """Write LaTeX tables, pdf figures and a citation for a paper (target paper)."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        ledger="results/{model}/evaluation/ledger.csv",
        quality=per("results/{model}/saes/layer_{layer}/quality.json", "layer"),
        figures=rules.draw_figures.output.figures,
    output:
        paper=directory("results/{model}/paper"),
    log:
        "results/{model}/logs/write_paper.log",
    benchmark:
        "results/{model}/benchmarks/write_paper.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.page),
        runtime=scaled(10),
    params:
        layers=property_of("layers"),
        code=source_digest("write_paper"),
    message:
        "Writing the paper's parts of {wildcards.model}"
    script:
        "../workflow_scripts/report/write_paper.py"
