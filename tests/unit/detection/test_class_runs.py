"""Detector classes: run in the folds, blind to labels of what they score, refused in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from ghosttrack import statistics
from ghosttrack.detection import class_folds, class_runs, splits
from ghosttrack.detection.protocol import Examples
from ghosttrack.errors import UserError
from tests.conftest import ROOT

WHERE = "detector class mine (Mine of mine.py), data set cities"
BLOCKS = 60


def examples() -> pd.DataFrame:
    """Minimal-pair blocks, whose ids and order give the label away."""
    rows = []
    for block in range(BLOCKS):
        for row, label in enumerate((0, 1, 1, 0)):
            subject, answer = f"s{block}{row // 2}", f"a{block}{row % 2}"
            rows.append(
                {
                    "id": f"cities-{block}-{label}{row}",
                    "group": f"g{block}",
                    "relation": "city",
                    "subject": subject,
                    "question": f"Where is {subject}?",
                    "prompt": f"{subject} is in",
                    "answer": answer,
                    "text": f"{subject} is in {answer}.",
                    "answer_start": len(subject) + 7,
                    "answer_end": len(subject) + 7 + len(answer),
                    "label": label,
                    "mode": "given",
                    "gold": [answer if label == 0 else "other"],
                }
            )
    return pd.DataFrame(rows)


def audited(texts: pd.DataFrame, reason: str = "") -> pd.DataFrame:
    """The audit's rows of the text control, in three folds of whole blocks."""
    fold = texts["group"].map({group: n % 3 for n, group in enumerate(texts["group"].unique())})
    return texts[["mode", "id", "group", "label"]].assign(
        dataset="cities", fold=fold, score="text_only", reason=reason
    )


def outputs(texts: pd.DataFrame, apart: float, seed: int = 0) -> pd.DataFrame:
    noise = np.random.default_rng(seed).standard_normal(len(texts))
    return pd.DataFrame({"id": texts["id"], "logprob": noise - apart * texts["label"]})


def in_this_process(make: Callable[[], Any]) -> class_folds.Runner:
    """Fold by fold without processes, for classes of a test."""
    return lambda texts, parts, folds: (
        class_folds.score_fold(make, texts, parts, fold) for fold in folds
    )


def run(make: Callable[[], Any], apart: float = 0.0, reads: tuple[str, ...] = ()) -> pd.DataFrame:
    return run_by(in_this_process(make), apart, reads)


def run_file(
    folder: Path, text: str, reads: tuple[str, ...] = (), name: str = "mine_of_a_test.py"
) -> pd.DataFrame:
    """Run the class `Mine` of a file as a job does, in a process for each fold."""
    (folder / name).write_text(text)
    source = class_folds.ClassSource(folder / name, "", "Mine")
    return run_by(class_folds.in_processes(source, 1), 0.0, reads)


def run_by(runner: class_folds.Runner, apart: float, reads: tuple[str, ...]) -> pd.DataFrame:
    texts = examples()
    no_files = class_runs.ClassFiles([], [], [], [], [])
    parts = class_runs.read_parts("cities", texts, outputs(texts, apart), no_files, [], reads)
    return class_runs.score_dataset(
        "mine", "cities", runner, WHERE, texts, parts, audited(texts), seed=0
    )


def auroc(table: pd.DataFrame) -> float:
    return statistics.auroc(table["label"].to_numpy(np.int64), table["value"].to_numpy(np.float64))


class Scores:
    """Returns what a test chooses."""

    returned: Any = None

    def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> None:
        assert len(examples) == len(labels)

    def score(self, examples: Examples) -> Any:
        return self.returned(examples) if callable(self.returned) else self.returned


def returning(value: Any) -> Callable[[], Scores]:
    return type("Made", (Scores,), {"returned": staticmethod(value) if callable(value) else value})


def by_parts(shown: Examples) -> pd.Series:
    """Lengths of the texts, computed for each last letter of the answer and put together."""
    texts = shown.texts
    return pd.concat([part["text"].str.len() for _, part in texts.groupby(texts["answer"].str[-1])])


def test_a_class_scores_every_text_out_of_fold_in_the_order_of_the_audit() -> None:
    table = run(returning(lambda shown: -shown.outputs["logprob"].to_numpy()), 2.0, ("outputs",))
    texts = examples()
    assert list(table["id"]) == list(texts["id"])
    assert set(table["score"]) == {"class.mine"}
    np.testing.assert_allclose(table["value"], -outputs(texts, 2.0)["logprob"])
    assert auroc(table) > 0.9


