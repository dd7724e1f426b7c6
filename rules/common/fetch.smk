# rules/common/fetch.smk -- helpers of rules/fetch.smk.
def local_dataset(wildcards):
    """Input function: the user's file behind a data set, if there is one."""
    return [path for path in [DATASETS[wildcards.dataset].path] if path]


def chat_tokenizer(wildcards):
    """Input function: the model's folder, for its chat template; nothing with generation.prompt: plain."""
    settings = SETTINGS[wildcards.model]
    return beside_weights(wildcards.model) if settings.generation.prompt == "chat" else []


def local_corpus(wildcards):
    """Input function: the user's file behind the corpus, if there is one."""
    return [
        path for path in [SETTINGS[wildcards.model].corpus.source] if corpus_sources.is_file(path)
    ]


def pretrained_files(wildcards):
    """Input function: the user's files behind the SAE of a layer; nothing for SAEs of a hub."""
    local = plan.pretrained_locally(SETTINGS[wildcards.model])
    return local[int(wildcards.layer)].files if local else []
