"""How far each fast way of reading a model is exact, as `model_check` measured it."""

from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files


class Limits(NamedTuple):
    """Where each fast way gives what the reference gives; beyond it, jobs take a slower way.

    packed: longest packed sequence in tokens; 0: each text is read alone.
    padded: longest prompt with its continuation, in tokens, for which prompts of different lengths
        share a padded batch.
    cached: longest prompt with its continuation, in tokens, for which the KV cache is used.
    batched: whether inputs of the same length may share a batch.
    skipped: whether a pass may skip the blocks below a layer and reuse the output of the last.
    named: whether final norm and unembedding alone rank the tokens as the model does, so that
        features can be named by the tokens that they promote.
    """

    packed: int
    padded: int
    cached: int
    batched: bool
    skipped: bool
    named: bool


def read(path: Path) -> Limits:
    """The limits in a model's model_check.json.

    Raises:
        UserError: the file is missing, or was not written by the check of a model.
    """
    about: Any = files.read_json(path)
    try:
        return Limits(**about["limits"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: it does not hold the limits of a checked model; delete it and run again, "
            "then the check is repeated"
        ) from error
