"""A text to be judged, and what the saved detector says of it."""

from typing import NamedTuple

TRUE, HALLUCINATED, ABSTAIN = "true", "hallucinated", "abstain"


class Text(NamedTuple):
    """A text with the part of it that is judged.

    answer: as it stands in the text, the last time it does; "": the text's last word. The detector was trained on answers at
    the end of short statements; given a whole text to judge it calls nearly everything hallucinated.
    context: what the model reads before the text and nobody judges, best a few true statements of the same kind, one a line, as
    in training; they show what kind of answer is due.
    question: what the model was asked, where the detector was fitted on answers in a chat template (generation.prompt: chat).
    The model reads it as a message of the user, and the text as the assistant's answer. It takes the place of `context`.
    """

    text: str
    answer: str = ""
    id: str = ""
    context: str = ""
    question: str = ""


class ScoredToken(NamedTuple):
    """A judged token, text[start:end]: minus its log-probability in nats, and its probe score in log-odds."""

    start: int
    end: int
    surprise: float
    probe: float


class Reason(NamedTuple):
    """A feature that was active on the answer, and by how much the log-odds would fall without it (its part of the sum)."""

    layer: int
    feature: int
    name: str
    log_odds: float


class ScoredText(NamedTuple):
    """What the detector says of one text; probability = that it is hallucinated, calibrated on strict data sets.

    output: the part of the log-odds that the model's own output gives (log-probabilities, entropies). The rest is the mean of
    the tokens' probe scores: what activations add.
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
