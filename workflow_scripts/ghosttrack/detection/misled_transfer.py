"""Conflict sets under shift: detectors trained without a relation, or without a wording.

Controls and detectors have the same training sets. Every feature is standardised within its relation
and wording, which reads no label. A text is not tested if its statement is in training after another
remark, as with two conflict sets of the same statements.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import candidate_scores, probes, representations, splits, transfer
from ghosttrack.detection.candidate_scores import CandidateInputs
from ghosttrack.detection.probes import Floats, FoldFit
from ghosttrack.detection.transfer import Blocks, Pool, TransferTraining
from ghosttrack.facts import remarks
from ghosttrack.statistics import codes_of

log = logging.getLogger("ghosttrack")

PROBES = {**transfer.PROBES, "sae_max_probe": "code_max"}
# Reported beside the stacks.
SINGLE = ("raw_probe", "sae_max_probe")
RELATION, WORDING = "relation", "wording"
# Scores on candidate answers: controls without SAEs, features, tracks, and nulls of both.
CANDIDATES = (
    registry.CANDIDATE_LOGIT,
    registry.CANDIDATE_GRADIENTS,
    registry.CANDIDATE_FEATURES,
    f"{registry.CANDIDATE_FEATURES}.decoders",
    registry.CANDIDATE_ALL,
    *(
        f"{registry.CANDIDATE_ALL}.{null}"
        for null in ("untracked", "random", "shuffled", "candidates", "decoders")
    ),
)


class MisledPool(NamedTuple):
    """All texts of several conflict sets.

    pool: with relation and wording together as its relation; relation, wording: (rows,); agrees:
    (rows,) whether a text agrees with its remark; closed_book, asserted: output features without the
    remark, and of the remark's answer, (rows, features); blocks: (rows,) groups of all sets, joined
    where they share a statement without its remark; candidates: of the scores in CANDIDATES, (rows,
    columns) each; empty unless all sets compare candidates.
    """

    pool: Pool
    relation: NDArray[np.object_]
    wording: NDArray[np.object_]
    agrees: NDArray[np.bool_]
    closed_book: pd.DataFrame
    asserted: pd.DataFrame
    blocks: NDArray[np.object_]
    candidates: Mapping[str, pd.DataFrame] = {}


def pool(
    examples: Mapping[str, pd.DataFrame],
    outputs: Mapping[str, pd.DataFrame],
    closed_book: Mapping[str, pd.DataFrame],
    blocks: Blocks,
    candidates: Mapping[str, CandidateInputs | None] | None = None,
) -> MisledPool:
    """Concatenate conflict sets; an output feature that one of them lacks is dropped for all.

    `candidates`: the candidate answers of each set, if they are compared.
    """
    together = transfer.pool(examples, outputs, blocks)
    texts = pd.concat(list(examples.values()), ignore_index=True)
    closed = [representations.output_features(closed_book[name]) for name in examples]
    asserted = [representations.remark_features(outputs[name]) for name in examples]
    groups = [f"{name}: {group}" for name, table in examples.items() for group in table["group"]]
    return MisledPool(
        together._replace(relation=np.array(remarks.strata(texts), dtype=object)),
        together.relation,
        texts["wording"].to_numpy(dtype=object),
        np.array(remarks.agreement(texts), dtype=np.bool_),
        pd.concat(closed, join="inner", ignore_index=True),
        pd.concat(asserted, join="inner", ignore_index=True),
        splits.make_cv_groups(groups, list(remarks.without_remarks(texts)["text"])),
        _of_candidates([(candidates or {}).get(name) for name in examples]),
    )


def _of_candidates(inputs: Sequence[CandidateInputs | None]) -> dict[str, pd.DataFrame]:
    tables = [candidate_scores.plain_columns(each) for each in inputs if each is not None]
    if len(tables) < len(inputs):
        return {}
    return {
        name: pd.concat([each[name] for each in tables], join="inner", ignore_index=True)
        for name in CANDIDATES
    }


def trainings(misled: MisledPool) -> dict[str, list[TransferTraining]]:
    """Trainings without each relation and without each wording; other parts are inner folds.

    A kind of shift needs `transfer.LEAST_PARTS` parts, and is left out with fewer.
    """
    parts = {
        RELATION: transfer.parts(misled.pool._replace(relation=misled.relation)),
        WORDING: misled.wording,
    }
    return {
        kind: transfer.left_out(part)
        for kind, part in parts.items()
        if len(codes_of(part).names) >= transfer.LEAST_PARTS
    }


def scores(misled: MisledPool, chosen: Sequence[TransferTraining]) -> dict[str, dict[str, Floats]]:
    """Log-odds of "hallucinated" by training and score, (rows,); NaN for blocks in training."""
    own, block = misled.pool, codes_of(misled.blocks).code
    outputs, lens, closed, asserted = (
        transfer.standardise_by_relation(table.to_numpy(dtype=np.float64), own)
        for table in (own.outputs, own.lens, misled.closed_book, misled.asserted)
    )
    sign = np.where(misled.agrees, 1.0, -1.0)[:, None]
    known = np.column_stack([outputs, asserted])
    same_pass = np.column_stack([known, sign, known * sign])
    both = np.column_stack([same_pass, closed])
    candidates = {}
    for name, table in misled.candidates.items():
        x = transfer.standardise_by_relation(table.to_numpy(dtype=np.float64), own)
        candidates[name] = np.column_stack([x, sign, x * sign])
    fits = {name: transfer.fit_probes(own, kind, chosen) for name, kind in PROBES.items()}
    result: dict[str, dict[str, Floats]] = {}
    for index, training in enumerate(chosen):
        train = np.flatnonzero(training.inner_fold >= 0)
        test = np.flatnonzero(training.inner_fold < 0)
        trained = np.isin(block, block[train])
        if trained[test].any():
            log.warning(
                "transfer, %s: %d of %d texts are not tested, because their statements are in "
                "training after other remarks",
                training.name,
                trained[test].sum(),
                len(test),
            )
        base = np.empty((len(outputs), len(transfer.STACKED)))
        for column, name in enumerate(transfer.STACKED):
            base[train, column] = fits[name][index].train_log_odds
            base[test, column] = fits[name][index].test_log_odds
        inside = np.column_stack([lens, transfer.standardise_by_relation(base, own)])
        tables = {
            registry.DETECTOR: np.column_stack([outputs, inside]),
            registry.OUTPUT_REGRESSION: outputs,
            registry.SAME_PASS: same_pass,
            registry.WITH_AGREEMENT: np.column_stack([same_pass, inside]),
            registry.CLOSED_BOOK: closed,
            registry.CLOSED_BOOK_AND_CONTEXT: both,
            registry.WITH_CLOSED_BOOK: np.column_stack([both, inside]),
        }
        tables |= candidates
        y, inner = own.labels[train], training.inner_fold[train]
        fitted: dict[str, FoldFit] = {
            name: probes.logistic(x[train], y, inner, x[test]) for name, x in tables.items()
        }
        fitted |= {name: fits[name][index] for name in SINGLE}
        result[training.name] = {}
        for name, fit in fitted.items():
            log_odds = np.full(len(outputs), np.nan)
            log_odds[test] = fit.test_log_odds
            log_odds[trained] = np.nan
            result[training.name][name] = log_odds
    return result