def test_a_class_never_sees_a_group_that_it_scores() -> None:
    groups = dict(zip(examples()["text"], examples()["group"], strict=True))
    seen: list[tuple[set[str], set[str]]] = []

    class Watching(Scores):
        def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> None:
            assert set(labels.tolist()) == {0, 1}
            self.known = {groups[text] for text in examples.texts["text"]}

        def score(self, examples: Examples) -> Any:
            seen.append((self.known, {groups[text] for text in examples.texts["text"]}))
            return np.arange(len(examples), dtype=float)

    run(Watching)
    assert len(seen) == 12  # three folds of blocks with four texts
    for known, scored in seen:
        assert not known & scored
        assert len(known | scored) == BLOCKS


def test_neither_a_column_nor_the_order_of_the_texts_shows_the_label() -> None:
    """A class that knows the form of the data tries the ids, gold answers, and the order."""

    class Cheating(Scores):
        def score(self, examples: Examples) -> Any:
            shown = examples.texts
            assert set(shown) == {*class_runs.TEXTS, "key"} - {"remark", "context"}
            assert not any(str(key).startswith("cities") for key in shown["key"])
            return np.arange(len(examples)) % 4 % 3 != 0

    assert abs(auroc(run(Cheating)) - 0.5) < 0.12


@pytest.mark.parametrize("column", ["key", "text"])
def test_a_class_that_memorises_texts_gains_nothing(column: str) -> None:
    class Memory(Scores):
        def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> None:
            self.known = dict(zip(examples.texts[column], labels.tolist(), strict=True))

        def score(self, examples: Examples) -> Any:
            return [float(self.known.get(key, 0.5)) for key in examples.texts[column]]

    table = run(Memory)
    assert auroc(table) == 0.5
    assert set(table["value"]) == {0.5}


