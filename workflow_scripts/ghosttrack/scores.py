"""The registry of scores (names, labels, meanings) and the columns of result tables."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.runtime import tables

# metrics.csv: one row per data set, mode and score.
METRICS = (
    "dataset",
    "mode",
    "score",
    "family",
    "n",
    "groups",
    "prevalence",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auprc",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "ece",
    "brier",
)
# ledger.csv: one row per claim, the difference of the claimed score (ours) and a control.
LEDGER = (
    "claim",
    "dataset",
    "mode",
    "ours",
    "control",
    "auroc_ours",
    "auroc_control",
    "difference",
    "difference_low",
    "difference_high",
    "p_holm",
    "n",
    "groups",
    "verdict",
)
# leak_audit.csv: one row per data set and check.
LEAK_AUDIT = ("dataset", "mode", "check", "value", "low", "high", "verdict")
# saes/answers.csv: one row per layer and data set, and one per layer for all answer tokens.
ANSWERS = ("dataset", "layer", "tokens", "massive_tokens", "l0", "fvu", "fvu_token_median")
# curves.csv: one row per point. ROC: x = false positive rate, y = true positive rate. PR: x =
# recall, y = precision. Risk: x = coverage, y = error rate.
CURVES = ("dataset", "mode", "score", "curve", "x", "y")
# calibration.csv: one row per bin; all bins of a score hold the same number of texts.
CALIBRATION = ("dataset", "mode", "score", "bin", "n", "predicted", "observed")
# links.csv: one row per pair of neighbouring layers, links on held-out text.
LINKS = (
    "layer",
    "next_layer",
    "tokens",
    "links",
    "permuted_links",
    "links_per_token",
    "permuted_links_per_token",
    "next_fires",
    "next_fires_shuffled_links",
)
# explanations.csv: one row per ablation of features; no row where no detector could be fitted.
EXPLANATIONS = (
    "removed",
    "features",
    "n",
    "groups",
    "change",
    "change_low",
    "change_high",
    "beyond_random",
    "beyond_random_low",
    "beyond_random_high",
    "agreement",
)
# transfer.csv: one row per training set, test set and score.
TRANSFER = ("trained_on", "dataset", "score", "n", "groups", "auroc", "auroc_low", "auroc_high")
# left_out.csv: one row per test set and control, both trained on other relations.
LEFT_OUT = (
    "dataset",
    "control",
    "n",
    "groups",
    "auroc_ours",
    "auroc_control",
    "difference",
    "difference_low",
    "difference_high",
    "verdict",
    "p",
    "p_holm",
    "reason",
)
# misled_left_out.csv: one row per part that is left out, data set, and pair of scores on conflict sets.
MISLED_LEFT_OUT = ("left_out", "dataset", "ours", *LEFT_OUT[1:])

ESTABLISHED, NOT_ESTABLISHED, ARTEFACT = "established", "not established", "artefact"
# Reasons of claims that are not established.
NOT_AFTER_CORRECTION = "the interval is above 0, but not after correction for the number of claims"
NOT_ABOVE_CHANCE = "the score is not above chance"
POSITIVE_CONTROL = "a positive control supports no claim"
NO_INTERVAL = "no interval: too many resamples of the groups hold texts of one class alone"
NULL_ROWS_DIFFER = (
    "not tested: the random decoders were fitted on held-out rows, and the SAEs on other rows"
)


def too_few_groups(groups: int, minimum: int) -> str:
    """The reason of a claim on too few groups."""
    counted = "1 group" if groups == 1 else f"{groups} groups"
    return f"{counted}, fewer than evaluation.minimum_groups = {minimum}"


# Values of the column `dataset` for means over data sets: all given texts without remarks, all
# generated answers without remarks, all given texts after remarks (conflict sets).
ALL_GIVEN, ALL_GENERATED, ALL_MISLED = "all_given", "generated", "all_misled"
MEANS = (ALL_GIVEN, ALL_GENERATED, ALL_MISLED)
# Value of the column `dataset` in ANSWERS for the answer tokens of all data sets.
ALL_ANSWERS = "all_answers"
# The two claims that the summary of a report speaks about, and the suffix of TRACKING before the
# name of a null: the tracks themselves add to the detector, and not only what the null has as well.
HEADLINE, TRACKING = "the detector beats its best control", "tracking metrics add to the detector"
MORE_THAN = " more than their"
# The two headline claims on conflict sets, and the first one for the detector that knows all that
# its control knows.
BEYOND_PASS = "the detector beats all output and text of the same pass"
ADDS_TO_PASS = "activations add to all output and text of the same pass"
BEYOND_CLOSED_BOOK = "activations add to closed book and context together"

DETECTOR = "ghosttrack"
WITHOUT_SAE, WITH_METRICS = f"{DETECTOR}.without_sae", f"{DETECTOR}.with_metrics"
# The second regression leaves out the features that compare the answer with the other candidate
# answers.
OUTPUT_REGRESSION = "output_regression"
WITHOUT_CANDIDATES = f"{OUTPUT_REGRESSION}.without_candidates"
OUTPUT_AND_WORDS = "output_and_words"
# The default detector and probes with the SAEs of random decoders instead.
NULL_DETECTOR, NULL_SAE_PROBE = f"{DETECTOR}.decoders", "sae_probe.decoders"
NULL_RESIDUAL_PROBE = "residual_probe.decoders"
# Prefixes of scores from outside this project: of a user's table, made outside the folds, and of a
# user's Python class, fitted in the folds.
TABLE, CLASS = "table.", "class."
# Scores on the candidate answers to a prompt, which data sets with a second candidate have.
CANDIDATE_LOGIT, CANDIDATE_GRADIENTS = "candidate_logit", "candidate_gradients"
CANDIDATE_ATTRIBUTION, CANDIDATE_FEATURES = "candidate_attribution", "candidate_features"
CANDIDATE_TRACKS, CANDIDATE_ALL = "candidate_tracks", "candidate_all"
WITH_CANDIDATE_LOGIT = f"{DETECTOR}.with_candidate_logit"
WITH_GRADIENTS, WITH_CANDIDATES = f"{DETECTOR}.with_gradients", f"{DETECTOR}.with_candidates"
BILINEAR_PROBE = "bilinear_probe"
# Scores of conflict sets, whose texts follow a remark that asserts an answer. Closed book: the same
# text without its remark.
AGREEMENT, REMARK_LOGPROB = "agreement", "remark_logprob"
OUTPUT_AND_AGREEMENT, SAME_PASS = f"{OUTPUT_REGRESSION}.with_agreement", "same_pass"
WITH_AGREEMENT = f"{DETECTOR}.with_agreement"
CLOSED_BOOK, CLOSED_BOOK_AND_CONTEXT = "closed_book", "closed_book_and_context"
WITH_CLOSED_BOOK = f"{DETECTOR}.with_closed_book"
TEXT_ONLY, ANSWER_ONLY, QUESTION_ONLY = "text_only", "answer_only", "question_only"
LENGTH, EMBEDDING_PROBE = "length", "embedding_probe"
GENERATOR = "generator"
TEXT_PAIR, EMBEDDING_PAIR = "text_pair", "embedding_pair"


class Score(NamedTuple):
    """A detector, probe or control: one number per text, higher = more likely hallucinated.

    name: value of the column `score`; family: detector, output, probe, control, tracking,
    tracking_null or external; label: what a reader sees; meaning: one sentence; colour, marker: for
    the scores that every figure shows, else ""; short: heading in wide tables where the label is
    too long.
    """

    name: str
    family: str
    label: str
    meaning: str
    colour: str = ""
    marker: str = ""
    short: str = ""

    @property
    def heading(self) -> str:
        """Heading of a column in a wide table."""
        return self.short or self.label


_ALL = (
    Score(
        DETECTOR,
        "detector",
        "detector",
        "The default detector: a stack of output features, logit-lens features, and probes on "
        "activations, on prompt-answer pairs and on SAE residuals.",
        "#1f5fbf",
        "o",
    ),
    Score(
        WITHOUT_SAE,
        "detector",
        "detector without SAEs",
        "The default detector without the probe on SAE residuals.",
    ),
    Score(
        WITH_METRICS,
        "detector",
        "detector with tracking metrics",
        "The default detector with a logistic regression on the tracking metrics as one more "
        "base learner.",
    ),
    Score(
        WITH_CANDIDATE_LOGIT,
        "detector",
        "detector with logit difference of candidates",
        "The default detector with the regression on the candidates' logit difference as one more "
        "base learner.",
    ),
    Score(
        WITH_GRADIENTS,
        "detector",
        "detector with gradients of candidates",
        "The default detector with the regression on gradients of the candidates' logit "
        "difference as one more base learner.",
    ),
    Score(
        WITH_CANDIDATES,
        "detector",
        "detector with tracks of candidates",
        "The default detector with the regression on gradients, feature attribution and tracks of "
        "the candidates as one more base learner.",
    ),
    Score(
        WITH_AGREEMENT,
        "detector",
        "detector with agreement",
        "The default detector with all that the regression on output and text of the same pass "
        "knows, such as agreement with the remark.",
    ),
    Score(
        WITH_CLOSED_BOOK,
        "detector",
        "detector with closed book",
        "The default detector with all that the regression on closed book and context knows.",
    ),
    Score(
        "answer_logprob_mean",
        "output",
        "answer log-probability",
        "Log-probability that the model gives the answer, mean over its tokens.",
        "#c2571a",
        "s",
        "log-prob., mean",
    ),
    Score(
        "answer_logprob_sum",
        "output",
        "answer log-probability, sum",
        "Log-probability that the model gives the answer, summed over its tokens.",
        short="log-prob., sum",
    ),
    Score(
        "pmi",
        "output",
        "PMI",
        "Pointwise mutual information of prompt and answer: log-probability of the answer minus "
        "its log-probability after other prompts of the relation, summed over its tokens.",
    ),
    Score(
        "pmi_mean",
        "output",
        "PMI, mean over tokens",
        "Pointwise mutual information of prompt and answer, mean over the answer's tokens.",
    ),
    Score(
        "sinkhorn",
        "output",
        "Sinkhorn assignment score",
        "Log-probability of the answer's first token after Sinkhorn normalisation over all "
        "prompts and candidate answers of the relation.",
    ),
    Score(
        "perplexity",
        "output",
        "perplexity",
        "Perplexity of the text, without the beginning that all texts of its relation share.",
    ),
    Score(
        "entropy",
        "output",
        "entropy",
        "Entropy of the next-token distributions, mean over the answer's tokens.",
    ),
    Score(
        "margin",
        "output",
        "margin",
        "Difference of the two largest next-token log-probabilities, mean over the answer's "
        "tokens.",
    ),
    Score(
        "p_true",
        "output",
        "P(True)",
        "Log-odds with which the model calls the text true when a few-shot prompt asks it.",
    ),
    Score(
        "self_consistency",
        "output",
        "self-consistency",
        "Fraction of the sampled answers that agree with the greedy answer.",
    ),
    Score(
        "semantic_entropy",
        "output",
        "semantic entropy",
        "Entropy of the distribution of the sampled answers over their meanings.",
    ),
    Score(
        REMARK_LOGPROB,
        "output",
        "log-probability of the remark's answer",
        "Log-probability that the model gives the answer of the remark, standardised by relation "
        "and wording, with the opposite sign where the text disagrees with the remark.",
        short="remark log-prob.",
    ),
    Score(
        OUTPUT_REGRESSION,
        "output",
        "regression on output features",
        "Logistic regression on all output features: log-probability, PMI, entropy, margin, rank, "
        "and the comparison with the other candidate answers.",
        short="output regr.",
    ),
    Score(
        WITHOUT_CANDIDATES,
        "output",
        "regression on output features, without candidate answers",
        "Logistic regression on the output features that do not compare the answer with other "
        "candidate answers.",
    ),
    Score(
        OUTPUT_AND_WORDS,
        "output",
        "output features with text pairs",
        "Logistic regression on all output features and on both controls of question-answer pairs: "
        "all that can be known without reading activations.",
    ),
    Score(
        AGREEMENT,
        "control",
        "agreement with the remark",
        "Logistic regression on whether the text states the answer that the remark before it "
        "asserts.",
    ),
    Score(
        OUTPUT_AND_AGREEMENT,
        "output",
        "regression on output features and agreement with the remark",
        "Logistic regression on all output features and those of the remark's answer, with weights "
        "that depend on whether the text agrees with the remark.",
    ),
    Score(
        SAME_PASS,
        "output",
        "all output and text of the same pass",
        "Logistic regression on all output features, those of the remark's answer, and both "
        "controls of question-answer pairs, with weights that depend on whether the text agrees "
        "with the remark.",
        short="same pass",
    ),
    Score(
        CLOSED_BOOK,
        "output",
        "closed book",
        "Logistic regression on all output features of the same text without its remark, which "
        "the model reads in one more pass.",
    ),
    Score(
        CLOSED_BOOK_AND_CONTEXT,
        "output",
        "closed book and context",
        "Logistic regression on the output features with and without the remark, those of the "
        "remark's answer, both controls of question-answer pairs, and agreement with the remark.",
    ),
    Score(
        "output_scores",
        "output",
        "regression on four output scores",
        "Logistic regression on summed and mean log-probability, PMI and entropy, without "
        "standardisation by relation.",
    ),
    Score(
        "raw_probe",
        "probe",
        "raw-activation probe",
        "Linear probe on raw activations of one layer, which is chosen inside the training folds.",
        "#1a7f5a",
        "D",
        "raw probe",
    ),
    Score(
        "raw_probe_all",
        "probe",
        "raw-activation probe of all layers",
        "Linear probe on raw activations of all layers together.",
    ),
    Score(
        "difference_of_means",
        "probe",
        "difference of means",
        "Projection on the difference of the classes' mean activations in one layer, which is "
        "chosen inside the training folds.",
    ),
    Score(
        "centred_probe",
        "probe",
        "probe on centred activations",
        "Linear probe on activations minus the counterfactual-prompt mean, the mean activation of "
        "the same answer after other prompts.",
    ),
    Score(
        "sae_probe",
        "probe",
        "SAE probe",
        "Linear probe on SAE features minus those of the counterfactual-prompt mean.",
    ),
    Score(
        "sae_max_probe",
        "probe",
        "probe on maxima of SAE features",
        "Linear probe on each SAE feature's maximum over the answer, without any links between "
        "layers.",
    ),
    Score(
        "residual_probe",
        "probe",
        "probe on SAE residuals",
        "Linear probe on the SAE's reconstruction error minus that of the counterfactual-prompt "
        "mean.",
    ),
    Score(
        BILINEAR_PROBE,
        "probe",
        "bilinear probe of prompt and answer",
        "Bilinear probe on the activation of the last prompt token and the answer's row of the "
        "unembedding.",
    ),
    Score(
        CANDIDATE_LOGIT,
        "output",
        "logit difference of the candidates",
        "Logistic regression on the logit of the stated answer minus that of the other candidate "
        "answer, at the last prompt token.",
    ),
    Score(
        CANDIDATE_GRADIENTS,
        "probe",
        "gradients of the candidates",
        "Logistic regression on the candidates' logit difference, its logit lens and gradient "
        "times activation in each layer, without SAEs.",
    ),
    Score(
        CANDIDATE_ATTRIBUTION,
        "probe",
        "feature attribution of the candidates",
        "Logistic regression on metrics of the attribution of the candidates' logit difference to "
        "SAE features, which know no feature by its identity.",
    ),
    Score(
        CANDIDATE_FEATURES,
        "probe",
        "gradients and feature attribution of the candidates",
        "Logistic regression on the candidates' gradients and their attribution to SAE features.",
    ),
    Score(
        CANDIDATE_TRACKS,
        "tracking",
        "tracks of the candidates",
        "Logistic regression on metrics of the tracks of each candidate: the features that promote "
        "it, followed through the layers.",
    ),
    Score(
        CANDIDATE_ALL,
        "tracking",
        "gradients, feature attribution and tracks of the candidates",
        "Logistic regression on the candidates' gradients, their attribution to SAE features, and "
        "the tracks of these features.",
    ),
    Score(
        TEXT_ONLY,
        "control",
        "text only",
        "Logistic regression on TF-IDF of the text's words and characters, without the model.",
        "#6e7781",
        "^",
    ),
    Score(
        ANSWER_ONLY,
        "control",
        "answer only",
        "Logistic regression on TF-IDF of the answer alone, without the model.",
    ),
    Score(
        QUESTION_ONLY,
        "control",
        "question only",
        "Logistic regression on TF-IDF of the question alone, without the model.",
    ),
    Score(
        LENGTH,
        "control",
        "length",
        "Logistic regression on the length of the text and of the answer.",
    ),
    Score(
        GENERATOR,
        "control",
        "who wrote the answer",
        "Logistic regression on the name of the model or person that wrote the answer.",
    ),
    Score(
        EMBEDDING_PROBE,
        "control",
        "embedding probe",
        "Linear probe on the mean token embedding of the answer, before the first block.",
    ),
    Score(
        TEXT_PAIR,
        "control",
        "characters of question and answer",
        "Kernel regression on the characters of question and answer together, without the model.",
    ),
    Score(
        EMBEDDING_PAIR,
        "control",
        "token embeddings of question and answer",
        "Bilinear probe on the token embeddings of prompt and answer, before the first block.",
    ),
    Score(
        "noise",
        "control",
        "random numbers",
        "Random forest on random numbers, which know nothing of the text.",
    ),
    Score(
        "seen_in_training",
        "control",
        "seen as true in training",
        "0 for a text that the training part holds as true, else 1.",
    ),
    *(
        Score(
            f"metrics_{name}",
            "tracking",
            f"tracking metrics, {method}",
            f"The tracking metrics, classified by {article}{method}.",
        )
        for name, article, method in (
            ("logistic", "", "logistic regression"),
            ("forest", "a ", "random forest"),
            ("boosting", "", "gradient boosting"),
            ("svm", "a ", "support vector machine"),
            ("additive", "an ", "additive model"),
            ("ensemble", "an ", "ensemble of the other classifiers"),
        )
    ),
)
SCORES = {score.name: score for score in _ALL}
# The scores that every figure shows, in reading order. Colour-blind readers can tell the colours
# apart.
SHOWN = tuple(score for score in _ALL if score.colour)
# Null variants of the tracker.
NULLS = {
    "permuted": "permuted decoders",
    "random": "random links",
    "shuffled": "shuffled layers",
    "untracked": "no links",
    "candidates": "permuted candidates",
    "decoders": "random decoders",
}
_DECODERS = (NULL_DETECTOR, NULL_SAE_PROBE, NULL_RESIDUAL_PROBE)
# Scores on the metrics of tracks or candidates, of which nulls have variants: `BASE.VARIANT`.
_WITH_NULLS = (
    WITH_METRICS,
    WITH_CANDIDATES,
    CANDIDATE_ATTRIBUTION,
    CANDIDATE_FEATURES,
    CANDIDATE_TRACKS,
    CANDIDATE_ALL,
)


def has_random_decoder(name: str) -> bool:
    """Whether a score reads SAEs with random decoders."""
    return name.endswith(".decoders") and not is_external(name)


def is_external(name: str) -> bool:
    """Whether a score comes from a user's table or class. It need not be a probability."""
    return name.startswith((TABLE, CLASS))


