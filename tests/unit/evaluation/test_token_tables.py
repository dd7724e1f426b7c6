"""Claims about token scores on data sets that may support none."""

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import token_detectors as detectors
from ghosttrack.evaluation import token_tables
from ghosttrack.settings import EvaluationSettings

ANSWERS, WORDS = 60, 10


def test_tokens_of_a_positive_control_support_no_claim() -> None:
    rng = np.random.default_rng(0)
    names = [*detectors.CONTROLS, *detectors.OURS]
    label = (rng.random(ANSWERS * WORDS) < 0.3).astype(np.int64)
    scores = pd.DataFrame(
        {
            "dataset": "x",
            "id": np.repeat([f"a{number}" for number in range(ANSWERS)], WORDS),
            "group": np.repeat([f"g{number}" for number in range(ANSWERS)], WORDS),
            "fold": 0,
            "label": label,
            "characters": 3,
            "marked": 3 * label,
            **{
                name: rng.standard_normal(len(label)) + 3 * label * (name in detectors.OURS)
                for name in names
            },
        }
    )
    choices = pd.DataFrame({"score": names, "fold": 0, "threshold": 0.5})
    settings = EvaluationSettings(bootstrap=200)
    usual, control = (
        token_tables.tables(scores, choices, settings, 0, control=control)[1].set_index("claim")
        for control in (False, True)
    )
    claim = "activations add to all token controls together"
    assert usual.loc[claim, "verdict"] == registry.ESTABLISHED
    assert set(control["verdict"]) == {registry.NOT_ESTABLISHED}
    assert control.loc[claim, "reason"] == registry.POSITIVE_CONTROL
    pd.testing.assert_frame_equal(
        usual.drop(columns=["verdict", "reason"]), control.drop(columns=["verdict", "reason"])
    )
