"""Controls that a detector must beat: text classifiers and untrained output scores."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import probes
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.detection.representations import REMARK_SUPPORT, PromptAnswerPairs
from ghosttrack.detection.splits import OuterFold

# Text and answer are separate controls: on TruthfulQA the answer alone is the stronger one.
TEXTS = (registry.TEXT_ONLY, registry.ANSWER_ONLY)
# Controls of the leak audit: they read no activation after the token embedding and no model output.
AUDITED = (*TEXTS, registry.QUESTION_ONLY, registry.LENGTH, registry.EMBEDDING_PROBE)
# The control of data sets that name who wrote each answer.
GENERATED = (registry.GENERATOR,)
# Inverse regularisation strengths of the text models.
TEXT_STRENGTHS = (0.3, 3.0, 30.0)
# Knots of the length spline: enough for "too short or too long is false", few enough for a hundred
# texts.
LENGTH_KNOTS = 5


def question_of(examples: pd.DataFrame) -> list[str]:
    """The question, or the prompt of a statement without a question, (examples,)."""
    return [
        str(question or prompt)
        for question, prompt in zip(examples["question"], examples["prompt"], strict=True)
    ]


def visible_text(examples: pd.DataFrame) -> list[str]:
    """The text that the text controls read, (examples,).

    A given statement is read as it is. Of a generated answer, question and answer are read, and the
    remark before them, without the few-shot demonstrations in the prompt.
    """
    asked, remark = question_of(examples), [""] * len(examples)
    if "remark" in examples:  # a prompt without a question holds its remark
        remark = list(examples["remark"].where(examples["question"] != "", ""))
    columns = zip(
        examples["mode"], examples["text"], remark, asked, examples["answer"], strict=True
    )
    return [
        str(text) if mode == "given" else f"{said}{question} {answer}"
        for mode, text, said, question, answer in columns
    ]


def fit_text(documents: Sequence[str], labels: Ints, outer: OuterFold) -> FoldFit:
    """Logistic regression on TF-IDF of word 1-2-grams and character 2-5-grams.

    Vocabulary and weights come from the training rows alone.

    Args:
        documents: (examples,) texts.
        labels: (examples,) 1 = hallucinated.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = np.array([text.strip() or "-" for text in documents], dtype=object)
    train: list[Any] = []
    test: list[Any] = []
    for analyzer, pattern, span in (("word", r"\w+|[^\w\s]", (1, 2)), ("char", None, (2, 5))):
        if analyzer == "char" and max(map(len, texts[outer.train])) < span[0]:
            continue  # no text has two characters
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
    """Text model of the whole visible text."""
    return fit_text(visible_text(examples), labels, outer)


