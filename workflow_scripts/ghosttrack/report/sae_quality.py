"""The report's section on autoencoders: a table by layer with the gates, and the layers where they are weakest."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ghosttrack.evaluation.gates import GATES, Gate
from ghosttrack.report import numbers, tables

# Figures of quality.json, then of saes/answers.csv, with short headings.
HELDOUT = (
    ("l0", "L0"), ("fvu", "FVU"), ("fvu_token_median", "FVU, median token"), ("explained_variance", "explained variance"),
    ("ce_loss_score", "CE score"), ("delta_ce", f"{numbers.DELTA}CE, nats"), ("kl_div_with_sae", "KL, nats"),
    ("dead_fraction", "dead features"), ("pca_fvu", "FVU of PCA"), ("random_fvu", "FVU of a random dictionary"),
)  # fmt: skip
ANSWERS = (("l0", "L0"), ("fvu", "FVU"), ("fvu_token_median", "FVU, median token"))
