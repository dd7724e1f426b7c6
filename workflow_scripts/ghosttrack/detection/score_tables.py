"""Scores that were made elsewhere: read a table, and join it to the texts of a run by id."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import detectors
from ghosttrack.errors import UserError
from ghosttrack.inputs.cells import (
    Row,
    all_columns,
    as_text,
    require_columns,
    require_exact_names,
    shown,
)
from ghosttrack.inputs.rows import read_rows
from ghosttrack.settings import names

Tokens = Literal["mean", "max"]
# Number of examples that an error names.
_NAMED = 3


class Joined(NamedTuple):
    """Scores of a table, joined to the texts of a run.

    scores: long table, in the order of the run's texts; datasets: those that the table covers.
    """

    scores: pd.DataFrame
    datasets: list[str]


def read(
    path: Path, entry: str, *, lower: bool = False, tokens: Tokens = "mean", key: str = "path"
) -> pd.DataFrame:
    """Read a table of scores.

    Args:
        entry: name of the table.
        lower: whether a low score means hallucinated; the scores are then negated.
        tokens: how the scores of a text's tokens become one, in a table with the column `token`.
        key: settings key or argument of the path, for errors.
    Returns:
        One row per text: columns score (table.ENTRY, or table.ENTRY.NAME with the column `name`),
        dataset ("" without the column), id and value (higher = hallucinated).
    Raises:
        UserError: a column is missing, a score is no finite number, or an id occurs twice; with the
            number of such rows and examples.
    """
    rows = read_rows(path, key)
    where = f"{key}: {path}"
    columns = all_columns(rows, ("id", "score", "dataset", "name", "token"))
    require_columns(columns, [("", "id"), ("", "score")], where)
    require_exact_names(columns, ("dataset", "name", "token"), where)
    optional = [name for name in ("dataset", "name", "token") if name in columns]
    for name in ("id", *optional):
        _require_text(rows, name, where)
    table = pd.DataFrame(
        {
            "row": range(1, len(rows) + 1),
            **{name: [as_text(row.get(name)) or "" for row in rows] for name in ("id", *optional)},
            "value": _numbers(rows, where),
        }
    )
    for name in ("id", *optional):
        _refuse(table[table[name] == ""], f"{where}: no {name} in", "fill in the cells")
    if "name" in table:
        _check_names(table["name"], where)
    table["score"] = f"{registry.TABLE}{entry}" + ("." + table["name"] if "name" in table else "")
    table["dataset"] = table.get("dataset", "")
    if lower:
        table["value"] = -table["value"]
    unique = ["score", "dataset", "id", *(["token"] if "token" in table else [])]
    _refuse(
        table[table.duplicated(unique)],
        f"{where}: {' and '.join(unique[2:])} as in an earlier row"
        f"{' of the same name' if 'name' in table else ''} in",
        "number the tokens of each text in the column token, or keep one row each"
        if "token" in table
        else "keep one row each, or add the column token or name",
    )
    if "token" in table:
        grouped = table.groupby(unique[:3], sort=False)["value"]
        with np.errstate(over="ignore"):
            table = (grouped.max() if tokens == "max" else grouped.mean()).reset_index()
        _refuse(
            table[~np.isfinite(table["value"])].assign(row=""),
            f"{where}: the mean over the tokens is no finite number for",
            "divide all scores by a constant",
            what="texts",
        )
    return table[["score", "dataset", "id", "value"]]


def _require_text(rows: Sequence[Row], name: str, where: str) -> None:
    """Refuse cells that are neither text nor number, such as bytes and lists."""
    wrong = [
        (number, row.get(name))
        for number, row in enumerate(rows, start=1)
        if as_text(row.get(name)) is None
    ]
    if wrong:
        named = ", ".join(f"row {number}: {shown(value)}" for number, value in wrong[:_NAMED])
        kinds = ", ".join(dict.fromkeys(type(value).__name__ for _, value in wrong))
        raise UserError(
            f"{where}: column {name}: {len(wrong)} of {len(rows)} cells are {kinds} ({named}); "
            "expected text or whole numbers: convert the column"
        )


def _numbers(rows: Sequence[Row], where: str) -> list[float]:
    """The column `score`; refuses text, empty cells, NaN and infinity."""
    values, wrong = list[float](), list[tuple[int, Any]]()
    for number, row in enumerate(rows, start=1):
        value = _number(row.get("score"))
        values.append(value)
        if not math.isfinite(value):
            wrong.append((number, row.get("score")))
    if wrong:
        named = ", ".join(f"row {number}: {shown(value)}" for number, value in wrong[:_NAMED])
        raise UserError(
            f"{where}: {len(wrong)} of {len(rows)} scores are no finite number ({named}); expected "
            "a number for every text: correct these rows, or leave out a whole data set"
        )
    return values


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _check_names(found: "pd.Series[str]", where: str) -> None:
    for name in dict.fromkeys(found):
        try:
            names.score(name)
        except names.InvalidNameError as error:
            raise UserError(f"{where}: column name: {error}") from None


def _refuse(rows: pd.DataFrame, problem: str, remedy: str, *, what: str = "rows") -> None:
    """Stop with the number of `rows` and examples; `row` is "" for texts of several rows."""
    if len(rows):
        named = ", ".join(
            f"row {row['row']}" + (f" (id {shown(row['id'])})" if row["id"] else "")
            if row["row"]
            else f"id {shown(row['id'])}"
            for row in rows.head(_NAMED).to_dict("records")
        )
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        raise UserError(f"{problem} {len(rows)} {what}: {named}{more}; {remedy}")


def join(
    table: pd.DataFrame,
    texts: pd.DataFrame,
    known: Mapping[str, Iterable[str]],
    where: str,
    *,
    subset: bool = False,
) -> Joined:
    """Join scores to the texts of a run by data set and id.

    Args:
        table: from `read`.
        texts: the scored texts of the run, columns dataset, mode, id, group, label and fold.
        known: ids of all texts by data set; a run may score a part of them.
        where: file of the table, for errors.
        subset: whether a table may cover a part of the texts of a data set.
    Raises:
        UserError: ids are missing or unknown, or all scores of a data set are equal; with counts
            and examples.
    """
    ids = {name: {str(identity) for identity in given} for name, given in known.items()}
    table = table.assign(dataset=_datasets(table, ids, where))
    unknown = [
        f"{dataset}/{identity}" if dataset else identity
        for dataset, identity in zip(table["dataset"], table["id"], strict=True)
        if dataset not in ids or identity not in ids[dataset]
    ]
    parts, missing = list[pd.DataFrame](), list[str]()
    own = {str(name): part for name, part in texts.groupby("dataset", sort=False)}
    for (score, dataset), scored in table.groupby(["score", "dataset"], sort=False):
        if dataset not in own:
            continue
        part = own[dataset]
        value = part["id"].astype(str).map(scored.set_index("id")["value"])
        lacking = part["id"][value.isna()].astype(str).tolist()
        if subset:
            part, value = part[value.notna()], value.dropna()
        else:
            missing += lacking
        if len(part):
            parts.append(_frame(part, str(score), value, where, complete=subset or not lacking))
    if unknown or missing:
        raise UserError(_mismatch(where, len(table), unknown, missing, subset))
    if not parts:
        raise UserError(f"{where}: no id is one of the {len(texts)} texts of the run")
    joined = pd.concat(parts, ignore_index=True)
    return Joined(joined, list(dict.fromkeys(joined["dataset"])))


def _datasets(table: pd.DataFrame, ids: Mapping[str, set[str]], where: str) -> list[str]:
    """The data set of each row: as given, else the one that has the id; "" for an unknown id."""
    homes: dict[str, list[str]] = {}
    for name, given in ids.items():
        for identity in given:
            homes.setdefault(identity, []).append(name)
    found, unclear = list[str](), list[str]()
    for given_name, identity in zip(table["dataset"], table["id"], strict=True):
        owners = [given_name] if given_name else homes.get(identity, [""])
        found.append(owners[0])
        if len(owners) > 1:
            unclear.append(f"{identity} ({', '.join(owners)})")
    if unclear:
        raise UserError(
            f"{where}: {len(unclear)} ids are in several data sets: {_listed(unclear)}; add the "
            "column dataset"
        )
    return found


def _mismatch(where: str, scores: int, unknown: list[str], missing: list[str], subset: bool) -> str:
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} texts of the data sets that it scores have no score: "
            f"{_listed(missing)}"
        )
    if unknown:
        problems.append(
            f"{len(unknown)} of {scores} scores have an id that the run does not know: "
            f"{_listed(unknown)}"
        )
    remedies = []
    if missing:
        remedies.append("score every text of a data set, or leave out the whole data set")
        if not subset:
            remedies.append("or judge a finished run with make judge and --subset")
    if unknown:
        remedies.append("take the ids from datasets/NAME/examples.parquet of the run")
    return f"{where}: {'; '.join(problems)}. {_sentence('; '.join(remedies))}"


def _sentence(text: str) -> str:
    """`text` with a capital letter first; the names in it stay as they are."""
    return text[:1].upper() + text[1:]


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(shown(value) for value in values[:_NAMED]) + more


def _frame(
    part: pd.DataFrame, score: str, value: "pd.Series[float]", where: str, *, complete: bool
) -> pd.DataFrame:
    values = value.to_numpy(dtype=np.float64)
    if complete and (values == values[0]).all():
        raise UserError(
            f"{where}: all {len(values)} scores of {registry.get(score).label} on "
            f"{part['dataset'].iloc[0]} are {values[0]:g}; expected scores that differ"
        )
    return detectors.frame(
        part.reset_index(drop=True),
        part["fold"].to_numpy(dtype=np.int64),
        {score: values},
        {score: ""},
    )
