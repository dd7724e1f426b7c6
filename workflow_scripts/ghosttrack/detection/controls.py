"""What a detector must beat: scores from the text alone, and scores the model's output gives without training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import probes
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.detection.representations import PromptAnswerPairs
from ghosttrack.detection.splits import OuterFold

# Whole text and answer are two controls: on TruthfulQA the answer alone is the stronger one.
TEXTS = (registry.TEXT_ONLY, registry.ANSWER_ONLY)
# Trained on what the audit may see: no activation past the token embedding, no output of the model.
AUDITED = (*TEXTS, registry.QUESTION_ONLY, registry.LENGTH, registry.EMBEDDING_PROBE)
# Inverse strengths of the text models.
TEXT_STRENGTHS = (0.3, 3.0, 30.0)
# Knots of the length curve: enough for "too short or too long is false", few enough for a hundred texts.
LENGTH_KNOTS = 5


def question_of(examples: pd.DataFrame) -> list[str]:
    """What is asked, (examples,): the question, or the prompt of a plain statement."""
    return [
        str(question or prompt)
        for question, prompt in zip(examples["question"], examples["prompt"], strict=True)
    ]


def visible_text(examples: pd.DataFrame) -> list[str]:
    """What a reader without a model sees, (examples,).

    The statement as given; of a generated answer the question and the answer, without the solved
    examples of the prompt that all of them share.
    """
    asked = question_of(examples)
    columns = zip(examples["mode"], examples["text"], asked, examples["answer"], strict=True)
    return [
        str(text) if mode == "given" else f"{question} {answer}"
        for mode, text, question, answer in columns
    ]


def fit_text(documents: Sequence[str], labels: Ints, outer: OuterFold) -> FoldFit:
    """TF-IDF of words (1-2) and characters (2-5), logistic regression.

    Vocabulary and weights come from the training rows alone.

    Args:
        documents: one text per example, (examples,).
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = np.array([text.strip() or "-" for text in documents], dtype=object)
    train: list[Any] = []
    test: list[Any] = []
    for analyzer, pattern, span in (("word", r"\w+|[^\w\s]", (1, 2)), ("char", None, (2, 5))):
        if analyzer == "char" and max(map(len, texts[outer.train])) < span[0]:
            continue  # texts without answers or questions: no two characters stand together
        vectorizer = TfidfVectorizer(
            analyzer=analyzer, token_pattern=pattern, ngram_range=span, sublinear_tf=True
        )
        train.append(vectorizer.fit_transform(texts[outer.train]))
        test.append(vectorizer.transform(texts[outer.test]))
    return probes.logistic(
        hstack(train, format="csr"),
        labels[outer.train],
        outer.inner_fold,
        hstack(test, format="csr"),
        TEXT_STRENGTHS,
    )


