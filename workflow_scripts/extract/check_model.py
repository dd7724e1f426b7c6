"""Try whether a model is read right, and in which of the fast ways, before anything is extracted from it."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ghosttrack.activations import extraction, model_check
from ghosttrack.facts.statements import list_tables, load_table, sentence_of
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory

log = logging.getLogger("ghosttrack")

# Sentences of each shipped table, more tokens than are read.
SENTENCES = 30


def main(*, weights: Path, check: Path, table: Path, site: Site, threads: int) -> None:
    """Write what jobs may do with this model (model_check.json), and every comparison that says so (model_check.csv)."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    tokenizer = models.load_tokenizer(weights.parent)
    facts = [fact for name in list_tables() for fact in load_table(name)[:SENTENCES]]
    text = " ".join(sentence_of(fact) for fact in facts)
    ids = tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=True)[
        "input_ids"
    ]
    model = models.load_model(weights.parent, extraction.best_device())
    found = model_check.check(
        model, np.array(ids, dtype=np.int64), models.separator(tokenizer), site
    )
    rows = pd.DataFrame([{**each._asdict(), "exact": each.exact} for each in found.comparisons])
    with files.atomic_write(table) as stream:
        tables.write_csv(rows, stream)
    sublayers = (
        found.sublayers
        if isinstance(found.sublayers, str)
        else [each._asdict() for each in found.sublayers]
    )
    files.write_json(check, {"limits": found.limits._asdict(), "sublayers": sublayers})
    worst = rows[rows["exact"]][["hidden", "logprob"]].max()
    log.info(
        "texts are read together up to %d tokens, prompts of different lengths continued together up to %d; largest difference "
        "from the plain model: %.1g of a hidden state, %.1g nats",
        found.limits.together,
        found.limits.padded,
        worst["hidden"],
        worst["logprob"],
    )


if __name__ == "__main__":
    job.run(main, globals())
