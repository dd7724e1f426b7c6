"""Score user texts with a saved detector: `Detector.load("results/smollm2-135m").score(texts)`.

It needs a finished run with model, SAEs and detection/detector.safetensors. torch and transformers
are imported only when a detector is loaded.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ghosttrack.detection.scored_texts import Reason, ScoredText, ScoredToken, Text
from ghosttrack.errors import UserError
from ghosttrack.inputs.answer_spans import form_in, last_span
from ghosttrack.inputs.cells import as_text, shown, text_flaw
from ghosttrack.runtime.run_paths import RunPaths
from ghosttrack.settings import names

if TYPE_CHECKING:
    import pandas as pd

    from ghosttrack.activations.example_tokens import Encoded
    from ghosttrack.detection.scoring import FeatureContribution, ScoredBatch
    from ghosttrack.detection.statement_scoring import Opinion

# Numbers of texts that are sorted by length and batched together: few at first, so that results
# appear soon. They affect rounding only.
FIRST_WINDOW, WINDOW = 16, 64
# Default of `confidence`: the detector abstains below this probability of its verdict.
CONFIDENCE = 0.75
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# Decimals of all results; rounding errors that depend on the batch are smaller.
_DIGITS = 4
# Contributions per text, for each reason wanted, among which those of nameable features are sought.
_CANDIDATES = 6


class Detector:
    """A saved detector with its model and SAEs."""

    def __init__(self, run: Path, gpus: int = 1) -> None:
        from ghosttrack.detection.reasons import Meanings
        from ghosttrack.detection.scoring import Scorer
        from ghosttrack.detection.statement_scoring import StatementJudge

        self.run = run
        self._scorer = Scorer(run, gpus)
        self._meanings = Meanings(run)
        self._judge = StatementJudge(RunPaths(run), self._scorer.detector, **self._scorer.reading())

    @property
    def about(self) -> Mapping[str, Any]:
        """Description of the detector; `quality` holds its out-of-fold AUROC and calibration."""
        return self._scorer.about

    @classmethod
    def load(cls, run: str | Path, *, gpus: int = 1) -> Self:
        """Load the detector of a finished run, such as results/smollm2-135m.

        The model runs in the run's precision, on a GPU if there is one.

        Args:
            run: folder of the run.
            gpus: over which the model is spread, if it does not fit into one.
        Raises:
            UserError: the run has no detector, or it was trained with another model or other SAEs.
        """
        try:
            return cls(Path(names.home_expanded(str(run))), gpus)
        except names.InvalidNameError as error:
            raise UserError(f"run: {error}") from None

    def score(
        self,
        texts: Iterable[str | Text | Mapping[str, Any]],
        *,
        confidence: float = CONFIDENCE,
        reasons: int = 5,
    ) -> list[ScoredText]:
        """Score all texts at once; arguments and errors as in `stream`."""
        return list(self.stream(texts, confidence=confidence, reasons=reasons))

    def stream(
        self,
        texts: Iterable[str | Text | Mapping[str, Any]],
        *,
        confidence: float = CONFIDENCE,
        reasons: int = 5,
    ) -> Iterator[ScoredText]:
        """Score texts in order, a fixed number at a time, so that memory does not grow with their number.

        Args:
            texts: strings, `Text`s, or mappings with the fields of `Text`, of which `text` is
                required.
            confidence: the detector abstains below this probability of its verdict; 0.5 to 1.
            reasons: number of features to name per text.

        Raises:
            UserError: a text is empty, too long or without its answer, or two texts have one id.
        """
        if not 0.5 <= confidence <= 1:
            raise UserError(f"confidence: {confidence} must be from 0.5 (never abstain) to 1")
        numbered = _with_unique_ids(
            _as_text(given, number) for number, given in enumerate(texts, start=1)
        )
        size = FIRST_WINDOW
        while window := list(islice(numbered, size)):
            yield from self._window(window, confidence, reasons)
            size = min(2 * size, WINDOW)

    def _window(
        self, window: Sequence[Text], confidence: float, reasons: int
    ) -> Iterator[ScoredText]:
        import numpy as np
        import pandas as pd

        from ghosttrack.detection.probes import probability
        from ghosttrack.detection.statement_scoring import verdict_on_answer, verdict_on_statement

        judged = self._judge.judge([text.text for text in window])
        opinions: Sequence[Opinion | None] = judged or [None] * len(window)
        spans = [
            _answer_span(text, whole=opinion is not None)
            for text, opinion in zip(window, opinions, strict=True)
        ]
        frame = pd.DataFrame(
            {
                "id": [text.id for text in window],
                "text": [text.text for text in window],
                "answer_start": [start for start, _ in spans],
                "answer_end": [end for _, end in spans],
                # Texts with equal contexts share the computation of their common prefix.
                "relation": [text.context for text in window],
                "mode": "given",
                "question": [text.question for text in window],
            }
        )
        scorer = self._scorer
        encoded, offsets = self._encoded(frame)
        results = scorer.read(encoded, _CANDIDATES * reasons)
        ends = np.cumsum([len(item.read) for item in encoded])[:-1]
        probe, surprise = np.split(results.probe, ends), np.split(-results.logprob, ends)
        probabilities = probability(results.log_odds)
        for row, (text, (start, end)) in enumerate(zip(window, spans, strict=True)):
            tokens = [
                ScoredToken(
                    offsets[row][position - 1][0],
                    offsets[row][position - 1][1],
                    _round(token_surprise),
                    _round(token_probe),
                )
                for position, token_surprise, token_probe in zip(
                    encoded[row].read + encoded[row].shift, surprise[row], probe[row], strict=True
                )
            ]
            named = self._named(results.contributions[row], reasons)
            output = results.log_odds[row] - probe[row].mean()
            unexplained = _unexplained(named, output, results, row)
            log_odds, hallucinated = results.log_odds[row], _round(probabilities[row])
            opinion = opinions[row]
            if opinion is not None and _is_whole(text):
                hallucinated = _round(opinion.probability)
                log_odds = math.log(opinion.probability / (1 - opinion.probability))
                output = log_odds - probe[row].mean()
                # The features are those of the detector of answers, which did not decide.
                named, unexplained = [], 1.0
                verdict = verdict_on_statement(opinion, confidence)
            else:
                at_end = bool(text.answer) and not _WORD.search(text.text, end)
                verdict = verdict_on_answer(hallucinated, confidence, opinion, at_end=at_end)
            yield ScoredText(
                text.id,
                text.text,
                start,
                end,
                hallucinated,
                _round(log_odds),
                _round(output),
                verdict,
                tokens,
                named,
                _round(unexplained),
            )

    def _encoded(
        self, frame: "pd.DataFrame"
    ) -> tuple[list["Encoded"], list[list[tuple[int, int]]]]:
        """Token ids of every text, and the character range of every token in its text.

        Args:
            frame: the columns that `example_tokens.encode` reads, `question` ("" for none), and
                the context in the column `relation`.
        """
        from ghosttrack.activations import example_tokens
        from ghosttrack.inputs import chat
        from ghosttrack.report.explorer.texts import offsets_of

        asked = frame["question"] != ""
        if asked.any() and self.about.get("prompt") != "chat":
            raise UserError(
                f"text {frame['id'][asked].iloc[0]}: question: the detector of {self.run} was "
                "not trained on answers in a "
                "chat template (generation.prompt: chat, only generated data sets); leave out "
                "the question"
            )
        tokenizer, limit, positions = (
            self._scorer.tokenizer,
            self._scorer.limit,
            self.about["positions"],
        )
        encoded: dict[int, Encoded] = {}
        offsets: dict[int, list[tuple[int, int]]] = {}
        for part in (frame[~asked], frame[asked]):
            if part.empty:
                continue
            if part["question"].iloc[0]:
                # The context is the beginning of the user's message.
                message = part["relation"] + part["question"]
                read, contexts = chat.answered(part.assign(question=message), tokenizer), None
                ranges = chat.ranges_of_answered(part, tokenizer)
            else:
                read, contexts = part, part["relation"].tolist()
                ranges = offsets_of(part["text"].tolist(), tokenizer)
            # Questions share no prefix: the score of an answer must not depend on other questions.
            share = contexts is not None
            part_encoded = example_tokens.encode(
                read, tokenizer, limit, "given texts", contexts, positions, share=share
            )
            encoded |= zip(part.index, part_encoded, strict=True)
            offsets |= zip(part.index, ranges, strict=True)
        return [encoded[row] for row in frame.index], [offsets[row] for row in frame.index]

    def _named(self, contributions: "Sequence[FeatureContribution]", count: int) -> list[Reason]:
        """The largest contributions of features that can be named, at most `count`."""
        named: list[Reason] = []
        for part in contributions:
            layer = self._scorer.layers[part.layer_index]
            if len(named) < count and (meaning := self._meanings.of(layer, part.feature)):
                named.append(
                    Reason(
                        layer,
                        part.feature,
                        meaning.name,
                        _round(part.log_odds),
                        meaning.contexts,
                        meaning.promotes,
                    )
                )
        return named


def _unexplained(named: Sequence[Reason], output: float, results: "ScoredBatch", row: int) -> float:
    """Share of the absolute contributions to a text's log-odds that no named feature makes."""
    rest = results.log_odds[row] - output - results.total[row]
    everything = abs(output) + results.absolute[row] + abs(rest)
    return 1 - sum(abs(reason.log_odds) for reason in named) / everything if named else 1.0


