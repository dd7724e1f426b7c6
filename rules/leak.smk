# rules/leak.smk -- aside from a run (target reproduce_leak). Needs: data sets. Gives: AUROC of noise and
# of the text alone under a random split of pairs.
rule score_leak:
    """Score noise and text under both splits of every data set of paired given texts."""
    input:
        examples=lambda wildcards: [
            f"results/{wildcards.model}/datasets/{dataset}/examples.parquet"
            for dataset in given_datasets(wildcards)
        ],
    output:
        table="results/{model}/evaluation/leak_reproduction.csv",
        figures=expand(
            "results/{{model}}/figures/leak_reproduction.{form}", form=["png", "pdf", "svg"]
        ),
    log:
        "results/{model}/logs/score_leak.log",
    benchmark:
        "results/{model}/benchmarks/score_leak.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.audit),
        runtime=scaled(60),
    params:
        datasets=given_datasets,
        detection=settings_of("detection", "score_leak"),
        seed=settings_of("seed", "score_leak"),
        code=source_digest("score_leak"),
    message:
        "Reproducing the leak of a random pair split ({wildcards.model})"
    script:
        "../workflow_scripts/leak/score_leak.py"
