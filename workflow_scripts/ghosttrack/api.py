"""The detector on one's own texts: `Detector.load("results/smollm2-135m").score(texts)`.

It needs a finished run: the model, the SAEs and detection/detector.safetensors. Importing this module is cheap; torch and
transformers are imported when a detector is loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ghosttrack.detection.scored_texts import (
    ABSTAIN,
    HALLUCINATED,
    TRUE,
    Reason,
    Score,
    Text,
    Token,
)
from ghosttrack.errors import UserError
from ghosttrack.inputs.cells import as_text, shown, text_flaw
from ghosttrack.settings import names

if TYPE_CHECKING:
    import pandas as pd

    from ghosttrack.activations.example_tokens import Encoded

# Texts that are sorted by length together; changes no result but for rounding.
WINDOW = 256
# Below this probability of its own verdict the detector abstains, unless another one is asked for.
CONFIDENCE = 0.75
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# Digits that are the same whatever the batch: rounding noise of the forward pass lies below.
_DIGITS = 4


class Detector:
    """A saved detector with its model and SAEs, ready to score."""

    def __init__(self, run: Path) -> None:
        from ghosttrack.detection.scoring import Scorer

        self.run = run
        self._scorer = Scorer(run)
        self._names: dict[int, list[str]] = {}

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the detector comes from, and how good it was on left-out folds (`quality`)."""
        return self._scorer.about

    @classmethod
    def load(cls, run: str | Path) -> Self:
        """Load the detector of a finished run, such as results/smollm2-135m.

        Raises:
            UserError: there is none, or model or SAEs are not those that it was made with.
        """
        try:
            return cls(Path(names.home_expanded(str(run))))
        except names.InvalidNameError as error:
            raise UserError(f"run: {error}") from None

    def score(
        self,
        texts: Iterable[str | Text | Mapping[str, Any]],
        *,
        confidence: float = CONFIDENCE,
        reasons: int = 5,
    ) -> list[Score]:
        """Score texts: strings, `Text`s, or mappings with `text` and perhaps `answer` and `id`. Arguments as `stream`."""
        return list(self.stream(texts, confidence=confidence, reasons=reasons))

    def stream(
        self,
        texts: Iterable[str | Text | Mapping[str, Any]],
        *,
        confidence: float = CONFIDENCE,
        reasons: int = 5,
    ) -> Iterator[Score]:
        """Scores in the order of the texts, some hundred at a time, so that any number of texts needs little memory.

        Args:
            confidence: below this probability of its verdict the detector abstains, .5 to 1.
            reasons: how many features to name.
        Raises:
            UserError: naming the text that is empty, too long, or does not hold its answer, or two texts of one id.
        """
        if not 0.5 <= confidence <= 1:
            raise UserError(f"confidence: {confidence} must be from 0.5 (never abstain) to 1")
        numbered = _with_own_ids(
            _as_text(given, number) for number, given in enumerate(texts, start=1)
        )
        while window := list(islice(numbered, WINDOW)):
            yield from self._window(window, confidence, reasons)

    def _window(self, window: Sequence[Text], confidence: float, reasons: int) -> Iterator[Score]:
        import numpy as np
        import pandas as pd

        from ghosttrack.detection.probes import probability

        spans = [_span(each) for each in window]
        frame = pd.DataFrame(
            {
                "id": [each.id for each in window],
                "text": [each.text for each in window],
                "answer_start": [start for start, _ in spans],
                "answer_end": [end for _, end in spans],
                # What texts of one context begin with is computed once.
                "relation": [each.context for each in window],
                "mode": "given",
                "question": [each.question for each in window],
            }
        )
        scorer = self._scorer
        encoded, offsets = self._encoded(frame)
        found = scorer.read(encoded, reasons)
        ends = np.cumsum([len(each.read) for each in encoded])[:-1]
        probe, surprise = np.split(found.probe, ends), np.split(-found.logprob, ends)
        chances = probability(found.log_odds)
        for place, (text, (start, end)) in enumerate(zip(window, spans, strict=True)):
            tokens = [
                Token(
                    offsets[place][position - 1][0],
                    offsets[place][position - 1][1],
                    _round(one),
                    _round(other),
                )
                for position, one, other in zip(
                    encoded[place].read + encoded[place].shift,
                    surprise[place],
                    probe[place],
                    strict=True,
                )
            ]
            named = [
                Reason(
                    scorer.layers[part.place],
                    part.feature,
                    self._name(scorer.layers[part.place], part.feature),
                    _round(part.log_odds),
                )
                for part in found.parts[place]
            ]
            chance = _round(chances[place])
            verdict = HALLUCINATED if chance >= 0.5 else TRUE
            sure = max(chance, 1 - chance) >= confidence
            yield Score(
                text.id,
                text.text,
                start,
                end,
                chance,
                _round(found.log_odds[place]),
                _round(found.log_odds[place] - probe[place].mean()),
                verdict if sure else ABSTAIN,
                tokens,
                named,
            )

    def _encoded(
        self, frame: "pd.DataFrame"
    ) -> tuple[list["Encoded"], list[list[tuple[int, int]]]]:
        """The texts as tokens, and the character range in its text of each token of a text.

        Args:
            frame: columns of `encode`, question ("" for a text without one), and as relation the context.
        """
        from ghosttrack.activations import example_tokens
        from ghosttrack.inputs import chat
        from ghosttrack.report.explorer.texts import offsets_of

        asked = frame["question"] != ""
        if asked.any() and self.about.get("prompt") != "chat":
            raise UserError(
                f"text {frame['id'][asked].iloc[0]}: question: the detector of {self.run} was not fitted on answers in a "
                "chat template (generation.prompt: chat, generated data sets alone); leave out the question"
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
                read, contexts = chat.answered(part, tokenizer), None
                ranges = chat.ranges_of_answered(part, tokenizer)
            else:
                read, contexts = part, part["relation"].tolist()
                ranges = offsets_of(part["text"].tolist(), tokenizer)
            # Questions share nothing: the score of an answer must not hang on what else is asked.
            share = contexts is not None
            own = example_tokens.encode(
                read, tokenizer, limit, "given texts", contexts, positions, share=share
            )
            encoded |= zip(part.index, own, strict=True)
            offsets |= zip(part.index, ranges, strict=True)
        return [encoded[row] for row in frame.index], [offsets[row] for row in frame.index]

    def _name(self, layer: int, feature: int) -> str:
        """What a feature is called: its most characteristic token, else the one it speaks for."""
        if layer not in self._names:
            from ghosttrack.report.explorer.dictionary import name_of
            from ghosttrack.runtime import tables

            path = self.run / "features" / f"layer_{layer:02d}.parquet"
            table = tables.read_parquet(path, columns=["top_text", "output_text"])
            self._names[layer] = [
                name_of(*lists)
                for lists in zip(table["top_text"], table["output_text"], strict=True)
            ]
        return self._names[layer][feature]


def _round(value: float) -> float:
    return round(float(value), _DIGITS)


def _with_own_ids(texts: Iterable[Text]) -> Iterator[Text]:
    """The texts as they come; an id that an earlier one has is a UserError."""
    first: dict[str, int] = {}
    for number, each in enumerate(texts, start=1):
        if (earlier := first.setdefault(each.id, number)) != number:
            raise UserError(
                f"texts {earlier} and {number} have the same id {shown(each.id)} (a text without one has its number); "
                "give each its own, or none to all"
            )
        yield each


def _as_text(given: str | Text | Mapping[str, Any], number: int) -> Text:
    if isinstance(given, str):
        given = Text(given)
    elif not isinstance(given, Text):
        unknown = set(given) - set(Text._fields)
        if "text" not in given or unknown:
            raise UserError(
                f"text {number}: expected the keys text and perhaps {', '.join(Text._fields[1:])}, found {', '.join(map(str, given))}"
            )
        given = Text(**given)
    given = Text(*(_plain(value, name, number) for name, value in given._asdict().items()))
    if not given.text.strip():
        raise UserError(f"text {number}: expected text, found nothing")
    for name in ("text", "answer", "id", "context", "question"):
        if reason := text_flaw(getattr(given, name)):
            raise UserError(f"text {number}: {name}: {reason}")
    if given.context.strip() and given.question.strip():
        raise UserError(f"text {number}: it has a question and a context; give one of them")
    context = given.context.strip()
    return given._replace(
        id=given.id or str(number),
        context=f"{context}\n" if context else "",
        question=given.question.strip(),
    )


def _plain(value: Any, name: str, number: int) -> str:
    """Text, a number or a boolean as text; "" for None and NaN."""
    found = as_text(value)
    if found is None:
        raise UserError(f"text {number}: {name}: expected text or a number, found {shown(value)}")
    return found


def _span(given: Text) -> tuple[int, int]:
    """Characters of the part that is judged."""
    answer = given.answer.strip()
    if not answer:
        words = list(_WORD.finditer(given.text))
        return words[-1].span() if words else (0, len(given.text.rstrip()))
    start = given.text.rfind(answer)
    if start < 0:
        from ghosttrack.inputs.user_texts import lacks_answer

        raise UserError(f"text {given.id}: {lacks_answer(given.text, answer)}")
    return start, start + len(answer)
