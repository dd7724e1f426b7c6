"""Detector classes: run in the folds, blind to labels of what they score, refused in one line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from ghosttrack import statistics
from ghosttrack.detection import class_runs
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


def run(make: Callable[[], Any], apart: float = 0.0, reads: tuple[str, ...] = ()) -> pd.DataFrame:
    texts = examples()
    no_files = class_runs.ClassFiles([], [], [], [], [])
    parts = class_runs.read_parts("cities", texts, outputs(texts, apart), no_files, [], reads)
    return class_runs.score_dataset(
        "mine", "cities", make, WHERE, texts, parts, audited(texts), seed=0
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
    assert len(seen) == 3
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
        (lambda shown: np.ones(len(shown) - 1), "score returned 79 scores"),
        (lambda shown: np.ones((len(shown), 2)), r"score returned an array of shape \(80, 2\)"),
        (lambda shown: np.full(len(shown), np.nan), "score returned 80 values that are NaN"),
        (lambda shown: ["high"] * len(shown), "score returned <U4, such as"),
        (lambda shown: [None] * len(shown), "score returned object"),
        (None, "score returned nothing"),
        (lambda _: 1 / 0, r"score raised ZeroDivisionError: division by zero \(test_class"),
        (lambda shown: shown.codes, r"score: it uses examples.codes, .* set reads: \[codes\]"),
        (lambda _: [[1.0], [1.0, 2.0]], "score returned no array"),
    ],
    ids=["few", "shape", "nan", "text", "none", "nothing", "raises", "unread", "ragged"],
)
def test_a_wrong_answer_of_a_class_stops_with_one_line_that_names_class_and_data_set(
    value: Any, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        run(returning(value))
    message = str(raised.value)
    assert message.startswith(f"{WHERE}, fold 0: ")
    assert "\n" not in message


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


def test_without_folds_a_class_is_not_run() -> None:
    texts = examples()
    table = class_runs.score_dataset(
        "mine", "cities", returning(None), WHERE, texts, {}, audited(texts, "too few"), seed=0
    )
    assert table["value"].isna().all()
    assert set(table["reason"]) == {"too few"}


def test_a_class_is_loaded_from_a_file_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("OFFSET = 2.0\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from neighbour_of_mine import OFFSET\n"
        "class Mine:\n"
        "    def fit(self, examples, labels): self.rate = labels.mean()\n"
        "    def score(self, examples): return [OFFSET + n for n in range(len(examples))]\n"
        "class Half:\n"
        "    def fit(self, examples, labels): pass\n"
    )
    table = run(class_runs.load(path, "", "Mine", WHERE))
    assert table["value"].min() == 2.0
    with pytest.raises(UserError, match=f"{WHERE[:14]}.*has no method score"):
        class_runs.load(path, "", "Half", WHERE)
    with pytest.raises(UserError, match="not found; expected a class"):
        class_runs.load(path, "", "Other", WHERE)
    path.write_text("import no_such_module_here\n")
    with pytest.raises(UserError, match=r"the import raised ModuleNotFoundError.*mine.py, line 1"):
        class_runs.load(path, "", "Mine", WHERE)


def layer_four(
    x: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
) -> dict[int, npt.NDArray[np.float32]]:
    return {4: x[rows]}


TEMPLATE = ROOT / "config" / "detectors" / "mean_difference.py"


def test_the_template_is_the_example_of_the_page_and_finds_a_planted_direction() -> None:
    page = (ROOT / "docs" / "howto" / "judge.md").read_text()
    assert TEMPLATE.read_text() in page
    texts, rng = examples(), np.random.default_rng(0)
    for signal, low, high in ((2.0, 0.9, 1.0), (0.0, 0.3, 0.7)):
        x = rng.standard_normal((len(texts), 8)).astype(np.float32)
        x[:, 3] += signal * texts["label"].to_numpy(np.float32)
        table = class_runs.score_dataset(
            "mine",
            "cities",
            class_runs.load(TEMPLATE, "", "MeanDifference", WHERE),
            WHERE,
            texts,
            {"activations": partial(layer_four, x)},
            audited(texts),
            seed=0,
        )
        assert low < auroc(table) <= high