def _round(value: float) -> float:
    return round(float(value), _DIGITS)


def _with_unique_ids(texts: Iterable[Text]) -> Iterator[Text]:
    """The same texts; refuses a text with the id of an earlier one."""
    first: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if (earlier := first.setdefault(text.id, number)) != number:
            raise UserError(
                f"texts {earlier} and {number} have the same id {shown(text.id)} (a text without "
                "an "
                "id gets its number); give every text a different id, or no text an id"
            )
        yield text


def _as_text(given: str | Text | Mapping[str, Any], number: int) -> Text:
    if isinstance(given, str):
        given = Text(given)
    elif not isinstance(given, Text):
        unknown = set(given) - set(Text._fields)
        if "text" not in given or unknown:
            raise UserError(
                f"text {number}: expected the key text, optionally "
                f"{', '.join(Text._fields[1:])}; found {', '.join(map(str, given))}"
            )
        given = Text(**given)
    if isinstance(given.text, str):
        given = given._replace(answer=form_in(given.text, given.answer))
    given = Text(*(_plain(value, name, number) for name, value in given._asdict().items()))
    if not given.text.strip():
        raise UserError(f"text {number}: expected text, found an empty string")
    for name in ("text", "answer", "id", "context", "question"):
        if reason := text_flaw(getattr(given, name)):
            raise UserError(f"text {number}: {name}: {reason}")
    context = given.context.strip()
    return given._replace(
        id=given.id or str(number),
        context=f"{context}\n" if context else "",
        question=given.question.strip(),
    )


def _plain(value: Any, name: str, number: int) -> str:
    """A text, number or boolean as text; "" for None and NaN."""
    text = as_text(value)
    if text is None:
        raise UserError(f"text {number}: {name}: expected text or a number, found {shown(value)}")
    return text


def _is_whole(given: Text) -> bool:
    """Whether the whole text is judged: a statement without a marked answer."""
    return not given.answer.strip() and not given.question


def _answer_span(given: Text, *, whole: bool) -> tuple[int, int]:
    """Character range of the answer.

    Without an answer, of the whole statement; of the last word after a question, or where the run
    has no detector of whole statements (`whole` is False).
    """
    answer = given.answer.strip()
    if whole and _is_whole(given):
        return len(given.text) - len(given.text.lstrip()), len(given.text.rstrip())
    if not answer:
        words = list(_WORD.finditer(given.text))
        return words[-1].span() if words else (0, len(given.text.rstrip()))
    span = last_span(given.text, answer)
    if span is None:
        from ghosttrack.inputs.user_texts import lacks_answer

        raise UserError(f"text {given.id}: {lacks_answer(given.text, answer)}")
    return span
