# rules/sweep.smk -- aside from a run (target sae_sweep). Needs: activations of a layer. Gives: SAEs with
# other k and other seeds, their quality and their stability.
include: "common/sweep.smk"


rule sweep_sae:
    """Train SAEs with other k and other seeds on one layer in one pass, and compare them."""
    input:
        stores=per("results/{model}/activations/layer_{layer}/shard_{shard}.zarr", "shard"),
        manifests=per("results/{model}/activations/layer_{layer}/shard_{shard}.json", "shard"),
        model_source="results/{model}/model/source.json",
        heldout="results/{model}/heldout/layer_{layer}.zarr",
        heldout_manifest="results/{model}/heldout/layer_{layer}.json",
    output:
        saes=directory("results/{model}/sweep/layer_{layer}/saes"),
        arms="results/{model}/sweep/layer_{layer}/arms.csv",
        stability="results/{model}/sweep/layer_{layer}/stability.csv",
    log:
        "results/{model}/logs/sweep_sae/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/sweep_sae/layer_{layer}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        **ACCELERATOR,
        mem_mb=memory_for(memory.sweep),
        runtime=lasting(720, forecast.sweep_minutes),
        resident_mb=first_attempt(1536),
        micro_batch=shrinking(4096),
    params:
        sae=swept_settings,
        sweep_settings=lambda wildcards: SETTINGS[wildcards.model].sweep.model_dump(
            exclude={"layers"}
        ),
        seed=settings_of("seed", "sweep_sae"),
        state="results/{model}/state/sweep_sae/layer_{layer}",
        code=source_digest("sweep_sae"),
    message:
        "Sweeping the SAE of {wildcards.model} layer {wildcards.layer} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/sweep/sweep_sae.py"


rule draw_sweep:
    """Join the tables of all swept layers, and draw them."""
    input:
        arms=per_sweep_layer("results/{model}/sweep/layer_{layer}/arms.csv"),
        stability=per_sweep_layer("results/{model}/sweep/layer_{layer}/stability.csv"),
    output:
        all_arms="results/{model}/sweep/arms.csv",
        all_stability="results/{model}/sweep/stability.csv",
        figures=expand("results/{{model}}/sweep/sweep.{form}", form=["png", "pdf", "svg"]),
    log:
        "results/{model}/logs/draw_sweep.log",
    benchmark:
        "results/{model}/benchmarks/draw_sweep.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.figures),
        runtime=scaled(10),
    params:
        code=source_digest("draw_sweep"),
    message:
        "Drawing the sweep of {wildcards.model}"
    script:
        "../workflow_scripts/sweep/draw_sweep.py"