def test_a_class_cannot_change_the_data_of_another_fold() -> None:
    class Vandal(Scores):
        def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> None:
            labels[:] = 1
            texts, outputs = examples.texts, examples.outputs
            texts["text"] = "gone"
            outputs.iloc[:, 0] = 0.0

        def score(self, examples: Examples) -> Any:
            assert "gone" not in set(examples.texts["text"])
            return examples.outputs["logprob"]

    assert run(Vandal, 1.0, ("outputs",))["value"].nunique() == 4 * BLOCKS


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (lambda shown: np.ones(len(shown) - 1), "score returned 19 scores"),
        (lambda shown: np.ones((len(shown), 2)), r"score returned an array of shape \(20, 2\)"),
        (lambda shown: np.full(len(shown), np.nan), "score returned 20 values that are NaN"),
        (lambda shown: ["high"] * len(shown), "score returned <U4, such as"),
        (lambda shown: [None] * len(shown), "score returned object"),
        (None, "score returned nothing"),
        (lambda _: 1 / 0, r"score raised ZeroDivisionError: division by zero \(test_class"),
        (lambda shown: shown.codes, r"score: it uses examples.codes, .* set reads: \[codes\]"),
        (lambda _: [[1.0], [1.0, 2.0]], "score returned no array"),
        (
            lambda shown: np.full(len(shown), np.longdouble("1e400")),
            "20 values that are NaN or inf",
        ),
        (lambda shown: np.ma.masked_less(np.arange(len(shown)), 3), "returned 3 values that are N"),
        (lambda shown: by_parts(shown), r"whose index is not in the order .*\.sort_index\(\)"),
    ],
    ids=[
        *("few", "shape", "nan", "text", "none", "nothing", "raises", "unread", "ragged", "huge"),
        *("masked", "another order"),
    ],
)
def test_a_wrong_answer_of_a_class_stops_with_one_line_that_names_class_and_data_set(
    value: Any, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        run(returning(value))
    message = str(raised.value)
    assert message.startswith(f"{WHERE}, fold 0: ")
    assert "\n" not in message


def test_a_series_with_names_of_several_types_has_the_order_of_the_texts() -> None:
    index = ["one", *range(1, 4)]
    given = pd.Series([1.0, 2.0, 3.0, 4.0], index=index)
    assert class_folds.checked(given, 4, "C").tolist() == [1, 2, 3, 4]


def test_an_error_in_fit_or_in_the_constructor_names_its_line() -> None:
    class Refusing(Scores):
        def __init__(self) -> None:
            raise RuntimeError("no\nweights")

    class Unfit(Scores):
        def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> None:
            raise SystemExit(len(examples) - len(labels) + 1)

    with pytest.raises(UserError, match="the constructor raised RuntimeError: no weights"):
        run(Refusing)
    with pytest.raises(UserError, match="fit raised SystemExit: 1"):
        run(Unfit)


def test_a_method_that_would_not_run_is_refused() -> None:
    class Yielding(Scores):
        def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> Any:
            yield len(examples), labels

    async def later(_: Examples) -> Any:
        return 1.0

    with pytest.raises(UserError, match="fold 0: fit returned a generator or a coroutine"):
        run(Yielding)
    with pytest.raises(UserError, match="fold 0: score returned a generator"):
        run(returning(later))


def test_without_folds_a_class_is_not_run() -> None:
    texts = examples()
    table = class_runs.score_dataset(
        "mine",
        "cities",
        in_this_process(returning(None)),
        WHERE,
        texts,
        {},
        audited(texts, "too few"),
        seed=0,
    )
    assert table["value"].isna().all()
    assert set(table["reason"]) == {"too few"}


def test_no_call_of_score_has_two_texts_of_a_block() -> None:
    """Blocks hold true texts and their hallucinated counterparts: a comparison tells them apart."""
    block = dict(zip(examples()["text"], examples()["group"], strict=True))

    class Centring(Scores):
        def score(self, examples: Examples) -> Any:
            texts, value = examples.texts, -examples.outputs["logprob"]
            assert texts["text"].map(block).is_unique
            return value - value.groupby(texts["subject"]).transform("mean")

    class Plain(Scores):
        def score(self, examples: Examples) -> Any:
            return -examples.outputs["logprob"]

    assert auroc(run(Centring, 1.0, ("outputs",))) == 0.5
    assert auroc(run(Plain, 1.0, ("outputs",))) > 0.7


def test_a_process_gets_the_tokens_of_its_texts_and_may_change_them(tmp_path: Path) -> None:
    """The rows of tokens.parquet are in any order, and a text may have none."""
    texts = examples()
    rows = [(n, token, n + token / 10) for token in range(3) for n in range(1, len(texts))]
    tokens = pd.DataFrame(rows, columns=["example", "token", "logprob"])
    tokens.to_parquet(tmp_path / "tokens.parquet")
    files = class_runs.ClassFiles([], [], [], [], [tmp_path / "tokens.parquet"])
    parts = class_runs.read_parts("cities", texts, outputs(texts, 0.0), files, [], ["tokens"])
    (tmp_path / "tokens_of_a_test.py").write_text(
        "class Mine:\n"
        "    def fit(self, examples, labels):\n"
        "        for table in examples.tokens: table['logprob'] = -1.0\n"
        "    def score(self, examples):\n"
        "        tables = examples.tokens\n"
        "        assert all(list(t['token']) in ([], [0, 1, 2]) for t in tables)\n"
        "        return [t['logprob'].max() if len(t) else -5.0 for t in tables]\n"
    )
    source = class_folds.ClassSource(tmp_path / "tokens_of_a_test.py", "", "Mine")
    table = class_runs.score_dataset(
        "mine",
        "cities",
        class_folds.in_processes(source, 1),
        WHERE,
        texts,
        parts,
        audited(texts),
        seed=0,
    )
    expected = [-5.0, *(n + 0.2 for n in range(1, len(texts)))]
    np.testing.assert_allclose(table["value"], expected)


def test_groups_that_share_a_text_are_one_block() -> None:
    groups = splits.make_cv_groups(["a", "b", "c"], ["one", "one", "two"])
    batches = class_runs.one_per_group(np.array([2, 1, 0]), groups)
    assert [batch.tolist() for batch in batches] == [[2, 1], [0]]


def test_one_answer_to_several_contexts_is_as_many_texts() -> None:
    texts = examples().assign(text="I cannot answer that.", answer="I cannot answer that.")
    made = returning(lambda shown: np.zeros(len(shown)))
    texts["context"] = [f"Passage {number}." for number in range(len(texts))]
    table = class_runs.score_dataset(
        "mine", "cities", in_this_process(made), WHERE, texts, {}, audited(texts), seed=0
    )
    assert np.isfinite(table["value"]).all()
    with pytest.raises(UserError, match="share a text"):
        class_runs.score_dataset(
            "mine",
            "cities",
            in_this_process(made),
            WHERE,
            texts.assign(context="Passage 0."),
            {},
            audited(texts),
            seed=0,
        )


@pytest.mark.parametrize("shared", ["Mine.known", "KNOWN"])
def test_no_label_passes_from_fold_to_fold(tmp_path: Path, shared: str) -> None:
    table = run_file(
        tmp_path,
        "KNOWN = {}\n"
        "class Mine:\n"
        "    known = {}\n"
        "    def fit(self, examples, labels):\n"
        f"        {shared}.update(zip(examples.texts['key'], labels.tolist()))\n"
        "    def score(self, examples):\n"
        f"        return [{shared}.get(key, 0.5) for key in examples.texts['key']]\n",
    )
    assert set(table["value"]) == {0.5}


def test_a_class_that_changes_its_process_still_has_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes the folder, prints, and has workers; relative paths are those of the job."""
    (tmp_path / "neighbour_of_mine.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.chdir(tmp_path)
    text = (
        "import os\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from neighbour_of_mine import double\n"
        "def longer(text): return double(len(text))\n"
        "class Mine:\n"
        "    def fit(self, examples, labels): os.chdir('/'); print('fitted')\n"
        "    def score(self, examples):\n"
        "        with ProcessPoolExecutor(1, get_context('spawn')) as pool:\n"
        "            return list(pool.map(longer, examples.texts['text']))\n"
    )
    (tmp_path / "mine_of_a_test.py").write_text(text)
    source = class_folds.ClassSource(Path("mine_of_a_test.py"), "", "Mine")
    table = run_by(class_folds.in_processes(source, 1), 0.0, ())
    assert Path.cwd() == tmp_path
    assert list(table["value"]) == [2 * len(text) for text in examples()["text"]]


def test_random_numbers_of_a_class_depend_on_the_seed_alone(tmp_path: Path) -> None:
    text = (
        "import random\n"
        "import numpy as np\n"
        "class Mine:\n"
        "    def fit(self, examples, labels): self.shift = random.random()\n"
        "    def score(self, examples): return self.shift + np.random.rand(len(examples))\n"
    )
    first, second = run_file(tmp_path, text), run_file(tmp_path, text)
    np.testing.assert_array_equal(first["value"], second["value"])
    assert first["value"].nunique() == 4 * BLOCKS


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import os; os._exit(3)", "its process ended with exit code 3 before all texts had"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9 ended its process"),
        ("import sys; sys.exit(0)", r"fit raised SystemExit: 0 \(mine_of_a_test.py, line 2"),
        ("examples.codes", r"fit: it uses examples\.codes, .* set reads: \[outputs, codes\]"),
    ],
)
def test_an_end_of_the_process_is_one_line(tmp_path: Path, body: str, problem: str) -> None:
    text = (
        f"class Mine:\n    def fit(self, examples, labels): {body}\n"
        "    def score(self, examples): return None\n"
    )
    with pytest.raises(UserError, match=problem) as raised:
        run_file(tmp_path, text, ("outputs",))
    assert str(raised.value).startswith(f"{WHERE}, fold 0: ")
    assert "\n" not in str(raised.value)


def test_a_class_that_cannot_be_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "half_of_a_test.py").write_text("class Half:\n    def fit(self, e, l): pass\n")
    (tmp_path / "broken_of_a_test.py").write_text("import no_such_module_here\n")
    (tmp_path / "json.py").write_text("class Half: pass\n")
    for stem, name, problem in (
        ("half_of_a_test", "Half", "has no method score; expected"),
        ("half_of_a_test", "Other", "not found; expected a class"),
        (
            "broken_of_a_test",
            "Mine",
            r"the import raised ModuleNotFoundError.*broken_of_a_test.py, line 1",
        ),
        ("json", "Half", r"json\.py has the name of the installed module json: rename the file"),
    ):
        source = class_folds.ClassSource(tmp_path / f"{stem}.py", "", name)
        with pytest.raises(UserError, match=problem) as raised:
            class_folds.load(source, WHERE)
        assert str(raised.value).startswith(WHERE)


def layer_four(
    x: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
) -> dict[int, npt.NDArray[np.float32]]:
    return {4: x[rows]}


TEMPLATE = ROOT / "config" / "detectors" / "mean_difference.py"


def test_the_template_is_the_example_of_the_page_and_finds_a_planted_direction() -> None:
    page = (ROOT / "docs" / "howto" / "judge.md").read_text()
    assert TEMPLATE.read_text() in page
    texts, rng = examples(), np.random.default_rng(0)
    source = class_folds.ClassSource(TEMPLATE, "", "MeanDifference")
    for signal, low, high in ((2.0, 0.9, 1.0), (0.0, 0.3, 0.7)):
        x = rng.standard_normal((len(texts), 8)).astype(np.float32)
        x[:, 3] += signal * texts["label"].to_numpy(np.float32)
        table = class_runs.score_dataset(
            "mine",
            "cities",
            class_folds.in_processes(source, 1),
            WHERE,
            texts,
            {"activations": class_runs.Arrays({4: x})},
            audited(texts),
            seed=0,
        )
        assert low < auroc(table) <= high
