"""Memory that jobs ask for, in MB (10^6 bytes), estimated from the settings.

The Snakefile imports this: nothing here may import numpy, torch, zarr or pandas.
"""

from collections.abc import Sequence

from ghosttrack.settings import Settings

# Assumed size of the vocabulary; the tokenizer is not read before a run.
VOCABULARY = 100_000
_FP32 = 4
_FP16 = 2
# Rows that a job encodes at once with an SAE.
_BLOCK_ROWS = 4096
# Contexts that an extraction job reads at once.
_CONTEXTS = 16
# Texts of all data sets together that the detector is fitted on.
_TEXTS = 2000


def model_weights(settings: Settings) -> int:
    """Bytes of the model's weights in fp32."""
    size = settings.dimensions
    return _FP32 * (12 * size.n_layers * size.d_model**2 + VOCABULARY * size.d_model)


def extraction(settings: Settings, layers: Sequence[int] | None = None) -> int:
    """Weights, and a batch of contexts: one layer in fp32 with a copy, `layers` in fp16 twice."""
    width = settings.corpus.context * settings.dimensions.d_model
    kept = len(layers or settings.layers)
    batch = _CONTEXTS * width * (2 * _FP32 + 2 * _FP16 * kept)
    return max(3000, 1500 + (model_weights(settings) + batch) // 10**6)


def splicing(settings: Settings) -> int:
    """Weights, and the logits of two contexts in fp32, three times."""
    logits = 3 * _FP32 * 2 * settings.corpus.context * VOCABULARY
    return 1500 + (model_weights(settings) + logits) // 10**6


def dictionary(settings: Settings, d_sae: int) -> int:
    """Four blocks of feature activations, and the unembedding twice, in fp32."""
    numbers = 4 * _BLOCK_ROWS * d_sae + 2 * VOCABULARY * settings.dimensions.d_model
    return 1000 + _FP32 * numbers // 10**6


def sweep(settings: Settings) -> int:
    """Weights, gradients and both moments of every swept SAE in fp32, and one training job."""
    saes = len(settings.sweep.k) * len(settings.sweep.seeds)
    numbers = saes * 2 * 4 * settings.sae.d_sae * settings.dimensions.d_model
    return 3000 + _FP32 * numbers // 10**6


def detector(settings: Settings, d_sae: int) -> int:
    """Activations, feature activations and residuals of all texts and layers in fp32, twice."""
    numbers = _TEXTS * len(settings.layers) * 2 * (d_sae + 2 * settings.dimensions.d_model)
    return 1500 + _FP32 * numbers // 10**6