def _external(name: str) -> Score:
    if name.startswith(TABLE):
        own = name.removeprefix(TABLE)
        meaning = f"Scores {own} of a table. They were made outside the folds."
        return Score(name, "external", f"{own} (table)", meaning)
    own = name.removeprefix(CLASS)
    meaning = f"Python class {own}, fitted in the training part of each outer fold."
    return Score(name, "external", f"{own} (class)", meaning)


def get(name: str) -> Score:
    """The score of a name.

    `BASE.VARIANT` is a score on the metrics of a null. `table.NAME` and `class.NAME` are scores
    from outside this project.

    Raises:
        KeyError: no score has this name.
    """
    if name in SCORES:
        return SCORES[name]
    if is_external(name):
        return _external(name)
    base, _, variant = name.rpartition(".")
    if base not in _WITH_NULLS and not base.startswith("metrics_") and name not in _DECODERS:
        raise KeyError(name)
    known, null = SCORES[base], NULLS.get(variant, variant)
    if name in _DECODERS:
        meaning = f"{known.meaning} The SAEs are a null: their decoders are random."
        return Score(name, known.family, f"{known.label}, {null}", meaning)
    return Score(
        name,
        "tracking_null",
        f"{known.label}, {null}",
        f"{known.meaning} The metrics are those of a null: {null}.",
    )


