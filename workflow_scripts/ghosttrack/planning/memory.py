"""Memory of jobs in MB (10^6 bytes), estimated from the settings.

The Snakefile imports this module: it must not import numpy, torch, zarr or pandas.
"""

from collections.abc import Sequence

from ghosttrack.settings import DimensionSettings, Settings

# Assumed size of the vocabulary; the tokenizer is not read before a run.
VOCABULARY = 100_000
# Bytes per number.
_FP32, _FP16 = 4, 2
# Rows that a job encodes at once with an SAE.
_BLOCK_ROWS = 4096
# Contexts in a batch of an extraction job.
_CONTEXTS = 16
# Texts of all data sets on which the saved detector is fitted.
_TEXTS = 2000


def model_weights(settings: Settings) -> int:
    """Weights of the model in fp32, in bytes."""
    size = _dimensions(settings)
    return _FP32 * (12 * size.n_layers * size.d_model**2 + VOCABULARY * size.d_model)


def extraction(settings: Settings, layers: Sequence[int] | None = None) -> int:
    """An extraction job: the model, and a batch of contexts.

    Of the batch, one layer is in fp32 with a copy, and `layers` (default: all analysed layers) are
    in fp16 twice.
    """
    width = settings.corpus.context * _dimensions(settings).d_model
    kept = len(layers or settings.layers)
    batch = _CONTEXTS * width * (2 * _FP32 + 2 * _FP16 * kept)
    return max(3000, 1500 + (model_weights(settings) + batch) // 10**6)


def splicing(settings: Settings) -> int:
    """A job with spliced SAEs: the model, and three copies of the fp32 logits of two contexts."""
    logits = 3 * _FP32 * 2 * settings.corpus.context * VOCABULARY
    return 1500 + (model_weights(settings) + logits) // 10**6


def dictionary(settings: Settings, d_sae: int) -> int:
    """A feature dictionary: four blocks of feature activations and two unembeddings, in fp32."""
    numbers = 4 * _BLOCK_ROWS * d_sae + 2 * VOCABULARY * _dimensions(settings).d_model
    return 1000 + _FP32 * numbers // 10**6


def sweep(settings: Settings) -> int:
    """A sweep: weights, gradients and Adam moments of all SAEs in fp32, and a training job."""
    saes = len(settings.sweep.k) * len(settings.sweep.seeds)
    numbers = saes * 2 * 4 * settings.sae.d_sae * _dimensions(settings).d_model
    return 3000 + _FP32 * numbers // 10**6


def detector(settings: Settings, d_sae: int) -> int:
    """The saved detector: two fp32 copies of activations, codes and residuals of all texts."""
    width = d_sae + 2 * _dimensions(settings).d_model
    numbers = _TEXTS * len(settings.layers) * 2 * width
    return 1500 + _FP32 * numbers // 10**6


def _dimensions(settings: Settings) -> DimensionSettings:
    assert settings.dimensions is not None
    return settings.dimensions
