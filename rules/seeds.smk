# rules/seeds.smk -- aside from a run (target seed_variance). Needs: a finished evaluation. Gives: how
# AUROC varies with the seeds of folds and SAEs.
include: "common/seeds.smk"


rule vary_seeds:
    """Train the default detector of one data set with other fold seeds and other SAE seeds."""
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
        samples=drawn_answers,
        without_context=without_context,
        sweeps=swept_saes,
    output:
        seeds="results/{model}/detection/{dataset}/seeds.csv",
    log:
        "results/{model}/logs/vary_seeds/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/vary_seeds/{dataset}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.seeds),
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
        "../workflow_scripts/seeds/vary_seeds.py"


rule measure_seed_variance:
    """Summarise how AUROC varies with the seed."""
    input:
        metrics="results/{model}/evaluation/metrics.csv",
        seeds=per("results/{model}/detection/{dataset}/seeds.csv", "dataset"),
    output:
        all_seeds="results/{model}/evaluation/seeds.csv",
        variance="results/{model}/evaluation/seed_variance.csv",
    log:
        "results/{model}/logs/measure_seed_variance.log",
    benchmark:
        "results/{model}/benchmarks/measure_seed_variance.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.evaluation),
        runtime=scaled(10),
    params:
        datasets=property_of("datasets"),
        controls=control_datasets,
        code=source_digest("measure_seed_variance"),
    message:
        "Measuring how far the detectors of {wildcards.model} move with the seed"
    script:
        "../workflow_scripts/seeds/measure_seed_variance.py"
