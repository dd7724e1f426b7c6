"""A text to score, and the saved detector's result for it."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

TRUE, HALLUCINATED, ABSTAIN = "true", "hallucinated", "abstain"
# Both begin with ABSTAIN.
UNSURE = f"{ABSTAIN}: unsure"
UNLIKE = f"{ABSTAIN}: unlike anything it was tested on"


class Text(NamedTuple):
    """A text and its answer, the part that is scored.

    answer: part of the text, at its last occurrence; "": every sentence is judged as a whole
    statement, without its full stop. The detector of answers was tested on affirmed statements that
    end with a short answer, and abstains on others.

    context: text that the model reads first and that is not scored. A few true statements of the
    same kind, one per line, work best: they are few-shot demonstrations. The detector of whole
    statements does not read it.

    question: the user's message in a chat template; the text is the assistant's answer. It needs a
    detector fitted on answers in a chat template (generation.prompt: chat). A context comes before
    the question in the same message.
    """

    text: str
    answer: str = ""
    id: str = ""
    context: str = ""
    question: str = ""


class ScoredToken(NamedTuple):
    """A scored token, text[start:end], with surprisal in nats and the score of its activations.

    probe: in log-odds; of a whole statement, in standard deviations of the training statements'
    scores. Above 0: hallucinated.
    """

    start: int
    end: int
    surprise: float
    probe: float


class Reason(NamedTuple):
    """An SAE feature active on the scored tokens, and its contribution to the log-odds.

    contexts: held-out texts on which it is most active, as (before, token, after).
    promotes: tokens that it makes more likely.
    """

    layer: int
    feature: int
    name: str
    log_odds: float
    contexts: tuple[tuple[str, str, str], ...] = ()
    promotes: tuple[str, ...] = ()


class ScoredSentence(NamedTuple):
    """The detector's result for one scored span, text[start:end]: a sentence or the answer.

    window_start, window_end: characters of the text that the model read for it. The detector of
    statements reads every sentence behind a few true statements. For answers, long texts are read in
    windows. A long sentence is scored in several spans.
    probability: calibrated probability that the span is hallucinated; log_odds: its log-odds.
    output: contribution of the output features (log-probabilities, entropies) to the log-odds. The
    rest is the mean probe score of its tokens.

    verdict: TRUE, HALLUCINATED, UNSURE or UNLIKE. The log-odds of a whole statement have no such
    parts: output is the score of the output features in standard deviations, and no reasons are
    given.

    unexplained: share of the score that no named feature explains, 0 to 1: absolute contributions
    of the output, of the features without a name and of what the SAEs leave out, divided by all.
    """

    start: int
    end: int
    window_start: int
    window_end: int
    probability: float
    log_odds: float
    output: float
    verdict: str
    reasons: list[Reason]
    unexplained: float = 1.0


class ScoredText(NamedTuple):
    """The detector's result for one text.

    start, end: characters from the first scored span to the last; sentences: the result of every
    span; tokens: their tokens. Probability, log-odds, output, verdict, reasons and unexplained share
    are those of the decisive sentence (see `decisive`).

    calibration: name of the user's calibration that gave probability and verdict; "" for none.
    whole: whether the detector of whole statements decided.
    """

    id: str
    text: str
    start: int
    end: int
    probability: float
    log_odds: float
    output: float
    verdict: str
    tokens: list[ScoredToken]
    reasons: list[Reason]
    unexplained: float = 1.0
    calibration: str = ""
    sentences: tuple[ScoredSentence, ...] = ()
    whole: bool = False

    @property
    def words(self) -> list[ScoredToken]:
        """Scored words: their surprisal is the sum, and their probe score the mean of their tokens.

        Tokens outside of words, such as full stops, stand alone. No word cuts a grapheme.
        """
        from ghosttrack.inputs.segmentation import words

        return _by_word(self.tokens, self.text, words(self.text))


def decisive(sentences: Sequence[ScoredSentence]) -> ScoredSentence:
    """The sentence that decides about a text: one hallucinated sentence makes the text hallucinated.

    It is the most probably hallucinated one among those with the verdict hallucinated; else among
    those without a verdict, because the text is true only if all sentences are; else among all.
    """
    for group in (
        [each for each in sentences if each.verdict == HALLUCINATED],
        [each for each in sentences if each.verdict != TRUE],
    ):
        if group:
            return max(group, key=lambda each: each.probability)
    return max(sentences, key=lambda each: each.probability)


def _by_word(
    tokens: Sequence[ScoredToken], text: str, words: Sequence[tuple[int, int]]
) -> list[ScoredToken]:
    starts = [start for start, _ in words]
    grouped: dict[tuple[int, int], list[ScoredToken]] = {}
    for token in tokens:
        piece = text[token.start : token.end]
        first = token.start + len(piece) - len(piece.lstrip())
        at = bisect_right(starts, first) - 1
        inside = at >= 0 and first < words[at][1]
        span = words[at] if inside else (first, max(first, token.start + len(piece.rstrip())))
        grouped.setdefault(span, []).append(token)
    return [
        ScoredToken(
            start,
            end,
            round(sum(token.surprise for token in parts), 4),
            round(sum(token.probe for token in parts) / len(parts), 4),
        )
        for (start, end), parts in grouped.items()
    ]
