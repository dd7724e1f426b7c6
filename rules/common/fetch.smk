# rules/common/fetch.smk -- helpers of rules/fetch.smk.
def local_dataset(wildcards):
    """Input function: the user's file behind a data set, and RAGTruth's second file, if there are any."""
    settings = DATASETS[wildcards.dataset]
    files = [path for path in [settings.path] if path]
    if settings.source == "ragtruth":
        beside = [str(Path(path).with_name("source_info.jsonl")) for path in files]
        files += [path for path in beside if Path(path).is_file()]
    return files


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
