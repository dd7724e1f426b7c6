"""Judge whole statements of users with the saved statement detector of a run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ghosttrack.activations import pooled_statements
from ghosttrack.activations.pooled_statements import StatementTokens
from ghosttrack.activations.statement_reading import StatementReader, is_statement
from ghosttrack.detection import saved, saved_statements
from ghosttrack.detection.scored_texts import HALLUCINATED, TRUE, UNLIKE, UNSURE
from ghosttrack.detection.statement_model import BASES
from ghosttrack.runtime.run_paths import RunPaths

# The kind of statements that the detector of answers is fitted on: its answer ends the statement.
ANSWER_KIND = "affirmed"
_NO_TOKENS = StatementTokens(np.empty((0, 2), dtype=np.int64), np.empty(0), np.empty(0))


class Opinion(NamedTuple):
    """The statement detector's result for one text.

    probability, log_odds: of "hallucinated"; reliability: largest stated confidence at which the
    text is decided, 0: never; unlike: whether the text is unlike every tested kind, or no statement;
    kind: the most similar kind.
    outputs: score of the output features; tokens: of the statement, with scores of their
    activations. Both are in standard deviations, above 0: hallucinated.
    """

    probability: float
    log_odds: float
    reliability: float
    unlike: bool
    kind: str
    outputs: float = 0.0
    tokens: StatementTokens = _NO_TOKENS


class StatementJudge:
    """The saved statement detector of a run, with the run's model.

    Args:
        paths: of the run.
        answers: the run's detector of answers.
        reading: keyword arguments of `StatementReader` other than layers and token_score.
    Raises:
        UserError: the detector is missing, damaged, or comes from another model.
    """

    def __init__(self, paths: RunPaths, answers: saved.SavedDetector, **reading: Any) -> None:
        self._saved = saved_statements.load(paths.detection)
        saved_statements.require_same(self._saved, answers, paths.detection)
        self._reader = None
        if self._saved.detector is not None:
            layers = self._saved.about["layers"]
            self._reader = StatementReader(
                layers=layers, token_score=self._saved.detector.token_score(len(layers)), **reading
            )

    @property
    def about(self) -> dict[str, Any]:
        """Description of the statement detector."""
        return dict(self._saved.about)

    @property
    def reason(self) -> str:
        """Why the run has no statement detector; "" if it has one."""
        return str(self._saved.about.get("reason", ""))

    def judge(self, texts: Sequence[str]) -> list[Opinion] | None:
        """Opinions on texts, each read alone; None without a detector."""
        if self._saved.detector is None or self._reader is None:
            return None
        read, tokens = self._reader.read(texts, "given texts")
        scores = self._saved.detector.scores(pooled_statements.flat(read.states), read.outputs)
        judged = self._saved.detector.judged(scores)
        kinds = self._saved.about["kinds"]
        outputs = scores.base[:, BASES.index("outputs")] * scores.polarity
        return [
            Opinion(
                float(p),
                float(odds),
                float(reliability),
                bool(unlike) or not is_statement(text),
                kinds[nearest],
                float(output),
                _in_text(one._replace(score=one.score * polarity), text),
            )
            for p, odds, reliability, unlike, nearest, output, one, polarity, text in zip(
                judged.probability,
                judged.log_odds,
                judged.reliability,
                judged.unlike,
                judged.nearest,
                outputs,
                tokens,
                scores.polarity,
                texts,
                strict=True,
            )
        ]


def _in_text(tokens: StatementTokens, text: str) -> StatementTokens:
    """The tokens with their ranges in the text itself, which may lack the final full stop."""
    ranges = np.minimum(tokens.ranges + len(text) - len(text.lstrip()), len(text.rstrip()))
    held = ranges[:, 0] < ranges[:, 1]
    return StatementTokens(ranges[held], tokens.surprise[held], tokens.score[held])


def verdict_on_statement(opinion: Opinion, confidence: float) -> str:
    """Verdict on a whole statement; a confidence of 0.5 never abstains."""
    side = HALLUCINATED if opinion.probability >= 0.5 else TRUE
    if confidence <= 0.5:
        return side
    if opinion.unlike:
        return UNLIKE
    return side if opinion.reliability >= confidence else UNSURE


def verdict_on_answer(
    probability: float, confidence: float, opinion: Opinion | None, *, at_end: bool
) -> str:
    """Verdict on an answer by the detector of answers; a confidence of 0.5 never abstains.

    That detector was tested on affirmed statements that end with the answer. On other statements it
    abstains.

    Args:
        probability: of "hallucinated", by the detector of answers.
        opinion: of the statement detector on the whole text; None without one.
        at_end: whether the answer ends the text.
    """
    side = HALLUCINATED if probability >= 0.5 else TRUE
    if confidence <= 0.5:
        return side
    if opinion is None or opinion.unlike or opinion.kind != ANSWER_KIND or not at_end:
        return UNLIKE
    return side if max(probability, 1 - probability) >= confidence else UNSURE
