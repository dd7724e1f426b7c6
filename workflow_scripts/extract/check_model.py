"""Check that a model is read correctly, and which fast ways of reading are exact."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ghosttrack.activations import extraction, limits, model_check
from ghosttrack.activations.store import describe_layer
from ghosttrack.facts.statements import list_tables, load_table, sentence_of
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory

log = logging.getLogger("ghosttrack")

# Sentences of each shipped fact table; together more tokens than the check reads.
SENTENCES = 30


def main(
    *, weights: Path, check: Path, table: Path, site: Site, min_scale: int, threads: int
) -> None:
    """Write the limits and scales (model_check.json) and all comparisons (model_check.csv)."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    tokenizer = models.load_tokenizer(weights.parent)
    facts = [fact for name in list_tables() for fact in load_table(name)[:SENTENCES]]
    text = " ".join(sentence_of(fact) for fact in facts)
    ids = tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=True)[
        "input_ids"
    ]
    model = models.load_model(weights.parent, extraction.best_device())
    result = model_check.check(
        model, np.array(ids, dtype=np.int64), models.separator(tokenizer), site
    )
    rows = pd.DataFrame([{**one._asdict(), "exact": one.exact} for one in result.comparisons])
    with files.atomic_write(table) as stream:
        tables.write_csv(rows, stream)
    sublayers = (
        result.sublayers
        if isinstance(result.sublayers, str)
        else [sublayer._asdict() for sublayer in result.sublayers]
    )
    about: dict[str, Any] = {"limits": result.limits._asdict(), "sublayers": sublayers}
    scales = model_check.scales(result.median_norms, min_scale)
    # Scales of 1 are not listed, so that the file of an ordinary model does not mention them.
    if listed := {limits.scale_key(layer): one for layer, one in scales.items() if one > 1}:
        about["scales"] = listed
    files.write_json(check, about)
    for layer, scale in scales.items():
        if scale > 1:
            log.info(
                "%s: median norm %s, stored in units of %d",
                describe_layer(layer, site),
                f"{result.median_norms[layer]:,.0f}",
                scale,
            )
    worst = rows[rows["exact"]][["hidden", "logprob"]].max()
    log.info(
        "packed sequences are exact up to %d tokens, padded batches up to %d; largest difference "
        "from the reference: %.1g of a hidden state's norm, %.1g nats",
        result.limits.packed,
        result.limits.padded,
        worst["hidden"],
        worst["logprob"],
    )


if __name__ == "__main__":
    job.run(main, globals())
