"""Fit the detector of whole statements, test it on left-out kinds, and save it for user texts."""

from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from ghosttrack.activations import pooled_statements
from ghosttrack.detection import left_out_kinds, saved_statements
from ghosttrack.detection.statement_model import Statements
from ghosttrack.facts.statement_kinds import NEGATED, subject_matter
from ghosttrack.runtime import files, job, libraries, tables


def main(
    *,
    statements: Path,
    pooled: Path,
    manifest: Path,
    source: Path,
    detector: Path,
    about: Path,
    kinds: Path,
    curve: Path,
    threads: int = 1,
) -> None:
    """Write the detector, the table of left-out kinds and facts, and the risk-coverage curve."""
    frame = tables.read_parquet(statements)
    read, read_about = pooled_statements.load(pooled, manifest, statements)
    kind, names = pd.factorize(frame["kind"])
    facts, subjects = pd.factorize(np.array(subject_matter(frame["relation"])))
    given = Statements(
        pooled_statements.flat(read.states),
        read.outputs,
        frame["label"].to_numpy(dtype=np.int64),
        (frame["polarity"] == NEGATED).to_numpy(),
        kind.astype(np.int64),
        facts.astype(np.int64),
        *(pd.factorize(frame[column])[0].astype(np.int64) for column in ("group", "id")),
    )
    # Texts of several sentences are only evaluated: `score` judges every sentence.
    fitted_on = given.rows(~frame["id"].duplicated(keep=False).to_numpy())
    reason = left_out_kinds.infeasible_reason(fitted_on)
    fitted, left_out = None, pd.DataFrame(columns=left_out_kinds.JUDGED)
    if not reason:
        with threadpool_limits(threads):
            left_out = left_out_kinds.evaluate(given, list(names), list(subjects))
            fitted = left_out_kinds.fit(fitted_on)
    table = left_out_kinds.table(left_out)
    for path, values in ((kinds, table), (curve, left_out_kinds.risk_coverage(left_out))):
        with files.atomic_write(path) as stream:
            tables.write_csv(values, stream)
    saved_statements.save(
        fitted,
        {
            "reason": reason,
            "model": files.read_object(source)["files_sha256"],
            "layers": read_about["layers"],
            "site": read_about["site"],
            "model_precision": read_about["model_precision"],
            "kinds": list(names),
            "texts": len(fitted_on.label),
            "left_out": table[table["kind"] == left_out_kinds.ALL]
            .replace({np.nan: None})
            .to_dict("records"),
            "libraries": dict(libraries.versions()),
        },
        detector,
        about,
    )


if __name__ == "__main__":
    job.run(main, globals())
