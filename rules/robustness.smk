# rules/robustness.smk -- aside from a run (targets transfer, seed_variance). Needs: a finished evaluation. Gives: what detectors reach on other relations and under other seeds.
rule transfer_detectors:
    """Train the detector and its controls on some relations, and test them on others."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        scores="results/{model}/detection/scores.parquet",
        examples=per_dataset("results/{model}/datasets/{dataset}/examples.parquet"),
        outputs=per_dataset("results/{model}/examples/{dataset}/outputs.parquet"),
        backgrounds=per_dataset("results/{model}/examples/{dataset}/background.npz"),
        weights=per_layer("results/{model}/saes/layer_{layer}/sae_weights.safetensors"),
        cfgs=per_layer("results/{model}/saes/layer_{layer}/cfg.json"),
        stores=per_layer_and_dataset("results/{model}/examples/{dataset}/layer_{layer}.zarr"),
        manifests=per_layer_and_dataset("results/{model}/examples/{dataset}/layer_{layer}.json"),
    output:
        transfer="results/{model}/evaluation/transfer.csv",
        left_out="results/{model}/evaluation/left_out.csv",
    log:
        "results/{model}/logs/transfer_detectors.log",
    benchmark:
        "results/{model}/benchmarks/transfer_detectors.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=detector_memory,
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
        "../workflow_scripts/transfer_detectors.py"


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
    threads: 1
    resources:
        mem_mb=scaled(1000),
        runtime=scaled(10),
    params:
        code=source_digest("draw_transfer"),
    message:
        "Drawing what the detectors of {wildcards.model} reach on other data sets"
    script:
        "../workflow_scripts/draw_transfer.py"


rule vary_seeds:
    """Train the default detector of one data set in folds of other seeds, and on swept autoencoders of other seeds."""
    input:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
        outputs="results/{model}/examples/{dataset}/outputs.parquet",
        audited="results/{model}/detection/{dataset}/controls.parquet",
        stores=per_layer("results/{model}/examples/{dataset}/layer_{layer}.zarr"),
        manifests=per_layer("results/{model}/examples/{dataset}/layer_{layer}.json"),
        weights=per_layer("results/{model}/saes/layer_{layer}/sae_weights.safetensors"),
        cfgs=per_layer("results/{model}/saes/layer_{layer}/cfg.json"),
        background="results/{model}/examples/{dataset}/background.npz",
        prompt_states="results/{model}/examples/{dataset}/prompts.npz",
        samples=drawn_answers,
        sweeps=swept_saes,
    output:
        seeds="results/{model}/detection/{dataset}/seeds.csv",
    log:
        "results/{model}/logs/vary_seeds/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/vary_seeds/{dataset}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=detector_memory,
        runtime=scaled(120),
    params:
        layers=property_of("layers"),
        arms=swept_arms,
        detection=settings_of("detection", "vary_seeds"),
        seed=settings_of("seed", "vary_seeds"),
        code=source_digest("vary_seeds"),
    message:
        "Training the detector of {wildcards.model} on {wildcards.dataset} under other seeds"
    script:
        "../workflow_scripts/vary_seeds.py"


rule measure_seed_variance:
    """Say how far each AUROC moves with the seed."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        seeds=per_dataset("results/{model}/detection/{dataset}/seeds.csv"),
    output:
        all_seeds="results/{model}/evaluation/seeds.csv",
        variance="results/{model}/evaluation/seed_variance.csv",
    log:
        "results/{model}/logs/measure_seed_variance.log",
    benchmark:
        "results/{model}/benchmarks/measure_seed_variance.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=scaled(1000),
        runtime=scaled(10),
    params:
        datasets=property_of("datasets"),
        controls=control_datasets,
        code=source_digest("measure_seed_variance"),
    message:
        "Measuring how far the detectors of {wildcards.model} move with the seed"
    script:
        "../workflow_scripts/measure_seed_variance.py"
