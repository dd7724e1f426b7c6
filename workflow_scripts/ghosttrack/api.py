"""Score user texts with a saved detector: `Detector.load("results/smollm2-135m").score(texts)`.

It needs a finished run with model, SAEs and detection/detector.safetensors. torch and transformers
are imported only when a detector is loaded.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ghosttrack.detection.scored_texts import (
    Reason,
    ScoredSentence,
    ScoredText,
    ScoredToken,
    Text,
    decisive,
)
from ghosttrack.errors import UserError
from ghosttrack.inputs.answer_spans import form_in, last_span
from ghosttrack.inputs.cells import as_text, shown, text_flaw
from ghosttrack.inputs.segmentation import Sentence, Window, sentences, windows, words
from ghosttrack.runtime.run_paths import RunPaths
from ghosttrack.settings import names

if TYPE_CHECKING:
    import pandas as pd

    from ghosttrack.activations.example_tokens import Encoded
    from ghosttrack.detection.scoring import FeatureContribution, ScoredBatch
    from ghosttrack.detection.statement_scoring import Opinion

_LOG = logging.getLogger(__name__)
# Numbers of texts that are sorted by length and batched together: few at first, so that results
# appear soon. They affect rounding only.
FIRST_WINDOW, WINDOW = 16, 64
# Default of `confidence`: the detector abstains below this probability of its verdict.
CONFIDENCE = 0.75
# Number of tokens that are read for a sentence: itself and what precedes it in its text.
READ_TOKENS = 256
# Decimals of all results; rounding errors that depend on the batch are smaller.
_DIGITS = 4
# A sentence, and its tokens.
_Scored = tuple[ScoredSentence, list[ScoredToken]]
# Contributions per text, for each reason wanted, among which those of nameable features are sought.
_CANDIDATES = 6


class Detector:
    """A saved detector with its model and SAEs."""

    def __init__(self, run: Path, gpus: int = 1, calibration: Path | None = None) -> None:
        from ghosttrack.detection.calibration import load
        from ghosttrack.detection.reasons import Meanings
        from ghosttrack.detection.scoring import Scorer
        from ghosttrack.detection.statement_scoring import StatementJudge
        from ghosttrack.runtime import records

        self.run = run
        # Scales, limits and precision; the detectors, the model and the SAEs have own digests.
        records.check_run(run, [run / "model_check.json"])
        self._scorer = Scorer(run, gpus)
        records.check_run(run, [RunPaths(run).features(layer) for layer in self._scorer.layers])
        self._meanings = Meanings(run)
        self._judge = StatementJudge(RunPaths(run), self._scorer.detector, **self._scorer.reading())
        self.calibration = load(calibration, self.identity) if calibration else None

    @property
    def about(self) -> Mapping[str, Any]:
        """Description of the detector; `quality` holds its out-of-fold AUROC and calibration."""
        return self._scorer.about

    @property
    def identity(self) -> Mapping[str, Any]:
        """Descriptions of both detectors, of answers and of statements, with their digests."""
        return {"answers": dict(self.about), "statements": self._judge.about}

    @classmethod
    def load(cls, run: str | Path, *, gpus: int = 1, calibration: str | Path | None = None) -> Self:
        """Load the detector of a finished run, such as results/smollm2-135m.

        The model runs in the run's precision, on a GPU if there is one.

        Args:
            run: folder of the run.
            gpus: over which the model is spread, if it does not fit into one.
            calibration: file of `make calibrate`, which then gives probabilities and verdicts.
        Raises:
            UserError: the run has no detector, it was trained with another model or other SAEs, the
                calibration is of another detector, or a file of the run is not what its job wrote.
        """
        try:
            return cls(
                Path(names.home_expanded(str(run))),
                gpus,
                Path(names.home_expanded(str(calibration))) if calibration else None,
            )
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

        Texts that are read together share forward passes, so a text's numbers depend on the other
        texts by rounding: below 2e-4 in log-odds for the float32 models of the tests, and
        `benchmarks/scoring.py` measures it for a run.

        Args:
            texts: strings, `Text`s, or mappings with the fields of `Text`, of which `text` is
                required.
            confidence: fraction of its verdicts that shall be right, 0.5 (a verdict on every text) to
                1; the detector abstains where it has not shown that.
            reasons: number of features to name per text.

        Raises:
            UserError: a text is empty, too long or without its answer, two texts have one id, or the
                calibration is for texts with a marked answer and a text has none, or the reverse.
        """
        if not 0.5 <= confidence <= 1:
            raise UserError(f"confidence: {confidence} must be from 0.5 (never abstain) to 1")
        if reasons < 0:
            raise UserError(f"reasons: {reasons} must be 0 or more")
        numbered = _with_unique_ids(
            _as_text(given, number) for number, given in enumerate(texts, start=1)
        )
        if self.calibration and isinstance(texts, Sequence):  # before the first text is read
            self._require_calibrated([_as_text(given, at) for at, given in enumerate(texts, 1)])
        level = confidence
        if self.calibration:  # it is fitted on the sentences that decide at this level
            from ghosttrack.detection.calibration import CONFIDENCES

            level = min(CONFIDENCES)
        size, told = FIRST_WINDOW, False
        while window := list(islice(numbered, size)):
            if not told and any(text.context and self._is_whole(text) for text in window):
                told = True
                _LOG.warning(
                    "a context is not read for texts without `answer`: mark the answer, or leave "
                    "out the context"
                )
            self._require_calibrated(window)
            for score in self._window(window, level, reasons):
                yield self.calibration.apply(score, confidence) if self.calibration else score
            size = min(2 * size, WINDOW)

    def _require_calibrated(self, texts: Iterable[Text]) -> None:
        """Check that the calibration is of the detector that judges: of answers, or of statements."""
        fitted = self.calibration.about.get("whole") if self.calibration else None
        for text in texts:
            if self.calibration and fitted and self._is_whole(text) not in fitted:
                kind, remedy = (
                    ("with", "mark it") if True not in fitted else ("without", "mark none")
                )
                raise UserError(
                    f"text {text.id}: the calibration {self.calibration.name} was fitted on texts "
                    f"{kind} a marked answer, which another detector judges; {remedy}, or score "
                    "without this calibration"
                )

    def _window(
        self, window: Sequence[Text], confidence: float, reasons: int
    ) -> Iterator[ScoredText]:
        rows = [(text, span) for text in window for span in self._spans(text)]
        opinions = self._opinions(rows, confidence)
        whole = [self._is_whole(text) for text, _ in rows]
        answered = iter(
            self._answered(
                [row for row, is_whole in zip(rows, whole, strict=True) if not is_whole],
                [one for one, is_whole in zip(opinions, whole, strict=True) if not is_whole],
                confidence,
                reasons,
            )
        )
        scored: dict[str, list[_Scored]] = {text.id: [] for text in window}
        for (text, span), opinion, is_whole in zip(rows, opinions, whole, strict=True):
            if is_whole and opinion is not None:
                scored[text.id].append(_as_whole(span, opinion, confidence))
            else:
                scored[text.id].append(next(answered))
        for text in window:
            found = [sentence for sentence, _ in scored[text.id]]
            tokens: list[ScoredToken] = []
            for _, of_sentence in scored[text.id]:
                # A run that stores all positions also reads the sentences before.
                last = max((token.end for token in tokens), default=-1)
                tokens += [token for token in of_sentence if token.end > last]
            worst = decisive(found)
            yield ScoredText(
                text.id,
                text.text,
                found[0].start,
                found[-1].end,
                worst.probability,
                worst.log_odds,
                worst.output,
                worst.verdict,
                tokens,
                worst.reasons,
                worst.unexplained,
                sentences=tuple(found),
                whole=self._is_whole(text),
            )

    def _answered(
        self,
        rows: Sequence[tuple[Text, Window]],
        opinions: "Sequence[Opinion | None]",
        confidence: float,
        reasons: int,
    ) -> "list[_Scored]":
        """Results of the detector of answers, one for each row."""
        import numpy as np
        import pandas as pd

        from ghosttrack.detection.probes import probability
        from ghosttrack.detection.statement_scoring import verdict_on_answer

        if not rows:
            return []
        frame = pd.DataFrame(
            {
                "id": [text.id for text, _ in rows],
                "text": [text.text[span.start : span.stop] for text, span in rows],
                "answer_start": [span.first - span.start for _, span in rows],
                "answer_end": [span.last - span.start for _, span in rows],
                # Texts with equal contexts share the computation of their common prefix.
                "relation": [text.context for text, _ in rows],
                "mode": "given",
                "question": [text.question for text, _ in rows],
                "has_answer": [bool(text.answer.strip()) for text, _ in rows],
            }
        )
        encoded, offsets = self._encoded(frame)
        results = self._scorer.read(encoded, _CANDIDATES * reasons)
        ends = np.cumsum([len(item.read) for item in encoded])[:-1]
        probe, surprise = np.split(results.probe, ends), np.split(-results.logprob, ends)
        probabilities = probability(results.log_odds)
        scored: list[_Scored] = []
        for row, (text, span) in enumerate(rows):
            ranges = [offsets[row][place - 1] for place in encoded[row].read + encoded[row].shift]
            named = self._named(results.contributions[row], reasons)
            output = results.log_odds[row] - probe[row].mean()
            hallucinated = _round(probabilities[row])
            at_end = _ends_sentence(text, span)
            sentence = ScoredSentence(
                span.first,
                span.last,
                span.start,
                span.stop,
                hallucinated,
                _round(results.log_odds[row]),
                _round(output),
                verdict_on_answer(hallucinated, confidence, opinions[row], at_end=at_end),
                named,
                _round(_unexplained(named, output, results, row)),
            )
            scored.append((sentence, _tokens(span.start, ranges, surprise[row], probe[row])))
        return scored

    def _is_whole(self, text: Text) -> bool:
        """Whether whole sentences of a text are judged: no answer is marked, and no question asked.

        A run without a detector of statements judges the last word of every sentence.
        """
        return not (text.answer.strip() or text.question or self._judge.reason)

    def _spans(self, text: Text) -> list[Window]:
        """What is judged of a text, and what is read for it: its answer, or every sentence.

        Answers to questions are read whole.
        """
        from ghosttrack.report.explorer.texts import offsets_of

        whole, limit = text.text, self._scorer.limit
        context = "" if self._is_whole(text) else text.context
        answer = _answer_span(text) if text.answer.strip() else None
        judged = [Sentence(*answer, answer[1])] if answer else sentences(whole)
        found = [
            Window(0, len(whole) if each is judged[-1] else each.stop, each.start, each.end)
            for each in judged
        ]
        # No text has more tokens than bytes; the separator is one token. Half of the model's limit
        # may go to the statements that a whole statement is read behind.
        size = len(whole.encode()) + len(context.encode()) + 1
        longest = limit if answer else min(READ_TOKENS, limit // 2 - 2)
        if not text.question and size > longest:
            tokens, before = offsets_of([whole, context], self._scorer.tokenizer)
            free = limit - 1 - len(before)
            # A part of a text can have one token more than its share of the tokens of the text.
            if answer is None and free > 1:
                found = windows(whole, judged, tokens, max(1, min(longest, free - 1)))
            elif free > 1 and len(tokens) > free:
                start = judged[0].start
                earlier = [
                    Sentence(each.start, min(each.end, start), min(each.stop, start))
                    for each in sentences(whole)
                    if each.start < start
                ]
                parts = windows(whole, [*earlier, *judged], tokens, free - 1)
                found = [each for each in parts if each.first >= start]
        if answer:
            return found
        if self._is_whole(text):  # a rule or asterisks after the last sentence are no part of it
            return [each._replace(stop=min(each.stop, judged[-1].stop)) for each in found]
        return [
            each._replace(first=each.first + last[0], last=each.first + last[1])
            for each in found
            for last in (words(whole[each.first : each.last]) or [(0, each.last - each.first)])[-1:]
        ]

    def _opinions(
        self, rows: Sequence[tuple[Text, Window]], confidence: float
    ) -> list["Opinion | None"]:
        """The statement detector's opinion on each row: its sentence, or that around its answer.

        None without this detector, on a sentence with an answer that is too long for it, and where
        the verdict on an answer does not depend on it.
        """
        longest = self._scorer.limit // 2 - 2
        texts = {}
        for row, (text, span) in enumerate(rows):
            if self._is_whole(text):
                texts[row] = text.text[span.first : span.stop]
            elif not self._judge.reason and confidence > 0.5 and _ends_sentence(text, span):
                sentence, _ = _sentence_around(text, span)
                tokens = self._scorer.tokenizer(sentence, verbose=False)["input_ids"]
                if len(tokens) <= longest:
                    texts[row] = sentence
        opinions = self._judge.judge(list(texts.values())) if texts else None
        known = dict(zip(texts, opinions or [], strict=False))
        return [known.get(row) for row in range(len(rows))]

    def _encoded(
        self, frame: "pd.DataFrame"
    ) -> tuple[list["Encoded"], list[list[tuple[int, int]]]]:
        """Token ids of every text, and the character range of every token in its text.

        Args:
            frame: the columns that `example_tokens.encode` reads, `question` ("" for none), the
                context in the column `relation`, and whether an answer was marked (`has_answer`).
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
        marked = frame["has_answer"]
        for part in (frame[~asked & marked], frame[~asked & ~marked], frame[asked]):
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
            # A prefix counts as no part of the text (text_logprob_mean), so texts share their context
            # alone, and questions nothing: no score depends on the other texts.
            part_encoded = example_tokens.encode(
                read, tokenizer, limit, "given texts", contexts, positions, share=False
            )
            if contexts is not None:
                part_encoded = [_behind_context(each) for each in part_encoded]
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


def _behind_context(one: "Encoded") -> "Encoded":
    """Move the context to the prefix, except its last token, if that is worth a cache."""
    from ghosttrack.activations.example_tokens import SHARED_TOKENS

    length = one.lead - 1
    if length < SHARED_TOKENS:
        return one
    return one._replace(
        ids=one.ids[length:],
        answer=one.answer - length,
        read=one.read - length,
        prefix=one.ids[:length],
    )


def _as_whole(span: Window, opinion: "Opinion", confidence: float) -> _Scored:
    """Result of the statement detector for a sentence, which it reads without those before."""
    from ghosttrack.detection.statement_scoring import verdict_on_statement

    sentence = ScoredSentence(
        span.first,
        span.last,
        span.first,
        span.stop,
        _round(opinion.probability),
        _round(math.log(opinion.probability / (1 - opinion.probability))),
        _round(opinion.outputs),
        verdict_on_statement(opinion, confidence),
        [],  # the detector of statements reads no features
    )
    tokens = _tokens(span.first, *opinion.tokens)
    return sentence, [token for token in tokens if token.start < span.last]  # no end mark


def _tokens(
    start: int, ranges: Iterable[Sequence[int]], surprise: Iterable[float], probe: Iterable[float]
) -> list[ScoredToken]:
    """Tokens with their ranges in the text, of which a part from `start` on was read."""
    return [
        ScoredToken(start + int(first), start + int(last), _round(nats), _round(score))
        for (first, last), nats, score in zip(ranges, surprise, probe, strict=True)
    ]


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


def _sentence_around(given: Text, span: Window) -> tuple[str, str]:
    """The sentence in which a span begins, and what follows the span in it."""
    for each in reversed(sentences(given.text)):
        if each.start <= span.first:
            return given.text[each.start : each.stop], given.text[span.last : each.stop]
    return given.text, given.text[span.last :]


def _ends_sentence(given: Text, span: Window) -> bool:
    """Whether a marked answer ends its sentence."""
    return bool(given.answer) and not words(_sentence_around(given, span)[1])


def _answer_span(given: Text) -> tuple[int, int]:
    """Character range of the answer."""
    answer = given.answer.strip()
    span = last_span(given.text, answer)
    if span is None:
        from ghosttrack.inputs.user_texts import lacks_answer

        raise UserError(f"text {given.id}: {lacks_answer(given.text, answer)}")
    return span
