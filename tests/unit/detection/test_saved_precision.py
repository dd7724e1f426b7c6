"""The saved detector scores in the precision of the run, and refuses another one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import run_fakes
import small_models
import torch

from ghosttrack import Detector, Text
from ghosttrack.errors import UserError
from ghosttrack.runtime import files

# Most tokens have the same value in another batch; the float32 model differs by .02 for half of them.
TYPICAL, LARGEST = 2e-3, 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_fakes.make(folder, dtype="bfloat16")
    run_fakes.save(folder)
    return folder


def test_a_detector_names_and_uses_the_precision_of_its_run(run: Path) -> None:
    assert files.read_json(run / "detection" / "detector.json")["model_precision"] == "bfloat16"
    detector = Detector.load(run)
    assert detector._scorer._model.dtype == torch.bfloat16
    examples = pd.read_parquet(run / "datasets" / "others" / "examples.parquet")
    found = detector.score([Text(row.text, row.answer) for row in examples.itertuples()])
    tokens = pd.read_parquet(run / "detection" / "token_scores.parquet")
    probe = tokens.loc[tokens["dataset"] == "others", "probe"].to_numpy()
    outputs = pd.read_parquet(run / "examples" / "others" / "tokens.parquet")
    scored = [token for each in found for token in each.tokens]
    gaps = np.abs(
        [
            [token.probe for token in scored] - probe,
            [token.surprise for token in scored] + outputs["logprob"].to_numpy(),
        ]
    )
    assert (np.median(gaps, axis=1) < TYPICAL).all()
    assert (gaps.max(axis=1) < LARGEST).all()


def test_a_run_checked_again_in_another_precision_is_refused(run: Path) -> None:
    small_models.save_check(run, dtype="float32")
    with pytest.raises(
        UserError,
        match=r"detector\.json: .* trained with the model in bfloat16, but .* says float32\. Run",
    ):
        Detector.load(run)
    small_models.save_check(run, dtype="bfloat16")
    Detector.load(run)


def test_a_detector_without_a_precision_was_trained_in_float32(tmp_path: Path) -> None:
    run_fakes.make(tmp_path)
    run_fakes.save(tmp_path)
    path = tmp_path / "detection" / "detector.json"
    about = files.read_json(path)
    assert about.pop("model_precision") == "float32"
    about.pop("about_sha256")
    files.write_json(path, {**about, "about_sha256": files.sha256_json(about)})
    Detector.load(tmp_path)
    small_models.save_check(tmp_path, dtype="bfloat16")
    with pytest.raises(UserError, match="trained with the model in float32"):
        Detector.load(tmp_path)