def text_only(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """The whole visible text."""
    return fit_text(visible_text(examples), labels, outer)


def answer_only(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """The answer without what it answers."""
    return fit_text([str(answer) for answer in examples["answer"]], labels, outer)


def question_only(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """The question without the answer."""
    return fit_text(question_of(examples), labels, outer)


def embedding_pair(pairs: PromptAnswerPairs, labels: Ints, outer: OuterFold) -> FoldFit:
    """The bilinear probe without the model's computation: mean token embedding of the prompt, output embedding of the answer."""
    return probes.bilinear_ridge(
        [pairs.words],
        pairs.answer,
        pairs.relation,
        labels[outer.train],
        outer.inner_fold,
        outer.train,
        outer.test,
    )


def text_pair(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """Which question goes with which answer, told from their characters.

    A kernel of question and answer: the product of a likeness of questions and one of answers (TF-IDF of characters, 1-4; and
    whether two answers are the same), within a relation. Counts of words cannot tell a swapped pair; this can, where names
    look like their answers.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    def likeness(texts: Sequence[str]) -> Any:
        shown = np.array([text.strip() or "-" for text in texts], dtype=object)
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
        vectorizer.fit(shown[outer.train])
        return vectorizer.transform(shown)

    answers = [str(answer) for answer in examples["answer"]]
    same, relation = (
        pd.factorize(np.array(each, dtype=object))[0]
        for each in (answers, examples["relation"].tolist())
    )
    question, answer = likeness(question_of(examples)), likeness(answers)

    def kernel(rows: Ints, marks: Ints) -> NDArray[Any]:
        asked, told, name, about = question[rows], answer[rows], same[rows], relation[rows]
        alike = (told @ told[marks].T).toarray() + (name[:, None] == name[marks])
        return np.asarray(
            (asked @ asked[marks].T).toarray() * alike * (about[:, None] == about[marks])
        )

    return probes.kernel_ridge(
        kernel, labels[outer.train], outer.inner_fold, outer.train, outer.test
    )


def length_features(examples: pd.DataFrame) -> Floats:
    """Characters and words of the text and of the answer, logarithmic, (examples, 4)."""
    kinds = (visible_text(examples), [str(answer) for answer in examples["answer"]])
    columns = [
        [measure(text) for text in texts]
        for texts in kinds
        for measure in (len, lambda text: len(text.split()))
    ]
    return np.log1p(np.array(columns, dtype=np.float64).T)


def length(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """Length in characters and words through a smooth curve, so that any direction is found."""
    from sklearn.preprocessing import SplineTransformer

    x = length_features(examples)
    varying = np.ptp(x[outer.train], axis=0) > 0  # a spline needs a range
    if not varying.any():
        x = np.zeros((len(x), 1))
        return probes.logistic(x[outer.train], labels[outer.train], outer.inner_fold, x[outer.test])
    curve = SplineTransformer(
        n_knots=LENGTH_KNOTS, degree=2, knots="uniform", extrapolation="constant"
    )
    train = curve.fit_transform(x[outer.train][:, varying])
    return probes.logistic(
        train, labels[outer.train], outer.inner_fold, curve.transform(x[outer.test][:, varying])
    )


def embedding_probe(embedding: NDArray[Any], labels: Ints, outer: OuterFold) -> FoldFit:
    """Probe on the mean token embedding of the answer, (examples, d_model): what the tokens give away by themselves."""
    return probes.ridge(
        embedding[outer.train], labels[outer.train], outer.inner_fold, embedding[outer.test]
    )


class Untrained(NamedTuple):
    """A score by definition: `column` of outputs.parquet times `sign`, higher = more likely hallucinated."""

    column: str
    sign: int


UNTRAINED = {
    "answer_logprob_sum": Untrained("logprob_sum", -1),
    "answer_logprob_mean": Untrained("logprob_mean", -1),
    # pointwise mutual information: minus what the answer has after other prompts of its relation (Holtzman et al. 2021)
    "pmi": Untrained("pmi_sum", -1),
    "pmi_mean": Untrained("pmi_mean", -1),
    # the first token against all answers of the relation at once: see `activations.rivals.standing`
    "sinkhorn": Untrained("final_matched", -1),
    # exp is monotone, so perplexity = exp(-mean) ranks as its logarithm does
    "perplexity": Untrained("text_logprob_mean", -1),
    "entropy": Untrained("entropy_mean", 1),
    "margin": Untrained("margin_mean", -1),
    "p_true": Untrained("p_true", -1),
    "self_consistency": Untrained("self_consistency", -1),
    "semantic_entropy": Untrained("semantic_entropy", 1),
}
# Not every data set has these: drawn answers are a generated one's, and not every text is asked about.
OCCASIONAL = ("self_consistency", "semantic_entropy", "p_true")
# Single signals without training on the label, or without the model: the best of them is the bar for a claim.
SINGLE = (*UNTRAINED, registry.LENGTH, *TEXTS, registry.QUESTION_ONLY, registry.TEXT_PAIR)


def untrained(name: str, outputs: pd.DataFrame) -> Floats:
    """Score of an untrained signal, (examples,); perplexity itself is exponentiated, the rest is in nats.

    NaN throughout where some example lacks it: see `missing`.
    """
    column, sign = UNTRAINED[name]
    if missing(name, outputs):
        return np.full(len(outputs), np.nan)
    score = sign * outputs[column].to_numpy(dtype=np.float64)
    return np.asarray(np.exp(score) if name == "perplexity" else score, dtype=np.float64)


def missing(name: str, outputs: pd.DataFrame) -> str:
    """Why an untrained signal is not there, or ""."""
    column = UNTRAINED[name].column
    lacking = int(outputs[column].isna().sum()) if column in outputs else len(outputs)
    if not lacking:
        return ""
    if name == "p_true":
        return f"{lacking} of {len(outputs)} texts are too long to be asked about behind solved examples"
    if name == "sinkhorn":
        return f"{lacking} of {len(outputs)} answers have no rivals (fewer than two prompts in their relation, or two answers that begin differently)"
    return f"{lacking} of {len(outputs)} answers meet no other prompts (no prompt before the answer, or detection.other_prompts: 0)"


def is_measured(name: str, outputs: pd.DataFrame) -> bool:
    """Whether an untrained signal belongs to a data set at all."""
    return name not in OCCASIONAL or UNTRAINED[name].column in outputs
