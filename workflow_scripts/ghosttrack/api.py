"""The detector on one's own texts: `Detector.load("results/smollm2-135m").score(texts)`.

It needs a finished run: the model, the SAEs and detection/detector.safetensors. Importing this module is cheap; torch and
transformers are imported when a detector is loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ghosttrack.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from ghosttrack.activations.example_tokens import Encoded

# Texts in one forward pass, and texts that are sorted by length together; neither changes a result but for rounding.
BATCH, WINDOW = 16, 256
# Below this probability of its own verdict the detector abstains, unless another one is asked for.
CONFIDENCE = 0.75
TRUE, HALLUCINATED, ABSTAIN = "true", "hallucinated", "abstain"
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# Digits that are the same whatever the batch: rounding noise of the forward pass lies below.
_DIGITS = 4


class Text(NamedTuple):
    """A text with the part of it that is judged.

    answer: as it stands in the text, the last time it does; "": the text's last word. The detector was trained on answers at
    the end of short statements; given a whole text to judge it calls nearly everything hallucinated.
    """

    text: str
    answer: str = ""
    id: str = ""


class Token(NamedTuple):
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


class Score(NamedTuple):
    """What the detector says of one text; probability = that it is hallucinated, calibrated on strict data sets."""

    id: str
    text: str
    start: int
    end: int
    probability: float
    log_odds: float
    verdict: str
    tokens: list[Token]
    reasons: list[Reason]


class Detector:
    """A saved detector with its model and SAEs, ready to score."""

    def __init__(self, run: Path) -> None:
        import torch

        from ghosttrack import sae
        from ghosttrack.activations import extraction
        from ghosttrack.detection import saved
        from ghosttrack.inputs import models

        self.run = Path(run)
        if not self.run.is_dir():
            raise UserError(f"{self.run} is not there: give the folder of a finished run, such as results/smollm2-135m")
        found = saved.load(self.run / "detection")
        saved.require_same(found, self.run)
        self.about, self._weights = found.about, found.weights
        self.layers = found.layers
        device = extraction.best_device()
        self._tokenizer = models.load_tokenizer(self.run / "model")
        self._limit = models.max_context(self.run / "model" / "config.json")
        self._model = models.load_model(self.run / "model", device)
        self._saes = [sae.load(self.run / "saes" / f"layer_{layer:02d}") for layer in self.layers]
        self._tensors = {
            name: torch.from_numpy(getattr(self._weights, name)).to(device)
            for name in ("raw", "code", "effect", "massive")
        }
        self._names: dict[int, list[str]] = {}

    @classmethod
    def load(cls, run: str | Path) -> Self:
        """Load the detector of a finished run, such as results/smollm2-135m.

        Raises:
            UserError: there is none, or model or SAEs are not those that it was made with.
        """
        return cls(Path(run))

    def score(
        self, texts: Iterable[str | Text | Mapping[str, Any]], *, confidence: float = CONFIDENCE, reasons: int = 5
    ) -> list[Score]:
        """Score texts: strings, `Text`s, or mappings with `text` and perhaps `answer` and `id`. Arguments as `stream`."""
        return list(self.stream(texts, confidence=confidence, reasons=reasons))

    def stream(
        self, texts: Iterable[str | Text | Mapping[str, Any]], *, confidence: float = CONFIDENCE, reasons: int = 5
    ) -> Iterator[Score]:
        """Scores in the order of the texts, some hundred at a time, so that any number of texts needs little memory.

        Args:
            confidence: below this probability of its verdict the detector abstains, .5 to 1.
            reasons: how many features to name.
        Raises:
            UserError: naming the text that is empty, too long, or does not hold its answer.
        """
        if not 0.5 <= confidence <= 1:
            raise UserError(f"confidence: {confidence} must be from 0.5 (never abstain) to 1")
        numbered = enumerate(texts, start=1)
        while window := [_as_text(given, number) for number, given in islice(numbered, WINDOW)]:
            yield from self._window(window, confidence, reasons)

    def _window(self, window: Sequence[Text], confidence: float, reasons: int) -> Iterator[Score]:
        import numpy as np
        import pandas as pd

        from ghosttrack.activations import example_tokens
        from ghosttrack.detection import representations, saved
        from ghosttrack.detection.probes import probability
        from ghosttrack.report.explorer import texts as parts

        spans = [_span(each) for each in window]
        frame = pd.DataFrame({
            "id": [each.id for each in window], "text": [each.text for each in window],
            "answer_start": [start for start, _ in spans], "answer_end": [end for _, end in spans],
        })  # fmt: skip
        encoded = example_tokens.encode(frame, self._tokenizer, self._limit, "given texts")
        offsets = parts.offsets_of([each.text for each in window], self._tokenizer)
        found = self._read(encoded, reasons)
        features = representations.output_features(found.outputs.assign(id=frame["id"]))
        outputs = features.iloc[:, saved.features_named(list(features.columns))].to_numpy(dtype=np.float64)
        counts = [len(each.answer) for each in encoded]
        probe = np.split(found.probe, np.cumsum(counts)[:-1])
        surprise = np.split(-found.logprob, np.cumsum(counts)[:-1])
        log_odds = self._weights.intercept[0] + outputs @ self._weights.outputs + [part.mean() for part in probe]
        chances = probability(log_odds)
        for place, (text, (start, end)) in enumerate(zip(window, spans, strict=True)):
            where = [offsets[place][position - 1] for position in encoded[place].answer]
            tokens = [
                Token(*at, round(float(one), _DIGITS), round(float(other), _DIGITS))
                for at, one, other in zip(where, surprise[place], probe[place], strict=True)
            ]
            chance = round(float(chances[place]), _DIGITS)
            verdict = HALLUCINATED if chance >= 0.5 else TRUE
            yield Score(
                text.id, text.text, start, end, chance, round(float(log_odds[place]), _DIGITS),
                verdict if max(chance, 1 - chance) >= confidence else ABSTAIN, tokens, found.reasons[place],
            )  # fmt: skip

    def _read(self, encoded: Sequence["Encoded"], reasons: int) -> "_Reading":
        """Run the model over some texts, short ones together, and take from it all that the score needs."""
        import numpy as np
        import torch

        from ghosttrack.activations import example_extraction as reading
        from ghosttrack.activations import extraction

        starts = np.concatenate([[0], np.cumsum([len(one.answer) for one in encoded])])
        rows = int(starts[-1])
        scores = reading.TokenScores(*(np.empty(rows, dtype=kind) for kind in ("f4", "f4", "f4", "i4")))
        text_logprob = np.empty(len(encoded))
        probe = np.full(rows, float(self._weights.probe_intercept[0]))
        named: list[list[Reason]] = [[] for _ in encoded]
        by_length = np.argsort([len(one.ids) for one in encoded], kind="stable")
        modules = extraction.site_modules(self._model, self.layers, self.about["site"])
        with ExitStack() as stack, torch.inference_mode():
            outputs = stack.enter_context(extraction.captured(modules, stop=False))
            for first in range(0, len(encoded), BATCH):
                chosen = by_length[first : first + BATCH]
                part = [encoded[number] for number in chosen]
                own = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in chosen])
                final = reading.forward(self._model, part)
                text_logprob[chosen] = reading.score_tokens(self._model, part, final, own, scores)
                example, position = reading.answer_index(part)
                best: list[list[Reason]] = [[] for _ in part]
                for place in range(len(self.layers)):
                    x = outputs[place][example, position]  # (rows, d_model)
                    probe[own] += self._layer(place, x, example, best, reasons)
                for number, found in zip(chosen, best, strict=True):
                    named[number] = sorted(found, key=lambda reason: -abs(reason.log_odds))[:reasons]
        return _Reading(reading.output_table(encoded, scores, starts, text_logprob), scores.logprob, probe, named)

    def _layer(
        self, place: int, x: "torch.Tensor", example: "torch.Tensor", best: list[list[Reason]], reasons: int
    ) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Each row's part of its probe score from one layer, (rows,); adds the layer's strongest features to `best`."""
        import torch

        from ghosttrack.activations.layout import HALF_MAX

        own = {name: values[place] for name, values in self._tensors.items()}
        kept = torch.linalg.vector_norm(x.float(), dim=1) <= own["massive"]
        # What a store keeps is half precision, so this is what the probes were fitted on.
        x = x.float().clamp(-HALF_MAX, HALF_MAX).half().float()
        z = self._saes[place].encode(x.cpu()).to(x.device)  # (rows, d_sae)
        number = example.to(x.device)
        tokens = torch.zeros(len(best), device=x.device).index_add_(
            0, number, torch.ones_like(kept, dtype=torch.float32)
        )
        left = torch.zeros_like(tokens).index_add_(0, number, kept.float())
        kept = kept | (left[number] == 0)  # a text of attention sinks alone
        left = torch.where(left == 0, tokens, left)
        share = kept.float() / left[number]  # of the mean over the answer
        if reasons:
            z_mean = torch.zeros(len(best), z.shape[1], device=x.device).index_add_(0, number, z * share[:, None])
            added = z_mean * own["effect"]
            strongest = added.abs().topk(min(reasons, added.shape[1]), dim=1).indices
            for text, features in enumerate(strongest.tolist()):
                best[text] += [
                    Reason(self.layers[place], feature, self._name(place, feature), round(float(added[text, feature]), _DIGITS))
                    for feature in features if added[text, feature] != 0
                ]  # fmt: skip
        score = (x @ own["raw"] + z @ own["code"]) * share * tokens[number]
        return score.double().cpu().numpy()

    def _name(self, place: int, feature: int) -> str:
        """What a feature is called: its most characteristic token, else the one it speaks for."""
        if place not in self._names:
            from ghosttrack import frames
            from ghosttrack.report.explorer.dictionary import name_of

            path = self.run / "features" / f"layer_{self.layers[place]:02d}.parquet"
            table = frames.read_parquet(path, columns=["top_text", "output_text"])
            self._names[place] = [
                name_of(*lists) for lists in zip(table["top_text"], table["output_text"], strict=True)
            ]
        return self._names[place][feature]


