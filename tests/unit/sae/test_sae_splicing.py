"""Spliced losses: known cases, a slow reference, and the rows that are replaced."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pytest
import small_models
import torch
from torch import Tensor, nn

from ghosttrack.activations import extraction, hooks
from ghosttrack.activations.extraction import ModelIdentity, StoreFiles
from ghosttrack.activations.limits import Limits
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.sae import splicing
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import mean_of
from ghosttrack.sae.splicing import Spliced, splice

CONTEXTS, CONTEXT, LAYER, WIDTH = 7, 12, 1, small_models.WIDTH
SITES = ("resid_post", "mlp_out", "attn_out")


class Heldout(NamedTuple):
    """A model, held-out tokens, and the store made of them."""

    model: Any
    tokens: npt.NDArray[np.int32]
    store: ActivationStore


def make(folder: Path, kind: str, site: str, massive: tuple[int, ...] = ()) -> Heldout:
    """`massive` rows are marked in the open store: a small random model has none."""
    model = small_models.make_model(kind)
    tokens = np.random.default_rng(0).integers(1, 400, (CONTEXTS, CONTEXT), dtype=np.int32)
    tokens[:, 0] = 0
    target = StoreFiles(folder / "layer_01.zarr", folder / "layer_01.json")
    wanted = extraction.Extraction(cast("Site", site), 3)
    extraction.extract_contexts(
        model, ModelIdentity("tiny", "weights"), tokens, [LAYER], [target], wanted
    )
    store = ActivationStore.open([target.store], [target.manifest])
    store.excluded = store.excluded.copy()
    store.excluded[list(massive)] = True
    return Heldout(model, tokens, store)


@pytest.fixture(params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def heldout(tmp_path: Path, kind: str) -> Heldout:
    return make(tmp_path, kind, "resid_post")


def exact() -> Sae:
    """Reconstructs everything: x = relu(x) - relu(-x)."""
    signs = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1)
    return Sae(
        signs,
        torch.zeros(2 * WIDTH),
        signs.t().contiguous(),
        torch.zeros(WIDTH),
        torch.zeros(2 * WIDTH),
    )


def rough() -> Sae:
    """Random weights: a reconstruction that is plainly wrong."""
    generator = torch.Generator().manual_seed(3)
    W_enc = torch.randn(WIDTH, 24, generator=generator) / WIDTH**0.5
    b_dec = 0.2 * torch.randn(WIDTH, generator=generator)
    return Sae(
        W_enc, torch.full((24,), 0.1), 0.4 * W_enc.t().contiguous(), b_dec, torch.full((24,), 0.05)
    )


@pytest.mark.parametrize("site", SITES)
def test_an_exact_autoencoder_costs_nothing(tmp_path: Path, kind: str, site: str) -> None:
    found = splice(*_arguments(make(tmp_path, kind, site), exact()))
    assert found.ce_loss_with_sae == found.ce_loss_without_sae
    assert (found.delta_ce, found.kl_div_with_sae) == (0.0, 0.0)
    assert (found.ce_loss_score, found.ce_loss_score_mean_ablation, found.kl_div_score) == (
        1.0,
        1.0,
        1.0,
    )
    assert found.ce_loss_with_ablation != found.ce_loss_without_sae
    assert found.spliced_rows == CONTEXTS * (CONTEXT - 2)  # neither the first position nor the last


def test_decoding_to_zero_or_to_the_mean_is_the_ablation(heldout: Heldout) -> None:
    nothing = exact()
    zero = Sae(
        nothing.W_enc,
        nothing.b_enc,
        torch.zeros(2 * WIDTH, WIDTH),
        torch.zeros(WIDTH),
        nothing.threshold,
    )
    found = splice(*_arguments(heldout, zero))
    assert found.ce_loss_with_sae == found.ce_loss_with_ablation
    assert found.kl_div_with_sae == found.kl_div_with_ablation
    assert (found.ce_loss_score, found.kl_div_score) == (0.0, 0.0)
    mean = Sae(zero.W_enc, zero.b_enc, zero.W_dec, mean_of(heldout.store).float(), zero.threshold)
    found = splice(*_arguments(heldout, mean))
    assert found.ce_loss_with_sae == found.ce_loss_with_mean_ablation
    assert found.ce_loss_score_mean_ablation == 0.0


@pytest.mark.parametrize("site", SITES)
def test_every_number_equals_a_slow_reference(tmp_path: Path, kind: str, site: str) -> None:
    heldout = make(tmp_path, kind, site, massive=(17, 30, 47))
    autoencoder = rough()
    found = splice(*_arguments(heldout, autoencoder))
    expected = slow(heldout, autoencoder, site)
    for name, value in expected.items():
        quotient = "score" in name or "delta" in name  # of small differences
        close = pytest.approx(value, abs=2e-4) if quotient else pytest.approx(value, rel=1e-5)
        assert found._asdict()[name] == close, name
    assert abs(found.delta_ce) > 0.01
    assert found.kl_div_with_sae > 0.01


class Spliced1(nn.Module):
    """A module whose output is replaced row by row, where `kept` says so."""

    def __init__(
        self, inner: nn.Module, kept: npt.NDArray[np.bool_], replacement: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.inner, self.kept, self.replacement = inner, kept, replacement

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = self.inner(*arguments, **options)
        true = output[0] if isinstance(output, tuple) else output
        rows = [
            self.replacement(row) if kept else row
            for row, kept in zip(true[0], self.kept, strict=True)
        ]
        new = torch.stack(rows).unsqueeze(0)
        return (new, *output[1:]) if isinstance(output, tuple) else new


def slow(heldout: Heldout, autoencoder: Sae, site: str) -> dict[str, float]:
    """One context and one row at a time, with the model's loss and a module around the site's."""
    model, tokens, store = heldout
    excluded = store.excluded.reshape(tokens.shape)
    mean = torch.from_numpy(store.read().astype(np.float64)[~store.excluded].mean(0)).float()

    def reconstruct(row: Tensor) -> Tensor:
        active = (row - autoencoder.b_dec) @ autoencoder.W_enc + autoencoder.b_enc
        code = torch.where(active > autoencoder.threshold, active, torch.tensor(0.0))
        return autoencoder.b_dec + sum(
            (value * direction for value, direction in zip(code, autoencoder.W_dec, strict=True)),
            torch.zeros(WIDTH),
        )

    block = models.blocks(model)[LAYER]
    parent, name = {
        "resid_post": (
            model.get_submodule(
                "transformer.h" if hasattr(model, "transformer") else "model.layers"
            ),
            "1",
        ),
        "mlp_out": (block, "mlp"),
        "attn_out": (block, "attn" if hasattr(block, "attn") else "self_attn"),
    }[site]
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda row: row,
        "sae": reconstruct,
        "zero": torch.zeros_like,
        "mean": lambda _row: mean,
    }
    ce, kl, count = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0), 0
    differences: list[float] = []
    inner = parent.get_submodule(name)
    for context, out in zip(tokens.astype(np.int64), excluded, strict=True):
        ids = torch.from_numpy(context).unsqueeze(0)
        labels = ids.clone()
        labels[0, 1:][torch.from_numpy(out[:-1])] = -100  # the target of an excluded row
        counted = ~out[:-1]
        count += int(counted.sum())
        known, rows = torch.zeros(0), torch.from_numpy(counted)
        for kind, replacement in kinds.items():
            setattr(parent, name, Spliced1(inner, ~out, replacement))
            result = model(input_ids=ids, labels=labels)
            setattr(parent, name, inner)
            ce[kind] += float(result.loss) * int(counted.sum())
            logp = result.logits[0, :-1].double().log_softmax(1)
            known = logp if kind == "none" else known
            kl[kind] += float((known.exp() * (known - logp)).sum(1)[rows].sum())
            if kind == "sae":
                cost = known - logp
                differences += [
                    float(cost[at, ids[0, at + 1]]) for at in np.flatnonzero(counted).tolist()
                ]
    ce, kl = ({kind: value / count for kind, value in each.items()} for each in (ce, kl))
    return {
        "ce_loss_without_sae": ce["none"],
        "ce_loss_with_sae": ce["sae"],
        "ce_loss_with_ablation": ce["zero"],
        "ce_loss_with_mean_ablation": ce["mean"],
        "ce_loss_score": (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["none"]),
        "ce_loss_score_mean_ablation": (ce["mean"] - ce["sae"]) / (ce["mean"] - ce["none"]),
        "delta_ce": ce["sae"] - ce["none"],
        "delta_ce_error": float(np.std(differences)) / count**0.5,
        "kl_div_with_sae": kl["sae"],
        "kl_div_with_ablation": kl["zero"],
        "kl_div_score": (kl["zero"] - kl["sae"]) / kl["zero"],
        "spliced_rows": count,
        "ablated_rows": count,
    }


def test_excluded_rows_keep_their_activations(heldout: Heldout) -> None:
    module = models.blocks(heldout.model)[LAYER]
    kept = torch.rand(CONTEXTS * CONTEXT, generator=torch.Generator().manual_seed(0)) < 0.5
    ids = torch.from_numpy(heldout.tokens.astype(np.int64))
    with hooks.captured([module], stop=False) as outputs, torch.no_grad():
        heldout.model(input_ids=ids)
    true = outputs[0].flatten(0, 1)
    # Hooks run in the order of their registration: the second sees what the first made.
    with (
        splicing.replaced(module, kept, lambda x: -2.0 * x),
        hooks.captured([module], stop=False) as outputs,
    ):
        heldout.model(input_ids=ids)
    seen = outputs[0].flatten(0, 1)
    assert torch.equal(seen[~kept], true[~kept])
    assert torch.equal(seen[kept], -2.0 * true[kept])
    assert not module._forward_hooks


@pytest.mark.parametrize("site", SITES)
def test_blocks_below_the_layer_run_once_for_all_passes(
    tmp_path: Path, kind: str, site: str
) -> None:
    heldout = make(tmp_path, kind, site)
    ran: Counter[int] = Counter()
    for place, block in enumerate(models.blocks(heldout.model)):
        block.get_submodule("mlp").register_forward_hook(
            lambda *_, place=place: ran.update([place])
        )
    splice(*_arguments(heldout, rough()))
    searched = (
        0 if site == "resid_post" else 2
    )  # passes in which the site's module was searched for
    passes = ran[0] - searched
    assert passes > 0
    assert {place: (count - searched) // passes for place, count in ran.items()} == {
        0: 1,
        LAYER: 4,
        2: 4,
        3: 4,
    }
    assert not any("forward" in vars(block) for block in models.blocks(heldout.model))


def test_with_every_row_excluded_nothing_is_replaced_and_nothing_counted(heldout: Heldout) -> None:
    kept = np.zeros(CONTEXTS * CONTEXT, dtype=np.bool_)
    kept[CONTEXT - 1] = True  # the last of a context: nothing is predicted there
    heldout.store.excluded = ~kept
    with pytest.raises(UserError, match=r"raise corpus\.context or corpus\.heldout_tokens"):
        splice(*_arguments(heldout, rough()))


def test_batches_change_nothing_but_rounding(heldout: Heldout) -> None:
    one, two = (
        splice(heldout.model, rough(), heldout.store, heldout.tokens, batch, small_models.exact())
        for batch in (1, 4)
    )
    assert one._asdict() == pytest.approx(two._asdict(), rel=1e-5)


@pytest.mark.parametrize(
    ("contexts", "context", "expected"),
    [(100, 512, [0, 33, 66, 99]), (3, 512, [0, 1, 2]), (9, 100_000, [0]), (1, 8, [0])],
)
def test_contexts_are_spread_evenly_over_the_held_out_text(
    contexts: int, context: int, expected: list[int]
) -> None:
    assert splicing.evenly_spread(contexts, context).tolist() == expected


def test_only_the_chosen_contexts_are_read(
    heldout: Heldout, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = splicing.evenly_spread
    monkeypatch.setattr(
        splicing,
        "evenly_spread",
        lambda *given: np.array([0, 4]) if given[0] == CONTEXTS else spread(*given),
    )
    found = splice(*_arguments(heldout, rough()))
    assert found.spliced_rows == 2 * (CONTEXT - 2)
    # The other contexts' tokens are not looked at.
    other = heldout.tokens.copy()
    other[[1, 2, 3, 5, 6]] = 7
    assert splice(heldout.model, rough(), heldout.store, other, 2, small_models.exact()) == found


def test_scores_are_shares_of_what_the_ablation_costs() -> None:
    none, sae, zero, mean = (
        torch.tensor(each, dtype=torch.float64)
        for each in (
            [[1.0, 3.0], [0, 0]],
            [[2.5, 2.5], [0.2, 0.6]],
            [[8.0, 6.0], [5, 3]],
            [[4.0, 4.0], [3, 3]],
        )
    )
    found = splicing.scores(none, sae, zero, mean)
    expected = Spliced(2.0, 2.5, 7.0, 4.0, 0.9, 0.75, 0.5, 1.0 / 2**0.5, 0.4, 4.0, 0.9, 2, 2)
    assert found._asdict() == pytest.approx(expected._asdict())
    assert splicing.scores(none, sae, none, mean).ce_loss_score == 0.0


def _arguments(
    heldout: Heldout, autoencoder: Sae
) -> tuple[Any, Sae, ActivationStore, npt.NDArray[np.int32], int, Limits]:
    return heldout.model, autoencoder, heldout.store, heldout.tokens, 3, small_models.exact()


def test_ablations_of_some_predictions_cost_what_they_add_there() -> None:
    none, sae, zero, mean = (
        torch.tensor(each, dtype=torch.float64)
        for each in (
            [[1.0, 3.0, 5.0], [0, 0, 0]],
            [[2.0, 4.0, 6.0], [1, 1, 1]],
            [[11.0, 13.0], [5, 3]],
            [[5.0, 7.0], [3, 3]],
        )
    )
    found = splicing.scores(none, sae, zero, mean)
    assert (found.spliced_rows, found.ablated_rows) == (3, 2)
    assert found.ce_loss_with_ablation - found.ce_loss_without_sae == pytest.approx(10.0)
    assert (found.ce_loss_score, found.ce_loss_score_mean_ablation) == pytest.approx((0.9, 0.75))
    assert found.kl_div_with_ablation == pytest.approx(4.0)


def test_ablations_are_measured_on_a_few_of_the_contexts(
    heldout: Heldout, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = splice(*_arguments(heldout, rough()))
    monkeypatch.setattr(splicing, "ABLATED_TOKENS", 3 * CONTEXT)
    found = splice(*_arguments(heldout, rough()))
    assert (found.spliced_rows, found.ablated_rows) == (whole.spliced_rows, 3 * (CONTEXT - 2))
    assert found.delta_ce == pytest.approx(whole.delta_ce, abs=1e-6)
    assert found.ce_loss_with_ablation != whole.ce_loss_with_ablation
