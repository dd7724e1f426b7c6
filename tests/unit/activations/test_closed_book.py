"""The closed book of a conflict set is the output on the plain set."""

import numpy as np
import pandas as pd
import pytest
import small_models

from ghosttrack.activations import candidates, closed_book, example_extraction, pmi_baseline
from ghosttrack.activations import example_tokens as tokens
from ghosttrack.activations.extraction import ModelIdentity
from ghosttrack.facts import remarks, statements

IDENTITY = ModelIdentity("a", "b")


@pytest.fixture
def plain() -> pd.DataFrame:
    return statements.build_statements("cities", 0, 32)


def test_the_closed_book_gives_the_outputs_of_the_plain_statements(plain: pd.DataFrame) -> None:
    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    after = remarks.with_remarks(plain, list(remarks.WORDINGS), {})
    found = closed_book.read(
        model,
        IDENTITY,
        tokenizer,
        after,
        prompts=2,
        limit=512,
        batch=4,
        packed=512,
        dataset="x",
        seed=0,
    )
    pairs = pmi_baseline.choose_pairs(plain, 2, 0)
    texts = pd.concat([plain, pairs], ignore_index=True)
    encoded = tokens.encode(texts, tokenizer, 512, "x")
    own = encoded[: len(plain)]
    baseline = pmi_baseline.PmiBaseline(pairs, encoded[len(plain) :], 0, model.config.hidden_size)
    compared = candidates.Candidates(model, own, plain["relation"].tolist())
    outputs = example_extraction.extract_examples(
        model,
        IDENTITY,
        own,
        [],
        [],
        None,
        site="resid_post",
        batch=4,
        packed=512,
        pmi_baseline=baseline,
        candidates=compared,
    ).outputs
    expected = example_extraction.compared_outputs(
        outputs, plain, baseline.means(plain), compared
    ).set_index("id")
    assert len(found) == len(after)
    assert found["pmi_sum"].notna().all()
    for row in found.to_dict("records"):
        same = expected.loc[row["id"].rsplit("-", 2)[0]]
        for column in found.columns.drop("id"):
            np.testing.assert_allclose(row[column], same[column], rtol=1e-4, atol=1e-4)


def test_two_answers_of_one_text_have_their_own_outputs(plain: pd.DataFrame) -> None:
    both = plain.iloc[[0, 0]].reset_index(drop=True)
    text, start = "The largest city is New York City.", len("The largest city is ")
    both = both.assign(id=["a", "b"], text=text, prompt=text[: start - 1], answer_start=start)
    both = both.assign(answer=["New York", "New York City"], relation="file")
    both["answer_end"] = start + both["answer"].map(len)
    both = both.assign(wording="hearsay", remark="", remark_answer="New York")
    found = closed_book.read(
        small_models.make_model("llama"),
        IDENTITY,
        small_models.make_tokenizer(),
        both,
        prompts=0,
        limit=512,
        batch=4,
        packed=512,
        dataset="x",
        seed=0,
    )
    assert found["id"].tolist() == ["a", "b"]
    assert found["logprob_sum"][0] > found["logprob_sum"][1]


def test_texts_after_remarks_have_no_demonstrations_and_are_paired_within_a_wording(
    plain: pd.DataFrame,
) -> None:
    after = remarks.with_remarks(plain, ["hearsay", "belief"], {})
    assert all(tokens.contexts_of(plain))
    assert not any(tokens.contexts_of(after))
    pairs = pmi_baseline.choose_pairs(after, 4, 0)
    assert not any(tokens.contexts_of(pairs))
    assert len(pairs)
    for row in pairs.itertuples():
        starts = "Some say" if row.wording == "hearsay" else "User: "
        assert row.text.startswith(starts)


def test_a_shared_beginning_of_remark_and_prompt_is_read_once(plain: pd.DataFrame) -> None:
    from ghosttrack.activations.packed_texts import packs

    tokenizer = small_models.make_tokenizer()
    after = remarks.with_remarks(plain, list(remarks.WORDINGS), {})
    encoded = tokens.encode(after, tokenizer, 512, "x")
    read = sum(len(pack.ids) for pack in packs(encoded, range(len(encoded)), 400))
    alone = sum(len(one.ids) for one in encoded)
    heads = {one.ids[: one.answer[0]].tobytes(): int(one.answer[0]) for one in encoded}
    rest = sum(len(one.ids) - int(one.answer[0]) for one in encoded)
    assert read <= 1.1 * (sum(heads.values()) + rest)
    assert read < 0.6 * alone
