"""Memory that jobs ask for, in MB (10^6 bytes), computed from the settings.

Each formula is the sum of what a job holds at its peak. `benchmarks/memory.py` compares them with
the measured peaks of a finished run. The Snakefile imports this module: nothing here may import
numpy, torch, zarr or pandas.
"""

from collections.abc import Sequence

from ghosttrack.settings import DimensionSettings, Settings

# Assumed vocabulary of a model whose settings do not give it.
VOCABULARY = 100_000
# A process that has imported torch and transformers, with its buffers; and one that also uses a GPU,
# whose driver and libraries take host memory (an assumption, not measured).
PROCESS, GPU_PROCESS = 700, 3000
_FP32 = 4
_FP16 = 2
# Rows that a job encodes at once with an SAE.
_BLOCK_ROWS = 4096
# Contexts that an extraction job reads at once.
_CONTEXTS = 16
# Positions whose logits a job computes at once, and arrays of that size that it holds.
_HEAD_ROWS, _HEAD_COPIES = 256, 5
# Contexts of a spliced forward pass, and arrays of the size of their logits that it holds: logits,
# log-probabilities and products, of the plain and of the spliced pass.
_SPLICED_CONTEXTS, _SPLICED_COPIES = 2, 10
# Activations that stay in memory during training (`resident_mb` of train_sae), and rows of a window
# of the sampler that reads more than that.
RESIDENT, _WINDOW_ROWS = 1536 * 2**20, 64 * 4096
# Tokens of a packed sequence with gradients, and widths of the tensors that its graph keeps per block.
_PASS_TOKENS, _GRAPH_WIDTHS = 1024, 24
# Texts of all data sets together that the detector is fitted on.
_TEXTS = 2000


def _size(settings: Settings) -> DimensionSettings:
    """Dimensions of the model, which loaded settings always have."""
    assert settings.dimensions is not None
    return settings.dimensions


def _process(settings: Settings) -> int:
    """Memory of a job that uses the accelerator, if there is one."""
    return GPU_PROCESS if settings.plan.device == "gpu" else PROCESS


def vocabulary(settings: Settings) -> int:
    """Tokens of the vocabulary."""
    return _size(settings).vocab_size or VOCABULARY


def model_weights(settings: Settings) -> int:
    """Bytes of the model's weights in fp32, with one matrix for embedding and unembedding."""
    size = _size(settings)
    return _FP32 * (12 * size.n_layers * size.d_model**2 + vocabulary(settings) * size.d_model)


def extraction(settings: Settings, layers: Sequence[int] | None = None) -> int:
    """Weights; logits; a batch of contexts, one layer in fp32 twice and `layers` in fp16 twice."""
    width = settings.corpus.context * _size(settings).d_model
    kept = len(layers or settings.layers)
    batch = _CONTEXTS * width * (2 * _FP32 + 2 * _FP16 * kept)
    head = _FP32 * _HEAD_ROWS * vocabulary(settings) * _HEAD_COPIES
    return _process(settings) + _mb(model_weights(settings) + batch + head)


def generation(settings: Settings) -> int:
    """Weights, the KV cache of a batch of prompts, and the logits of their last tokens.

    At least what extraction asks for: with a vocabulary of 262,144 tokens the measured peak is as
    high as that of extraction.
    """
    size = _size(settings)
    prompts, tokens = 32, 160  # longer prompts are batched by their length, in smaller batches
    cache = _FP32 * 2 * size.n_layers * prompts * tokens * size.d_model
    head = _FP32 * prompts * vocabulary(settings) * _HEAD_COPIES
    cached = _process(settings) + _mb(model_weights(settings) + cache + head)
    return max(cached, extraction(settings))


def splicing(settings: Settings) -> int:
    """Weights, and the logits of a plain and a spliced forward pass."""
    logits = _FP32 * _SPLICED_CONTEXTS * settings.corpus.context * vocabulary(settings)
    return _process(settings) + _mb(model_weights(settings) + _SPLICED_COPIES * logits)


def training(settings: Settings) -> int:
    """An SAE's weights, gradients and moments with copies, rows, and a batch of pre-activations."""
    size = settings.sae.d_sae
    batch = 3 * _FP32 * min(settings.sae.batch, _BLOCK_ROWS) * size
    return _process(settings) + _mb(_trained_weights(settings) + _rows(settings, 1) + batch)


def shared_training(settings: Settings) -> int:
    """Training of one SAE on the rows of all layers."""
    others = _rows(settings, len(settings.layers)) - _rows(settings, 1)
    return training(settings) + _mb(max(others, 0))


def _trained_weights(settings: Settings) -> int:
    """Encoder and decoder with their gradients, moments and the copies of a checkpoint."""
    return 16 * _FP32 * settings.sae.d_sae * _size(settings).d_model


def _rows(settings: Settings, layers: int) -> int:
    """All rows of the layers in fp16 if they fit `resident_mb`, else two windows of the sampler."""
    width = _FP16 * _size(settings).d_model
    total = settings.contexts * settings.corpus.context * width * layers
    return total if total <= RESIDENT else 2 * _WINDOW_ROWS * width


def sweep(settings: Settings) -> int:
    """Training, with weights, gradients and moments of every swept SAE."""
    others = len(settings.sweep.k) * len(settings.sweep.seeds) - 1
    return training(settings) + _mb(others * _trained_weights(settings))


def scoring(settings: Settings, d_sae: int) -> int:
    """What extraction holds, and the SAEs of all layers."""
    saes = 2 * len(settings.layers) * d_sae * _size(settings).d_model
    return extraction(settings) + _mb(_FP32 * saes)


def attribution(settings: Settings, d_sae: int) -> int:
    """What scoring holds, the null's SAEs, and the activations of a pass and their graph."""
    saes = 2 * len(settings.layers) * d_sae * _size(settings).d_model
    graph = _PASS_TOKENS * _size(settings).n_layers * _GRAPH_WIDTHS * _size(settings).d_model
    return scoring(settings, d_sae) + _mb(_FP32 * (saes + graph))


def encoding(settings: Settings, d_sae: int) -> int:
    """One SAE, and four blocks of feature activations."""
    numbers = 4 * _BLOCK_ROWS * d_sae + 2 * d_sae * _size(settings).d_model
    return PROCESS + _mb(_FP32 * numbers)


def dictionary(settings: Settings, d_sae: int) -> int:
    """What encoding holds, and the unembedding twice."""
    unembedding = 2 * vocabulary(settings) * _size(settings).d_model
    return encoding(settings, d_sae) + _mb(_FP32 * unembedding)


def detector(settings: Settings, d_sae: int) -> int:
    """Activations, feature activations and residuals of all texts and layers, twice."""
    numbers = _TEXTS * len(settings.layers) * 2 * (d_sae + 2 * _size(settings).d_model)
    return PROCESS + _mb(_FP32 * numbers)


def fetching(settings: Settings) -> int:
    """The weights as read, as converted and as written."""
    return PROCESS + _mb(3 * model_weights(settings))


def _mb(size: int) -> int:
    """Bytes in MB, rounded up."""
    return -(-size // 10**6)
