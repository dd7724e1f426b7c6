# rules/develop.smk -- for developers. Needs: nothing of a run. Gives: the embedded data anew.
localrules:
    refresh_facts,


rule refresh_facts:
    """Rebuild the embedded fact tables and corpus from the packages that they come from."""
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
        "../workflow_scripts/refresh_facts.py"
