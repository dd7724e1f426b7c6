# rules/score.smk -- aside from a run (target scores). Needs: the saved detector, a file of texts. Gives: their scores.
include: "common/score.smk"


rule score_texts:
    """Score a file of user texts with the saved detector (target scores)."""
    input:
        texts=user_texts,
        context=user_context,
        detector="results/{model}/detection/detector.safetensors",
        about="results/{model}/detection/detector.json",
        statements="results/{model}/detection/statements.safetensors",
        about_statements="results/{model}/detection/statements.json",
        features=per("results/{model}/features/layer_{layer}.parquet", "layer"),
        weights=per("results/{model}/saes/layer_{layer}/sae_weights.safetensors", "layer"),
        cfgs=per("results/{model}/saes/layer_{layer}/cfg.json", "layer"),
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
    resources:
        **MODEL_ACCELERATOR,
        mem_mb=memory_for(memory.scoring),
        runtime=scaled(120),
    params:
        score=settings_of("score", "score_texts"),
        code=source_digest("score_texts", "report/templates"),
    message:
        "Scoring texts with the detector of {wildcards.model} (GPUs: {resources.gpu})"
    script:
        "../workflow_scripts/score/score_texts.py"
