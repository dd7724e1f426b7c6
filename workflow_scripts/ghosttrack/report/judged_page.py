"""The page of `make judge`."""

from collections.abc import Mapping

import pandas as pd

import ghosttrack
from ghosttrack import scores as registry
from ghosttrack.report import external, page, verdicts


def render(run: str, found: external.Judged, ledger: pd.DataFrame, pools: Mapping[str, str]) -> str:
    """The page of `make judge` as HTML text.

    `run`: name of the judged run; `pools`: names of the means over data sets.
    """
    own = ledger[ledger["ours"].map(registry.is_external)].to_dict("records")
    return page.page(
        "judged.html",
        title=", ".join(dict.fromkeys(row.score for row in found.rows)),
        run=run,
        summary=external.summary(found),
        judged=found,
        outside=external.OUTSIDE,
        claims=[
            {
                "title": line["claim"],
                "dataset": pools.get(line["dataset"], line["dataset"]),
                "text": verdicts.claim_of({str(key): value for key, value in line.items()}),
            }
            for line in own
        ],
        version=ghosttrack.__version__,
    )
