"""Answer tokens: every metric equals that of the same rows alone, without massive activations."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_stores import HEADER, make_rows, open_one, write

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.sae import answers
from ghosttrack.sae import model as sae_model
from ghosttrack.sae.model import Sae
from ghosttrack.sae.quality import tally
from ghosttrack.sae.rows import mean_of
from sae import measure_answers

WIDTH, D_SAE = 8, 24
GENERATOR = torch.Generator().manual_seed(0)
DIRECTIONS = torch.nn.functional.normalize(torch.randn(D_SAE, WIDTH, generator=GENERATOR), dim=1)
SAE = Sae(
    0.4 * DIRECTIONS.T.contiguous(),
    torch.zeros(D_SAE),
    DIRECTIONS,
    torch.zeros(WIDTH),
    torch.full((D_SAE,), 0.3),
)


def store(folder: Path, name: str, rows: int, seed: int, massive: int = 0) -> ActivationStore:
    return open_one(*put(folder, name, rows, seed, massive))


def put(folder: Path, name: str, rows: int, seed: int, massive: int = 0) -> tuple[Path, Path]:
    values = make_rows(rows, seed, WIDTH) + seed
    values[:massive] *= 1000.0
    return write(folder, values, HEADER._replace(context=None), name=name)


def test_a_data_set_is_measured_as_by_itself_and_all_together_as_one(tmp_path: Path) -> None:
    one, other = store(tmp_path, "one", 300, 0, massive=3), store(tmp_path, "other", 500, 1)
    found = {
        row["dataset"]: row for row in answers.measure_answers(SAE, 3, {"one": one, "other": other})
    }
    assert [*found] == ["one", "other", answers.ALL]
    for name, each in (("one", one), ("other", other)):
        expected = tally(SAE, each, mean_of(each))
        reconstruction, sparsity = expected.result()
        assert found[name]["tokens"] == expected.rows
        for key in ("fvu", "fvu_token_median", "explained_variance", "cossim", "l2_ratio"):
            assert found[name][key] == pytest.approx(getattr(reconstruction, key))
        for key in ("l0", "l0_p5", "l0_p50", "l0_p95"):
            assert found[name][key] == getattr(sparsity, key)
    assert (found["one"]["massive_tokens"], found[answers.ALL]["massive_tokens"]) == (3, 3)
    values = np.concatenate([one.read()[3:], other.read()])
    both = open_one(
        *write(tmp_path, values.astype(np.float32), HEADER._replace(context=None), name="both")
    )
    reconstruction, sparsity = tally(SAE, both, mean_of(both)).result()
    assert found[answers.ALL]["tokens"] == 797
    assert found[answers.ALL]["fvu"] == pytest.approx(reconstruction.fvu)
    assert found[answers.ALL]["fvu_token_median"] == pytest.approx(reconstruction.fvu_token_median)
    assert found[answers.ALL]["l0"] == pytest.approx(sparsity.l0)
    # The sets lie apart: about the mean of all, more varies and less of it is unexplained.
    assert found[answers.ALL]["fvu"] < found["other"]["fvu"]


def test_the_script_writes_a_row_for_every_layer_and_data_set(tmp_path: Path) -> None:
    files, weights = [], []
    for layer in (3, 5):
        for seed, name in enumerate(("one", "other")):
            values = make_rows(200, seed, WIDTH)
            files.append(
                write(
                    tmp_path,
                    values,
                    HEADER._replace(context=None, layer=layer),
                    name=f"{name}_{layer}",
                )
            )
        folder = tmp_path / f"layer_{layer:02d}"
        weights.append(folder / sae_model.WEIGHTS_NAME)
        sae_model.save(SAE, weights[-1], folder / sae_model.CFG_NAME, hook_name="x", model_name="m")
    arguments: dict[str, Any] = {
        "stores": [store for store, _ in files],
        "manifests": [manifest for _, manifest in files],
        "weights": weights,
        "answers": tmp_path / "answers.csv",
        "layers": [3, 5],
        "datasets": ["one", "other"],
        "threads": 1,
    }
    measure_answers.main(**arguments)
    table = pd.read_csv(tmp_path / "answers.csv")
    assert table[["layer", "dataset"]].to_numpy().tolist() == [
        [layer, name] for layer in (3, 5) for name in ("one", "other", answers.ALL)
    ]
    assert table["fvu"].between(0, 1).all()
    with pytest.raises(UserError, match="layer is 3"):
        measure_answers.main(**{**arguments, "layers": [5, 3]})


def test_a_store_of_another_width_or_of_massive_rows_alone_is_refused(tmp_path: Path) -> None:
    wide = open_one(
        *write(tmp_path, make_rows(50, 0, 16), HEADER._replace(context=None), name="wide")
    )
    with pytest.raises(
        UserError,
        match="wide: layer 3 has 50 included of 50 answer tokens, with 16 dimensions; "
        "expected at least one, with 8 dimensions",
    ):
        answers.measure_answers(SAE, 3, {"wide": wide})