def answer_only(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """Text model of the answer without the question."""
    return fit_text([str(answer) for answer in examples["answer"]], labels, outer)


def question_only(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """Text model of the question without the answer."""
    return fit_text(question_of(examples), labels, outer)


def embedding_pair(pairs: PromptAnswerPairs, labels: Ints, outer: OuterFold) -> FoldFit:
    """Bilinear probe on the prompt's mean token embedding and the answer's unembedding row."""
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
    """Kernel ridge regression on pairs of question and answer, from their characters.

    The kernel is the product of a similarity of questions and one of answers within a relation:
    TF-IDF of character 1-4-grams, plus 1 for equal answers. Word counts cannot tell which answer
    belongs to which question; this kernel can where a name resembles its answer.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    def similarity_features(texts: Sequence[str]) -> Any:
        documents = np.array([text.strip() or "-" for text in texts], dtype=object)
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
        vectorizer.fit(documents[outer.train])
        return vectorizer.transform(documents)

    answer_texts = [str(answer) for answer in examples["answer"]]
    answer_code, relation_code = (
        pd.factorize(np.array(values, dtype=object))[0]
        for values in (answer_texts, examples["relation"].tolist())
    )
    question, answer = similarity_features(question_of(examples)), similarity_features(answer_texts)

    def kernel(rows: Ints, columns: Ints) -> NDArray[Any]:
        questions, answers = question[rows], answer[rows]
        same_answer, same_relation = (
            codes[rows][:, None] == codes[rows][columns] for codes in (answer_code, relation_code)
        )
        similar = (answers @ answers[columns].T).toarray() + same_answer
        return np.asarray((questions @ questions[columns].T).toarray() * similar * same_relation)

    return probes.kernel_ridge(
        kernel, labels[outer.train], outer.inner_fold, outer.train, outer.test
    )


def length_features(examples: pd.DataFrame) -> Floats:
    """log(1 + n) for the characters and words of text and answer, (examples, 4)."""
    kinds = (visible_text(examples), [str(answer) for answer in examples["answer"]])
    columns = [
        [measure(text) for text in texts]
        for texts in kinds
        for measure in (len, lambda text: len(text.split()))
    ]
    return np.log1p(np.array(columns, dtype=np.float64).T)


def length(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """Logistic regression on splines of the lengths, so that too short and too long both count."""
    from sklearn.preprocessing import SplineTransformer

    x = length_features(examples)
    varying = np.ptp(x[outer.train], axis=0) > 0  # a spline needs two different values
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


def generator(examples: pd.DataFrame, labels: Ints, outer: OuterFold) -> FoldFit:
    """Logistic regression on who wrote the answer (column generator)."""
    code, names = pd.factorize(examples["generator"], sort=True)
    x = np.eye(len(names))[code]
    return probes.logistic(x[outer.train], labels[outer.train], outer.inner_fold, x[outer.test])


def audited(examples: pd.DataFrame) -> tuple[str, ...]:
    """The controls of the leak audit of a data set."""
    return (*AUDITED, *(GENERATED if "generator" in examples else ()))


def embedding_probe(embedding: NDArray[Any], labels: Ints, outer: OuterFold) -> FoldFit:
    """Ridge probe on the mean token embedding of the answer, (examples, d_model)."""
    return probes.ridge(
        embedding[outer.train], labels[outer.train], outer.inner_fold, embedding[outer.test]
    )


class Untrained(NamedTuple):
    """A score that needs no training: `column` of outputs.parquet times `sign`."""

    column: str
    sign: int


UNTRAINED = {
    "answer_logprob_sum": Untrained("logprob_sum", -1),
    "answer_logprob_mean": Untrained("logprob_mean", -1),
    # pointwise mutual information with the prompt (Holtzman et al. 2021)
    "pmi": Untrained("pmi_sum", -1),
    "pmi_mean": Untrained("pmi_mean", -1),
    # log-share of the answer's first token after Sinkhorn normalisation: see
    # `activations.candidates`
    "sinkhorn": Untrained("final_sinkhorn", -1),
    # `untrained` exponentiates it
    "perplexity": Untrained("text_logprob_mean", -1),
    "entropy": Untrained("entropy_mean", 1),
    "margin": Untrained("margin_mean", -1),
    "p_true": Untrained("p_true", -1),
    "self_consistency": Untrained("self_consistency", -1),
    "semantic_entropy": Untrained("semantic_entropy", 1),
    registry.REMARK_LOGPROB: Untrained(REMARK_SUPPORT, -1),
}
# Scores that not every data set has: they need sampled answers, a question about each text, or
# remarks.
OCCASIONAL = ("self_consistency", "semantic_entropy", "p_true", registry.REMARK_LOGPROB)
# Single scores that are untrained or read no model. A claim must beat the best of them.
SINGLE = (
    *UNTRAINED,
    registry.LENGTH,
    *TEXTS,
    registry.QUESTION_ONLY,
    registry.TEXT_PAIR,
    registry.GENERATOR,
)


def untrained(name: str, outputs: pd.DataFrame) -> Floats:
    """An untrained score, (examples,); perplexity is exponentiated, the others are in nats.

    All values are NaN if one example lacks the column: see `missing`.
    """
    column, sign = UNTRAINED[name]
    if missing(name, outputs):
        return np.full(len(outputs), np.nan)
    score = sign * outputs[column].to_numpy(dtype=np.float64)
    return np.asarray(np.exp(score) if name == "perplexity" else score, dtype=np.float64)


def missing(name: str, outputs: pd.DataFrame) -> str:
    """Why an untrained score cannot be computed, or ""."""
    column = UNTRAINED[name].column
    n_missing = int(outputs[column].isna().sum()) if column in outputs else len(outputs)
    if not n_missing:
        return ""
    if name == "p_true":
        return (
            f"{n_missing} of {len(outputs)} texts do not fit into the context after the few-shot "
            "demonstrations"
        )
    if name == "sinkhorn":
        return (
            f"{n_missing} of {len(outputs)} answers have no other candidate answers (needed: two "
            "prompts in the relation, and two answers with different first tokens)"
        )
    return (
        f"{n_missing} of {len(outputs)} answers have no other prompts to compare with (no prompt "
        "before the answer, or detection.pmi_prompts: 0)"
    )


def is_measured(name: str, outputs: pd.DataFrame) -> bool:
    """Whether a data set can have an untrained score."""
    return name not in OCCASIONAL or UNTRAINED[name].column in outputs