class _Reading(NamedTuple):
    """outputs: one row a text; logprob, probe: one entry a judged token; reasons: by text."""

    outputs: "pd.DataFrame"
    logprob: "np.ndarray[Any, np.dtype[np.float32]]"
    probe: "np.ndarray[Any, np.dtype[np.float64]]"
    reasons: list[list[Reason]]


def _as_text(given: str | Text | Mapping[str, Any], number: int) -> Text:
    if isinstance(given, str):
        given = Text(given)
    elif not isinstance(given, Text):
        unknown = set(given) - set(Text._fields)
        if "text" not in given or unknown:
            raise UserError(
                f"text {number}: expected the keys text and perhaps answer and id, found {', '.join(map(str, given))}"
            )
        given = Text(**{key: str(value or "") for key, value in given.items()})
    if not given.text.strip():
        raise UserError(f"text {number}: expected text, found nothing")
    return given._replace(id=given.id or str(number))


def _span(given: Text) -> tuple[int, int]:
    """Characters of the part that is judged."""
    answer = given.answer.strip()
    if not answer:
        words = list(_WORD.finditer(given.text))
        return words[-1].span() if words else (0, len(given.text.rstrip()))
    start = given.text.rfind(answer)
    if start < 0:
        raise UserError(f"text {given.id}: it does not hold its answer {answer!r}")
    return start, start + len(answer)
