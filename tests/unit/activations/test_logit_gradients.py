"""Gradients of a logit difference against finite differences, and what a comparison compares."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import logit_gradients, packed_texts
from ghosttrack.activations.logit_gradients import Comparisons, Gradients
from ghosttrack.errors import UserError
from ghosttrack.inputs import models

LAYERS = [1, 2, 3]
ARCHITECTURES = ["gpt2", "llama"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


def examples(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    """Texts of a prompt and an answer, with another candidate each; without demonstrations."""
    return pd.DataFrame(
        {
            "id": [f"e{row}" for row in range(len(rows))],
            "text": [f"{prompt} {answer}." for prompt, answer, _ in rows],
            "prompt": [prompt for prompt, _, _ in rows],
            "answer": [answer for _, answer, _ in rows],
            "other": [other for _, _, other in rows],
            "answer_start": [len(prompt) + 1 for prompt, _, _ in rows],
            "answer_end": [len(prompt) + 1 + len(answer) for prompt, answer, _ in rows],
            "relation": "none",
            "mode": "given",
        }
    )


ROWS = [
    ("The capital of France is", "Paris", "Rome"),
    ("The capital of France is", "Rome", "Paris"),
    ("The capital of Italy is", "Rome", "Paris"),
    ("The colour of new snow is", "white", "black"),
    ("A city without another candidate is", "Paris", ""),
]


def gradients(
    model: Any, compared: Comparisons, *, batch: int = 8, packed: int = 64
) -> dict[int, Gradients]:
    """Gradients of each comparison alone."""
    found = {}
    for one in logit_gradients.read(
        model, compared.distinct, LAYERS, "resid_post", batch=batch, packed=packed
    ):
        for index, number in enumerate(one.numbers):
            rows = one.text == index
            found[number] = Gradients(
                [number],
                np.zeros(int(rows.sum()), dtype=np.int64),
                np.array([int(rows.sum()) - 1]),
                one.difference[index : index + 1],
                [x[torch.from_numpy(rows)] for x in one.activation],
                [g[torch.from_numpy(rows)] for g in one.gradient],
                one.direct[index : index + 1],
                one.lens[:, index : index + 1],
            )
    return found


@contextmanager
def added(module: torch.nn.Module, position: int, vector: torch.Tensor) -> Iterator[None]:
    """Add a vector to a module's output at one position."""

    def hook(_module: Any, _arguments: Any, output: Any) -> Any:
        tensor = models.first_tensor(output).clone()
        tensor[0, position] += vector
        return models.with_first_tensor(output, tensor)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_finite_differences_of_the_whole_model(
    tokenizer: Any, architecture: str
) -> None:
    model = small_models.make_model(architecture)
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x")
    found = gradients(model, compared)
    # The norms of llama compute in float32, so smaller steps than below would be rounding.
    model = model.double()
    generator = torch.Generator().manual_seed(0)
    for number, one in enumerate(compared.distinct):
        ids = torch.from_numpy(np.concatenate([one.prompt.prefix, one.prompt.ids]))[None]

        def difference(ids: torch.Tensor = ids, one: Any = one) -> float:
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1]
            return float(logits[one.first] - logits[one.second])

        assert difference() == pytest.approx(float(found[number].difference[0]), abs=1e-4)
        own = ids.shape[1] - len(found[number].text)
        for index, layer in enumerate(LAYERS):
            for row in (0, len(found[number].text) - 1):
                vector = torch.randn(small_models.WIDTH, generator=generator).double() * 3e-3
                with added(models.blocks(model)[layer], own + row, vector):
                    up = difference()
                with added(models.blocks(model)[layer], own + row, -vector):
                    down = difference()
                slope = float(found[number].gradient[index][row].double() @ vector)
                assert slope == pytest.approx((up - down) / 2, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", [{"packed": 0}, {"batch": 1}])
def test_gradients_do_not_depend_on_how_prompts_are_packed(
    tokenizer: Any, architecture: str, way: dict[str, int]
) -> None:
    model = small_models.make_model(architecture)
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x")
    together, alone = gradients(model, compared), gradients(model, compared, **way)
    assert together.keys() == alone.keys() == set(range(len(compared.distinct)))
    for number, one in together.items():
        for ours, theirs in zip(one.gradient, alone[number].gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(one.lens, alone[number].lens, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_comparisons_after_one_prompt_have_gradients_of_their_own(
    tokenizer: Any, architecture: str
) -> None:
    prompt, model = "The capital of France is", small_models.make_model(architecture)
    rows = [(prompt, "Paris", "Rome"), (prompt, "gold", "Rome"), (prompt, "Paris", "gold")]
    compared = logit_gradients.comparisons(examples(rows), tokenizer, 64, "x")
    assert len(compared.distinct) == 3
    together, alone = gradients(model, compared), gradients(model, compared, packed=0)
    for number, one in together.items():
        for ours, theirs in zip(one.gradient, alone[number].gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_shared_prefix_gives_the_gradients_of_the_whole_sequence(tokenizer: Any) -> None:
    model = small_models.make_model("llama")
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x")
    whole = compared.distinct[0].prompt.ids
    demonstrations = np.arange(40, 57)
    ids = np.concatenate([whole[:1], demonstrations, whole[1:]])
    lead = 1 + len(demonstrations)
    split = logit_gradients._prompt(ids, lead)
    assert len(split.prefix) == lead
    alone = split._replace(
        ids=ids, answer=split.answer + lead, read=split.read + lead, prefix=ids[:0]
    )
    found = [
        gradients(model, compared._replace(distinct=[compared.distinct[0]._replace(prompt=each)]))
        for each in (split, alone)
    ]
    for ours, theirs in zip(found[0][0].gradient, found[1][0].gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_caches_of_many_prefixes_do_not_pile_up(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_models.make_model("llama")
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x").distinct[0]
    whole, several = compared.prompt.ids, []
    for number in range(9):
        ids = np.concatenate([whole[:1], np.full(17, 40 + number), whole[1:]])
        several.append(compared._replace(prompt=logit_gradients._prompt(ids, 18)))
    monkeypatch.setattr(packed_texts, "CACHED_TOKENS", 3 * 18)
    held = []
    final = packed_texts.PackedReader.final

    def counted(reader: packed_texts.PackedReader, pack: packed_texts.Pack) -> torch.Tensor:
        held.append(sum(len(key) // 8 for key in reader._caches))
        assert pack.prefix.tobytes() in reader._caches  # before the hooks of the pass
        return final(reader, pack)

    monkeypatch.setattr(packed_texts.PackedReader, "final", counted)
    assert (
        len(list(logit_gradients.read(model, several, LAYERS, "resid_post", batch=1, packed=64)))
        == 9
    )
    assert max(held) == 3 * 18


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lens_and_the_direct_gradient_of_the_last_block_are_those_of_the_output(
    tokenizer: Any, architecture: str
) -> None:
    model = small_models.make_model(architecture)
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x")
    for one in gradients(model, compared).values():
        assert one.lens[-1] == pytest.approx(one.difference, abs=1e-4)
        torch.testing.assert_close(one.direct, one.gradient[-1][one.last])
        assert not bool(one.gradient[-1][:-1].any())  # the last block mixes no tokens afterwards


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_stays_as_it_is(tokenizer: Any, architecture: str) -> None:
    model = small_models.make_model(architecture)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x")
    gradients(model, compared)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_texts_that_exchange_their_answers_share_a_comparison(tokenizer: Any) -> None:
    compared = logit_gradients.comparisons(examples(ROWS), tokenizer, 64, "x")
    assert len(compared.distinct) == 3
    assert compared.number.tolist() == [0, 0, 1, 2, -1]
    assert compared.sign[0] == -compared.sign[1] != 0
    assert compared.sign[4] == 0


def test_a_common_beginning_of_the_answers_is_part_of_the_prompt(tokenizer: Any) -> None:
    rows = [("The atomic number of gold is", "79", "72"), ("The city is", "Ada x", "Ada y")]
    compared = logit_gradients.comparisons(examples(rows), tokenizer, 64, "x")
    for one, end in zip(compared.distinct, ("is 7", "is Ada "), strict=True):
        assert tokenizer.decode(one.prompt.ids).endswith(end)
    assert {tokenizer.decode([token]) for token in compared.distinct[0][1:]} == {"9", "2"}


def test_an_answer_that_only_goes_on_where_the_other_ends_is_not_compared(tokenizer: Any) -> None:
    frame = examples([("The atomic number is", "7", "79")])
    frame["text"] = [text.removesuffix(".") for text in frame["text"]]
    compared = logit_gradients.comparisons(frame, tokenizer, 64, "x")
    assert (compared.distinct, compared.number.tolist()) == ([], [-1])


def test_a_candidate_equal_to_the_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"data set x, id e0: the other candidate answer 'Rome '"):
        logit_gradients.comparisons(examples([("It is", "Rome", "Rome ")]), tokenizer, 64, "x")
