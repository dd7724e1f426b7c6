"""How far the fast ways of reading a model are exact: what `model_check` found, for the jobs that read."""

from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files


class Limits(NamedTuple):
    """Up to where each fast way gave what the plain model gives; beyond, jobs take a slower way.

    together: tokens of a sequence up to which several texts share it; 0: each text is read alone.
    padded: tokens of a prompt and its continuation up to which prompts of different lengths are continued together.
    cached: tokens of a prompt and its continuation up to which keys and values are kept between steps.
    batched: whether inputs of one length may share a batch.
    skipped: whether blocks below a layer may be replaced by what the last of them returned before.
    named: whether final norm and unembedding alone rank the tokens as the model does, so that features can be named by
        the tokens that they promote.
    """

    together: int
    padded: int
    cached: int
    batched: bool
    skipped: bool
    named: bool


def read(path: Path) -> Limits:
    """The limits in the file of a checked model, model_check.json.

    Raises:
        UserError: the file is missing or was not written by the check.
    """
    about: Any = files.read_json(path)
    try:
        limits = Limits(**about["limits"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: it is not the check of a model; delete it and run again, its job remakes it"
        ) from error
    return limits
