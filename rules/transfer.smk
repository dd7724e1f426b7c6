# rules/transfer.smk -- aside from a run (target transfer). Needs: a finished evaluation. Gives: AUROC of
# detectors on relations, data sets and wordings of remarks that they were not trained on.
include: "common/transfer.smk"


rule transfer_detectors:
    """Train the detector and its controls on some relations, and test them on others."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        scores="results/{model}/detection/scores.parquet",
        examples=per("results/{model}/datasets/{dataset}/examples.parquet", "dataset"),
        outputs=per("results/{model}/examples/{dataset}/outputs.parquet", "dataset"),
        counterfactual_means=per("results/{model}/examples/{dataset}/background.npz", "dataset"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer", "dataset"),
        manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer", "dataset"),
    output:
        transfer="results/{model}/evaluation/transfer.csv",
        left_out="results/{model}/evaluation/left_out.csv",
    log:
        "results/{model}/logs/transfer_detectors.log",
    benchmark:
        "results/{model}/benchmarks/transfer_detectors.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.transfer),
        runtime=scaled(120),
    params:
        datasets=property_of("datasets"),
        controls=control_datasets,
        layers=property_of("layers"),
        detection=settings_of("detection", "transfer_detectors"),
        evaluation=settings_of("evaluation", "transfer_detectors"),
        seed=settings_of("seed", "transfer_detectors"),
        code=source_digest("transfer_detectors"),
    message:
        "Testing the detectors of {wildcards.model} on relations that they have not seen"
    script:
        "../workflow_scripts/transfer/transfer_detectors.py"


rule transfer_misled:
    """Train detectors and controls on conflict sets without a relation or a wording; test them there."""
    input:
        examples=per_misled("datasets/{dataset}/examples.parquet"),
        outputs=per_misled("examples/{dataset}/outputs.parquet"),
        closed_books=per_misled("examples/{dataset}/closed_book.parquet"),
        backgrounds=per_misled("examples/{dataset}/background.npz"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        stores=per_misled("examples/{dataset}/layer_{layer}.zarr"),
        manifests=per_misled("examples/{dataset}/layer_{layer}.json"),
        controls=if_misled_compared(per_misled("candidates/{dataset}.controls.parquet")),
        metrics=if_misled_compared(per_misled("candidates/{dataset}.metrics.parquet")),
    output:
        misled_left_out="results/{model}/evaluation/misled_left_out.csv",
    log:
        "results/{model}/logs/transfer_misled.log",
    benchmark:
        "results/{model}/benchmarks/transfer_misled.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.transfer),
        runtime=scaled(120),
    params:
        datasets=lambda wildcards: misled_datasets(wildcards.model),
        layers=property_of("layers"),
        null_rows_differ=null_rows_differ,
        evaluation=settings_of("evaluation", "transfer_misled"),
        seed=settings_of("seed", "transfer_misled"),
        code=source_digest("transfer_misled"),
    message:
        "Testing the detectors of {wildcards.model} on remarks and relations that they have not seen"
    script:
        "../workflow_scripts/transfer/transfer_misled.py"


rule draw_transfer:
    """Draw the transfer matrix."""
    input:
        transfer="results/{model}/evaluation/transfer.csv",
    output:
        figures=expand("results/{{model}}/figures/transfer.{form}", form=["png", "pdf", "svg"]),
    log:
        "results/{model}/logs/draw_transfer.log",
    benchmark:
        "results/{model}/benchmarks/draw_transfer.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.figures),
        runtime=scaled(10),
    params:
        code=source_digest("draw_transfer"),
    message:
        "Drawing what the detectors of {wildcards.model} reach on other data sets"
    script:
        "../workflow_scripts/transfer/draw_transfer.py"
