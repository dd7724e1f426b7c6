"""`python -m ghosttrack.cli.judge RUN TABLE [TABLE ...]`: judge scores by the controls of a run."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ghosttrack.cli import output_folder
from ghosttrack.errors import UserError
from ghosttrack.settings import EvaluationSettings, names

if TYPE_CHECKING:
    import pandas as pd


class RunSettings(NamedTuple):
    """Settings with which a run's tables were made."""

    evaluation: EvaluationSettings
    seed: int
    controls: list[str]
    variants: list[str]
    null_rows_differ: bool


def settings_of(run: Path) -> RunSettings:
    """The settings in the record of the run's metrics.csv.

    Raises:
        UserError: it is no finished run.
    """
    record = run / "records" / "evaluation" / "metrics.csv.json"
    if not run.is_dir() or not record.exists():
        missing = "there is no such folder" if not run.is_dir() else f"{record} is missing"
        raise UserError(
            f"{run}: {missing}; give the folder of a finished run, such as results/smollm2-135m"
        )
    try:
        params: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))["params"]
        return RunSettings(
            EvaluationSettings.model_validate(params["evaluation"]),
            int(params["seed"]),
            list(params["controls"]),
            list(params["variants"]),
            bool(params.get("null_rows_differ", False)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{record} cannot be read ({type(error).__name__}): run the workflow again, which "
            "writes it"
        ) from None


def judge(
    run: Path,
    tables: Sequence[Path],
    out: Path,
    *,
    name: str | None = None,
    lower: bool = False,
    tokens: Any = "mean",
    subset: bool = False,
) -> str:
    """Judge tables of scores, and write metrics.csv, ledger.csv, scores.parquet and judged.html.

    Args:
        run: folder of a finished run, whose results stay unchanged.
        out: folder of the written files.
        name: name of the scores; None: the name of each file.
        lower, tokens: see `score_tables.read`; subset: judge only the texts of the tables.
    Returns:
        The verdicts as plain text.
    Raises:
        UserError: a table or the run cannot be read, they do not match, a file of the run is not
            what its job wrote, or `out` cannot be written or is a folder of the run.
    """
    import pandas as pd

    from ghosttrack.detection import score_tables
    from ghosttrack.evaluation import judgement
    from ghosttrack.report import external, judged_page
    from ghosttrack.runtime import files, records
    from ghosttrack.runtime import tables as tables_of_run
    from ghosttrack.runtime.run_paths import RunPaths

    chosen, paths = settings_of(run), RunPaths(run)
    output_folder.require_free(out, [run])
    # The metrics are not read, but their record gives the settings.
    source = paths.detection / "scores.parquet"
    records.check_run(run, [source, paths.evaluation / "metrics.csv"])
    scores = tables_of_run.read_parquet(source)
    examples_of = {
        str(dataset): paths.examples(str(dataset)) for dataset in scores["dataset"].unique()
    }
    records.check_run(run, examples_of.values())
    known = {dataset: tables_of_run.read_parquet(path) for dataset, path in examples_of.items()}
    texts = scores[scores["score"] == scores["score"].iloc[0]]
    joined = []
    for path in tables:
        entry = name or entry_of(path)
        read = score_tables.read(path, entry, lower=lower, tokens=tokens, key="table")
        ids = {dataset: examples["id"] for dataset, examples in known.items()}
        joined.append(score_tables.join(read, texts, ids, f"table: {path}", subset=subset).scores)
    added = _of_both_classes(pd.concat(joined, ignore_index=True), texts)
    _require_new(added, scores)
    judged = judgement.judge(
        pd.concat([_same_texts(scores, added), added], ignore_index=True),
        {
            dataset: examples
            for dataset, examples in known.items()
            if (added.loc[added["dataset"] == dataset, "mode"] == "generated").any()
        },
        chosen.controls,
        chosen.variants,
        chosen.evaluation,
        chosen.seed,
        null_rows_differ=chosen.null_rows_differ,
        minimum_pooled=2,
    )
    pools = external.pool_names(judged.pools)
    found = external.judged(judged.metrics, judged.ledger, pools)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(out / "scores.parquet", "wb") as stream:
            added.to_parquet(stream, index=False)
        for file, table in (("metrics.csv", judged.metrics), ("ledger.csv", judged.ledger)):
            with files.atomic_write(out / file) as stream:
                tables_of_run.write_csv(table, stream)
        with files.atomic_write(out / "judged.html") as stream:
            stream.write(judged_page.render(run.resolve().name, found, judged.ledger, pools))
    except OSError as error:
        raise output_folder.not_writable(out, error) from error
    return "\n".join([external.as_text(found.rows), "", *found.notes, external.OUTSIDE])


def entry_of(path: Path) -> str:
    """Name of a table by its file name, with other characters than letters and digits as `_`."""
    name = re.sub(r"\W+", "_", path.stem, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"scores_{name}"


def _require_new(added: "pd.DataFrame", scores: "pd.DataFrame") -> None:
    """Check that no score occurs twice on a data set."""
    keys = ["score", "dataset", "id"]
    taken = set(scores["score"]) & set(added["score"])
    twice = taken or set(added.loc[added.duplicated(keys), "score"])
    if twice:
        where = "the run has" if taken else "two tables have"
        raise UserError(
            f"{where} scores with the name {min(twice)}: rename the file, or give one table and "
            "--name"
        )


def _of_both_classes(added: "pd.DataFrame", texts: "pd.DataFrame") -> "pd.DataFrame":
    """The scores without the data sets whose texts in the run all have one label, which are named.

    Raises:
        UserError: no data set is left.
    """
    labels = texts.groupby("dataset")["label"].nunique()
    single = [name for name in added["dataset"].unique() if labels[name] < 2]
    for name in single:
        sys.stderr.write(f"{name} is not judged: all of its texts in the run have one label\n")
    left = added[~added["dataset"].isin(single)]
    if left.empty:
        raise UserError("no data set of the scores has true and hallucinated texts in the run")
    return left


def _same_texts(scores: "pd.DataFrame", added: "pd.DataFrame") -> "pd.DataFrame":
    """The run's scores of the judged texts.

    Raises:
        UserError: scores of one data set cover different texts, or texts of only one class.
    """
    ids: dict[str, list[str]] = {}
    for (dataset, score), part in added.groupby(["dataset", "score"], sort=False):
        if ids.setdefault(str(dataset), list(part["id"])) != list(part["id"]):
            raise UserError(
                f"{score} covers other texts of {dataset} than the first scores: write each to a "
                "table of its own, and judge one table at a time"
            )
        if part["label"].nunique() < 2:
            only = "hallucinated" if part["label"].iloc[0] else "true"
            raise UserError(
                f"{score} covers {len(part)} texts of {dataset}, all of them {only}: score texts "
                "of both classes"
            )
    chosen = {(dataset, identity) for dataset, given in ids.items() for identity in given}
    keep = [pair in chosen for pair in zip(scores["dataset"], scores["id"], strict=True)]
    return scores[keep]


def main(arguments: list[str]) -> int:
    """Write the tables and the page, and print the verdicts; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.judge",
        description="Judge scores that were made elsewhere by the folds, controls and claims of a "
        "finished run. The results of the run stay unchanged.",
    )
    parser.add_argument(
        "run", type=Path, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument(
        "table",
        nargs="+",
        type=Path,
        help="csv, tsv, jsonl, json or parquet file with the columns id and score, and optionally "
        "dataset, name and token",
    )
    parser.add_argument("--name", help="name of the scores; default: the name of the file")
    parser.add_argument(
        "--lower-is-hallucinated",
        action="store_true",
        help="a low score means hallucinated, as for a log-probability",
    )
    parser.add_argument(
        "--tokens",
        choices=["mean", "max"],
        default="mean",
        help="how the scores of a text's tokens become one, with a column token; default "
        "%(default)s",
    )
    parser.add_argument(
        "--subset",
        action="store_true",
        help="judge only the texts of the table, which may be a part of a data set",
    )
    parser.add_argument(
        "--out", type=Path, help="output folder; default RUN/judged/NAME, by the first table"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.name is not None:
            if len(chosen.table) > 1:
                raise UserError("--name: give one table, or leave --name out")
            try:
                names.score(chosen.name)
            except names.InvalidNameError as error:
                raise UserError(f"--name: {error}") from None
        out = chosen.out or chosen.run / "judged" / (chosen.name or entry_of(chosen.table[0]))
        text = judge(
            chosen.run,
            chosen.table,
            out,
            name=chosen.name,
            lower=chosen.lower_is_hallucinated,
            tokens=chosen.tokens,
            subset=chosen.subset,
        )
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{text}\n{out / 'judged.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
