# rules/develop.smk -- aside from a run, for maintenance. Needs: nothing, or the stores of a run.
# Gives: checks of the activation stores and of the GPU; the embedded data rebuilt from its sources.
include: "common/develop.smk"


localrules:
    refresh_facts,


rule refresh_facts:
    """Rebuild the embedded fact tables and corpus from their source packages."""
    output:
        folder=directory("results/refreshed_data"),
    log:
        "results/logs/refresh_facts.log",
    benchmark:
        "results/benchmarks/refresh_facts.tsv"
    conda:
        "../envs/refresh.yaml"
    params:
        code=source_digest("refresh_facts"),
    message:
        "Rebuilding the embedded data in {output.folder}"
    script:
        "../workflow_scripts/develop/refresh_facts.py"


# No input: it checks existing stores and must never create one. No output and no benchmark (which
# Snakemake takes for an output): it runs on every request.
rule verify_activations:
    """Check every activation store on disk against its manifest, and list the damaged ones."""
    log:
        "results/logs/verify_activations.log",
    retries: 0  # a retry cannot repair damage
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.verification),
        runtime=scaled(240),
    params:
        models=MODELS,
        promised=promised_manifests,
        released=released_layers,
        code=source_digest("verify_activations"),
    message:
        "Verifying the activation stores of {params.models}"
    script:
        "../workflow_scripts/develop/verify_activations.py"


# No output, as for verify_activations: it runs on every request.
rule check_gpu:
    """Compare the GPU with the CPU, and time the first model's SAE on it (two minutes)."""
    log:
        "results/logs/check_gpu.log",
    retries: 0  # a second look finds the same GPU
    conda:
        "../envs/torch.yaml"
    resources:
        **ACCELERATOR,
        mem_mb=memory_for(memory.gpu_check),
        runtime=15,
        micro_batch=4096,
    params:
        d_model=SETTINGS[MODELS[0]].dimensions.d_model,
        sae=SETTINGS[MODELS[0]].sae.model_dump(),
        code=source_digest("check_gpu"),
    message:
        "Checking the GPU against the CPU (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/develop/check_gpu.py"
