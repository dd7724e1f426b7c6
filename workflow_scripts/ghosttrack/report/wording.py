"""How signals are called and explained on pages."""

from ghosttrack import scores as registry

MEANINGS = {
    registry.DETECTOR: "default detector: output features, the answer's standing in an earlier block (logit lens), and probes on prompts with answers, on activations less their background and on SAE residuals, stacked",
    "ghosttrack.without_sae": "the same detector without anything from the SAEs",
    "ghosttrack.with_metrics": "the same detector with the tracking metrics added",
    "answer_logprob_sum": "log-probability the model gives the answer, summed over its tokens",
    "answer_logprob_mean": "log-probability the model gives the answer, mean over its tokens",
    "pmi": "log-probability of the answer minus what it has after other prompts of its relation (PMI), summed over its tokens",
    "pmi_mean": "the same, mean over its tokens",
    "sinkhorn": "Sinkhorn assignment score of the answer among the candidate answers of its relation",
    "p_true": "log-odds with which the model calls the text true when it is asked, after solved examples (P(True))",
    "self_consistency": "share of drawn answers that say what the model's first answer says",
    "semantic_entropy": "entropy of the different answers among the drawn ones",
    "perplexity": "perplexity of the text behind what all texts of its relation share",
    "entropy": "entropy of the model's next-token predictions over the answer",
    "margin": "lead of the likeliest token over the second",
    "length": "length of the text: a control",
    "answer_only": "words of the answer alone (TF-IDF), no model: a control",
    registry.TEXT_ONLY: "word and character counts (TF-IDF), no model: a control",
    "question_only": "the question without its answer: a control",
    "embedding_pair": "which question goes with which answer, told from token embeddings before any computation: a control",
    "output_and_words": "all output features, with both controls of question and answer: all that can be had without a look inside",
    "text_pair": "which question goes with which answer, told from their characters, no model: a control",
    registry.LEAK_CONTROL: "probe on token embeddings, before any computation: a control",
    "raw_probe": "linear probe on raw activations, layer chosen inside the training folds",
    "raw_probe_all": "linear probe on raw activations of all layers together",
    "centred_probe": "linear probe on activations minus the answer's background (the same answer after other prompts)",
    "difference_of_means": "projection on the difference of the classes' mean activations, layer chosen inside the training folds",
    "sae_probe": "linear probe on sparse-autoencoder features, less those of the background",
    "sae_max_probe": "linear probe on the maximum of each sparse-autoencoder feature: an untracked bag of features",
    "bilinear_probe": "bilinear probe on where the model stands before the answer, and on the answer's row of the output embedding",
    "residual_probe": "linear probe on what the sparse autoencoder misses, less what it misses of the background",
    "output_regression": "regression on all output features (log-probability, PMI, entropy, margin, standing among the other answers)",
    "output_regression.alone": "the same without the answer's standing among the other answers of its relation",
    "metrics_logistic": "tracking metrics, logistic regression",
    "metrics_forest": "tracking metrics, random forest",
    "metrics_boosting": "tracking metrics, gradient boosting",
    "metrics_svm": "tracking metrics, support vector machine",
    "metrics_additive": "tracking metrics, additive model: one curve a metric",
    "metrics_ensemble": "tracking metrics, mean of the other detectors",
}
NULLS = {
    "permuted": "permuted decoders",
    "random": "random links",
    "shuffled": "shuffled layers",
    "untracked": "no links",
}
LABELS = {
    **{shown.signal: shown.label for shown in registry.SHOWN},
    "ghosttrack.without_sae": "detector without SAEs",
    "ghosttrack.with_metrics": "detector with tracking metrics",
    "output_regression": "regression on output features",
    "output_regression.alone": "regression on output features, without rivals",
    "raw_probe_all": "raw-activation probes of all layers",
    "p_true": "P(True)",
    "pmi": "PMI",
    "sinkhorn": "Sinkhorn assignment score",
    "text_pair": "characters of question and answer",
    "embedding_pair": "token embeddings of question and answer",
    "output_and_words": "output features with pairs of words",
    "bilinear_probe": "bilinear probe of prompt and answer",
    "pmi_mean": "PMI, mean over tokens",
    "centred_probe": "probe on activations less their background",
    "sae_max_probe": "probe on maxima of SAE features",
    "metrics_logistic": "tracking metrics, logistic regression",
    "metrics_forest": "tracking metrics, random forest",
    "metrics_boosting": "tracking metrics, gradient boosting",
    "metrics_svm": "tracking metrics, support vector machine",
    "metrics_additive": "tracking metrics, additive model",
    "metrics_ensemble": "tracking metrics, ensemble",
}


def label(signal: str) -> str:
    """A signal's name as people say it, alone or inside a longer note."""
    if signal in LABELS:
        return LABELS[signal]
    base, _, variant = signal.rpartition(".")
    if base in LABELS and variant in NULLS:
        return f"{LABELS[base]}, {NULLS[variant]}"
    return signal.replace("logprob", "log-probability").replace("_", " ")


def meaning(signal: str, family: str) -> str:
    """What a signal is; its family if nothing more is known."""
    base, _, variant = signal.rpartition(".")
    if signal not in MEANINGS and base in MEANINGS and variant in NULLS:
        return f"{MEANINGS[base]}, {NULLS[variant]}: a null"
    return MEANINGS.get(signal, family)
