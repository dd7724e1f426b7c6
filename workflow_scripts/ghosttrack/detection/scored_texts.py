"""A text to score, and the saved detector's result for it."""

from typing import NamedTuple

TRUE, HALLUCINATED, ABSTAIN = "true", "hallucinated", "abstain"
# Both begin with ABSTAIN.
UNSURE = f"{ABSTAIN}: unsure"
UNLIKE = f"{ABSTAIN}: unlike anything it was tested on"


class Text(NamedTuple):
    """A text and its answer, the part that is scored.

    answer: part of the text, at its last occurrence; "": the whole statement. The detector of
    answers was tested on affirmed statements that end with a short answer, and abstains on others.

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
    """An answer token, text[start:end], with surprisal in nats and probe score in log-odds."""

    start: int
    end: int
    surprise: float
    probe: float


class Reason(NamedTuple):
    """An SAE feature active on the answer, and its contribution to the log-odds.

    contexts: held-out texts on which it is most active, as (before, token, after).
    promotes: tokens that it makes more likely.
    """

    layer: int
    feature: int
    name: str
    log_odds: float
    contexts: tuple[tuple[str, str, str], ...] = ()
    promotes: tuple[str, ...] = ()


class ScoredText(NamedTuple):
    """The detector's result for one text.

    start, end: characters of the answer; probability: calibrated probability that the text is
    hallucinated; log_odds: its log-odds; output: contribution of the output features
    (log-probabilities, entropies) to the log-odds. The rest is the mean probe score of the tokens.

    verdict: TRUE, HALLUCINATED, UNSURE or UNLIKE. Of a whole statement, probability, log_odds and
    verdict come from the detector of statements; the tokens' probe scores come from the detector of
    answers, output is the rest of the log-odds, and no reasons are given.

    unexplained: share of the score that no named feature explains, 0 to 1: absolute contributions
    of the output, of the features without a name and of what the SAEs leave out, divided by all.

    calibration: name of the user's calibration that gave probability and verdict; "" for none.
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
