"""Packed sequences: every text once, shared beginnings, limited length, and unpacked long texts."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import small_models
import torch

from ghosttrack.activations import packed_texts
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.packed_texts import TOKENS, PackedReader, packs


def text(prompt: list[int], rest: list[int], prefix: tuple[int, ...] = ()) -> Encoded:
    ids = np.array([*prompt, *rest], dtype=np.int64)
    answer = np.array([len(prompt)])
    return Encoded(ids, answer, answer, np.array(prefix, dtype=np.int64), lead=1)


def some_texts(count: int = 60) -> list[Encoded]:
    generator = np.random.default_rng(0)
    prompts = [
        generator.integers(1, 99, generator.integers(1, 9)).tolist() for _ in range(count // 4)
    ]
    return [
        text(
            prompts[generator.integers(len(prompts))],
            generator.integers(1, 99, generator.integers(1, 5)).tolist(),
            prefix=((7, 8), ())[generator.integers(2)],
        )
        for _ in range(count)
    ]


def similar_texts(count: int = 60) -> list[Encoded]:
    """Texts of two words, many of which begin alike or are equal; their answers begin anywhere."""
    generator = np.random.default_rng(1)
    made = []
    for _ in range(count):
        words = generator.integers(1, 3, generator.integers(2, 7)).tolist()
        cut = int(generator.integers(0, len(words)))
        made.append(text(words[:cut], words[cut:], prefix=((7, 8), ())[generator.integers(2)]))
    return made


def read_whole() -> list[Encoded]:
    """The same, of some of which all tokens are read."""
    return [
        one._replace(read=np.arange(len(one.ids))) if number % 2 else one
        for number, one in enumerate(similar_texts())
    ]


@pytest.mark.parametrize("share_answers", [True, False])
@pytest.mark.parametrize("make", [some_texts, similar_texts, read_whole])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_every_text_is_in_one_pack_and_sees_only_its_own_tokens(
    batch: int, make: Callable[[], list[Encoded]], share_answers: bool
) -> None:
    texts = make()
    found = Counter[int]()
    for pack in packs(texts, range(len(texts)), batch, share_answers=share_answers):
        found.update(pack.numbers)
        assert len(pack.ids) <= max(
            TOKENS * batch, 2 * max(texts[number].answer[0] for number in pack.numbers)
        )
        owners = Counter[int]()
        for number, places in zip(pack.numbers, pack.places, strict=True):
            own = texts[number]
            assert pack.ids[places].tolist() == own.ids.tolist()
            assert pack.position[places].tolist() == list(range(len(own.ids)))
            assert pack.prefix.tolist() == own.prefix.tolist()
            assert pack.visible is not None
            for order, place in enumerate(places):
                assert np.flatnonzero(pack.visible[place]).tolist() == places[: order + 1].tolist()
            owners.update(places.tolist())
        for number, places in zip(pack.numbers, pack.places, strict=True):
            own = texts[number]
            answer = places[int(min(own.answer[0], own.read[0])) :].tolist()
            assert share_answers or all(owners[place] == 1 for place in answer)
    assert found == Counter(range(len(texts)))


def test_a_common_beginning_of_any_length_is_read_once() -> None:
    texts = similar_texts()
    for pack in packs(texts, range(len(texts)), 1000):
        chosen = [texts[number].ids.tolist() for number in pack.numbers]
        beginnings = {tuple(ids[: end + 1]) for ids in chosen for end in range(len(ids))}
        assert len(pack.ids) == len(beginnings)


def test_texts_with_the_same_prompt_share_it_if_they_fit() -> None:
    texts = [text([1, 2, 3], [number]) for number in range(4, 14)]
    (whole,) = packs(texts, range(10), 2)
    assert whole.ids.tolist() == [1, 2, 3, *range(4, 14)]
    parts = list(packs(texts, range(10), 1))
    assert [part.ids.tolist() for part in parts] == [
        [1, 2, 3, *range(4, 9)],
        [1, 2, 3, *range(9, 14)],
    ]


def test_a_long_prompt_is_not_repeated_for_each_of_its_texts() -> None:
    texts = [text(list(range(1, 51)), [number]) for number in range(60)]
    assert [len(pack.ids) for pack in packs(texts, range(60), 1)] == [100, 60]


@pytest.mark.parametrize("make", [some_texts, similar_texts])
@pytest.mark.parametrize("packed", [0, 9, 1000])
def test_packed_texts_are_read_as_if_alone(
    packed: int, make: Callable[[int], list[Encoded]]
) -> None:
    model = small_models.make_model("llama")
    texts = make(12)
    reader = PackedReader(model, packed)
    seen = Counter[int]()
    with torch.inference_mode():
        for pack in reader.packs(texts, range(12), 100):
            assert len(pack.prefix) + len(pack.ids) <= packed or pack.visible is None
            seen.update(pack.numbers)
            final = reader.final(pack)
            for number, places in zip(pack.numbers, pack.places, strict=True):
                own = texts[number]
                ids = torch.from_numpy(np.concatenate([own.prefix, own.ids])[None])
                alone = model.base_model(input_ids=ids).last_hidden_state[0, len(own.prefix) :]
                torch.testing.assert_close(
                    final[torch.from_numpy(places)], alone, atol=1e-4, rtol=1e-3
                )
    assert seen == Counter(range(12))


def test_a_text_that_is_too_long_to_be_packed_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = PackedReader(small_models.make_model("llama"), 20)
    texts = [text([1, 2, 3], [4]), text([1, 2], list(range(3, 30)))]
    for _ in range(2):
        assert [len(pack.numbers) for pack in reader.packs(texts, range(2), 4)] == [1, 1]
    assert [record.getMessage()[:36] for record in caplog.records] == [
        "texts of more than 20 tokens are rea"
    ]


def test_the_statistics_of_a_token_do_not_depend_on_the_rows_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_models.make_model("gpt2")
    final = torch.randn(40, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    place, target = rng.integers(0, 40, 90), rng.integers(0, model.config.vocab_size, 90)
    in_full = rng.random(90) < 0.5
    found = []
    for head, rows in ((256, 256), (256, 32), (13, 4), (256, 39)):
        monkeypatch.setattr(packed_texts, "HEAD_ROWS", head)
        monkeypatch.setattr(packed_texts, "STATISTICS_ROWS", rows)
        with torch.inference_mode():
            reader = packed_texts.PackedReader(model, 64)
            found.append(reader.token_statistics(final, place, target, in_full))
    for other in found[1:]:
        for name, values, expected in zip(other._fields, other, found[0], strict=True):
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, values, expected in zip(found[1]._fields, found[1], found[0], strict=True):
        np.testing.assert_array_equal(values, expected, err_msg=name)
