# rules/ablate.smk -- aside from a run (targets ablations, tuning). Needs: audited folds, track metrics
# and activations of the examples. Gives: detector AUROC per arm (one variant of tracks or metrics).
include: "common/ablate.smk"


rule track_arm:
    """Track features with the settings of one arm, and compute the track metrics of every data set."""
    input:
        stores=per("results/{model}/examples/{dataset}/layer_{layer}.zarr", "layer", "dataset"),
        manifests=per("results/{model}/examples/{dataset}/layer_{layer}.json", "layer", "dataset"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
        neighbours=neighbour_files,
        heldout_stores=if_arm_correlates(per("results/{model}/heldout/layer_{layer}.zarr", "layer")),
        heldout_manifests=if_arm_correlates(
            per("results/{model}/heldout/layer_{layer}.json", "layer")
        ),
        outputs=per("results/{model}/examples/{dataset}/outputs.parquet", "dataset"),
        errors=per("results/{model}/tracks/{dataset}.errors.parquet", "dataset"),
        clusters="results/{model}/clusters.parquet",
    output:
        track_metrics="results/{model}/ablations/signals/{arm}.parquet",
    log:
        "results/{model}/logs/track_arm/{arm}.log",
    benchmark:
        "results/{model}/benchmarks/track_arm/{arm}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=memory_for(memory.tracked_arm),
        runtime=scaled(120),
    params:
        layers=property_of("layers"),
        datasets=property_of("datasets"),
        tracking=arm_tracking,
        variant=of_arm("variant"),
        recompute_links=of_arm("recompute_links"),
        seed=settings_of("seed", "track_arm"),
        code=source_digest("track_arm"),
    message:
        "Tracking features of {wildcards.model} for the arm {wildcards.arm}"
    script:
        "../workflow_scripts/ablate/track_arm.py"


rule score_arm:
    """Train detectors on the track metrics of one arm, in the run's folds."""
    input:
        audited=per("results/{model}/detection/{dataset}/controls.parquet", "dataset"),
        track_metrics=arm_track_metrics,
    output:
        scores="results/{model}/ablations/arms/{arm}.parquet",
        fits="results/{model}/ablations/arms/{arm}.csv",
    log:
        "results/{model}/logs/score_arm/{arm}.log",
    benchmark:
        "results/{model}/benchmarks/score_arm/{arm}.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory_for(memory.scored_arm),
        runtime=scaled(120),
    params:
        datasets=property_of("datasets"),
        columns=of_arm("columns"),
        detectors=arm_detectors,
        detection=settings_of("detection", "score_arm"),
        seed=settings_of("seed", "score_arm"),
        code=source_digest("score_arm"),
    message:
        "Scoring the arm {wildcards.arm} of {wildcards.model}"
    script:
        "../workflow_scripts/ablate/score_arm.py"


for STUDY in ("ablations", "tuning"):

    rule:
        """Compare every arm of a study with the run's tracks: tables, a figure, a page."""
        name:
            f"judge_{STUDY}"
        input:
            scores=per_arm(STUDY, ".parquet"),
            fits=per_arm(STUDY, ".csv"),
        output:
            table=f"results/{{model}}/ablations/{STUDY}.csv",
            choices=(
                [f"results/{{model}}/ablations/{STUDY}_choices.csv"] if STUDY == "tuning" else []
            ),
            figures=expand(
                "results/{{model}}/ablations/{study}.{form}",
                study=STUDY,
                form=["png", "pdf", "svg"],
            ),
            page=report_page(f"results/{{model}}/ablations/{STUDY}.html", STUDY),
        log:
            f"results/{{model}}/logs/judge_{STUDY}.log",
        benchmark:
            f"results/{{model}}/benchmarks/judge_{STUDY}.tsv"
        conda:
            "../envs/analysis.yaml"
        resources:
            mem_mb=memory_for(memory.judged_arms),
            runtime=scaled(60),
        params:
            study=STUDY,
            arms=lambda wildcards, study=STUDY: {
                name: arms_of(wildcards.model)[0][name]._asdict()
                for name in arms_of(wildcards.model)[1][study]
            },
            controls=control_datasets,
            misled=conflict_datasets,
            evaluation=settings_of("evaluation", "judge_arms"),
            seed=settings_of("seed", "judge_arms"),
            code=source_digest("judge_arms", "report/templates"),
        message:
            f"Judging the {STUDY} of {{wildcards.model}}"
        script:
            "../workflow_scripts/ablate/judge_arms.py"
