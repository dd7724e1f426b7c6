"""What a user's detector class looks like, and what it sees of the texts."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from ghosttrack.errors import UserError

Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]
# A part of the data of a data set, for the rows of some texts.
Part = Callable[[Ints], Any]


class Examples:
    """Texts and what the model computed on them, without labels, ids and gold answers.

    The order of the texts is random. The data beside `texts` is read when it is used; the setting
    `reads` of the class names it.
    """

    def __init__(self, texts: pd.DataFrame, parts: Mapping[str, Part], rows: Ints) -> None:
        """`texts`, `parts`: of the whole data set; `rows`: the texts to show, in their order."""
        self._texts, self._parts, self._rows = texts, parts, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def texts(self) -> pd.DataFrame:
        """Text, prompt, question, answer, relation and subject, one row per text.

        Also `answer_start` and `answer_end`, the character range of the answer in the text, and
        `key`, a name of the text that says nothing about it.
        """
        return self._texts.iloc[self._rows].reset_index(drop=True)

    @property
    def outputs(self) -> pd.DataFrame:
        """Features of the model's output, (texts, features), NaN where one was not measured.

        The columns are those of outputs.parquet: log-probabilities, entropies, margins (nats),
        ranks.
        """
        table: pd.DataFrame = self._part("outputs")
        return table

    @property
    def activations(self) -> dict[int, Singles]:
        """Mean activation of the answer's tokens by layer, each (texts, d_model)."""
        arrays: dict[int, Singles] = self._part("activations")
        return arrays

    @property
    def token_activations(self) -> dict[int, list[Singles]]:
        """Activations of the answer's tokens by layer: per text an array (tokens, d_model)."""
        arrays: dict[int, list[Singles]] = self._part("token_activations")
        return arrays

    @property
    def codes(self) -> dict[int, Singles]:
        """Maximum of each SAE feature over the answer's tokens by layer, each (texts, d_sae)."""
        arrays: dict[int, Singles] = self._part("codes")
        return arrays

    @property
    def tracks(self) -> pd.DataFrame:
        """Metrics of the tracks of SAE features, (texts, metrics)."""
        table: pd.DataFrame = self._part("tracks")
        return table

    @property
    def tokens(self) -> list[pd.DataFrame]:
        """The answer's tokens, per text a table with one row per token.

        Columns: `token` (id in the vocabulary), `text`, `logprob`, `entropy`, `margin` (nats) and
        `rank`.
        """
        tables: list[pd.DataFrame] = self._part("tokens")
        return tables

    def _part(self, name: str) -> Any:
        if name not in self._parts:
            listed = ", ".join([*self._parts, name])
            raise UserError(
                f"it uses examples.{name}, which its setting `reads` does not name: set reads: "
                f"[{listed}] in external.classes"
            )
        return self._parts[name](self._rows)


class OutsideDetector(Protocol):
    """A detector class of a user.

    A new object is made without arguments for each outer fold, in a process of its own.
    """

    def fit(self, examples: Examples, labels: Ints) -> object:
        """Learn from the training texts of a fold; `labels`: (texts,), 1 = hallucinated."""

    def score(self, examples: Examples) -> npt.ArrayLike:
        """Score test texts of the fold: (texts,) finite numbers, higher = hallucinated.

        A fold takes several calls. The texts of a call are of different blocks, so that a score
        cannot rest on the comparison of a true text with its hallucinated counterpart.

        The scores of all folds are ranked together, so they should be on one scale, such as
        probabilities or log-odds.
        """