def label(text: str) -> str:
    """A score's label.

    In a longer note, such as "best of each set: pmi 3", the label of each name in it.
    """

    def replaced(match: re.Match[str]) -> str:
        try:
            return get(match[0]).label
        except KeyError:
            return match[0].replace("_", " ")

    return re.sub(r"\w+(?:\.\w+)*", replaced, text)


def read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a csv table that has at least `columns`.

    Raises:
        UserError: the file is missing, is no csv table, or lacks a column.
    """
    try:
        table = tables.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the workflow again, which makes it") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} is not a readable csv table ({error}): delete it and run again"
        ) from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{path}: expected the columns {', '.join(columns)}; "
            f"{', '.join(missing)} not found: delete the file and run again"
        )
    return table


def row_of(metrics: pd.DataFrame, dataset: str, score: str) -> dict[str, Any] | None:
    """The row of a data set and score in metrics.csv, or None."""
    rows = metrics[(metrics["dataset"] == dataset) & (metrics["score"] == score)]
    return None if rows.empty else {str(key): value for key, value in rows.iloc[0].items()}


class DatasetKinds(NamedTuple):
    """Names of data sets by what they can show, each list in the order of the run.

    text_controlled: given texts whose label the text does not give away (the text-only interval
    does not lie above 0.5, as in the leak audit); leaky: given texts whose label it does; generated:
    answers of the model; control: positive controls; skipped: too little data to train on; misled:
    conflict sets, of given texts or of answers.
    """

    text_controlled: list[str]
    leaky: list[str]
    generated: list[str]
    control: list[str]
    skipped: list[str]
    misled: list[str]


def kinds(metrics: pd.DataFrame, datasets: list[str], controls: list[str]) -> DatasetKinds:
    """Sort data sets by kind; `controls` names the positive controls."""
    result = DatasetKinds([], [], [], [], [], [])
    for dataset in datasets:
        modes = set(metrics.loc[metrics["dataset"] == dataset, "mode"])
        text = row_of(metrics, dataset, TEXT_ONLY)
        detector = row_of(metrics, dataset, DETECTOR)
        if detector is None or pd.isna(detector["auroc"]):
            result.skipped.append(dataset)
        elif dataset in controls:
            result.control.append(dataset)
        elif row_of(metrics, dataset, AGREEMENT) is not None:
            result.misled.append(dataset)
        elif modes == {"generated"}:
            result.generated.append(dataset)
        elif text is not None and text["auroc_low"] <= 0.5:
            result.text_controlled.append(dataset)
        else:
            result.leaky.append(dataset)
    return result
