"""Memory that jobs ask for, in MB (10^6 bytes), computed from the sizes of a run.

A formula counts what a job holds at its peak: the resident set of Python with the libraries of its
script, which is measured, and the arrays, which are computed. `asked` adds a margin.
`benchmarks/memory.py` compares what jobs ask for with the peaks of a finished run. The Snakefile
imports this module: nothing here may import numpy, torch, zarr or pandas.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ghosttrack.planning.data_sizes import Texts
from ghosttrack.settings import Settings

# What a job asks for, relative to the counted peak.
MARGIN = 1.3
# Resident set of Python after the imports of a job, in MB: the smallest peak of such a job in a run
# of tiny-gpt2, with the CPU build of torch. TABLES has pandas and pyarrow; LEARNING scikit-learn,
# too; CORPUS a tokenizer of transformers; MODEL torch, transformers and a language model, MODEL_TABLES also pandas.
PLAIN, TABLES, FIGURES, LEARNING = 125, 140, 210, 240
TORCH, TORCH_ANSWERS, TORCH_TRACKS, TORCH_LEARNING = 285, 340, 390, 420
CORPUS, MODEL, MODEL_TABLES = 310, 450, 500
# ASSUME: host memory of the driver and the libraries of a GPU in a job that uses one, in MB.
GPU_LIBRARIES = 2500
# ASSUME: what `import torch` takes more in a build for CUDA, in MB, with or without a GPU in the job.
CUDA_BUILD = 200
# The processes of Snakemake that a Slurm job runs beside its script, in MB: 484 on a test Slurm.
SNAKEMAKE = 550
_FP64, _FP32, _FP16 = 8, 4, 2
# Detectors of tokens: buckets of words, scores, columns of all controls, bins of AUPRC, and columns
# that are used of very many.
_WORD_BUCKETS, _TOKEN_SCORES, _TOKEN_COLUMNS, _TOKEN_BINS, _WIDEST = 2048, 14, 180, 4000, 2048
# ASSUME: width of an attention head. Copies of the lookback ratios of all heads, in half precision.
_HEAD_WIDTH, _LOOKBACK_COPIES = 64, 2
# Tokens of contexts that are kept as KV caches, as in `activations.packed_texts`.
_CACHED_TOKENS = 4096
# Bytes of a token of a context in a table.
_CONTEXT_TOKEN = 4
# Bytes of a byte-pair tokenizer per token of the vocabulary.
_TOKEN_BYTES = 1700
# Weights as read, as converted and as written, and copies of a GGUF file.
_FETCHED_COPIES = 2.8
# Contexts that an extraction job reads at once, and arrays as wide as the residual stream that a
# block takes: queries, keys, values, the MLP and its activation function. Llama 21, GPT-2 46.
_CONTEXTS, _STREAMS = 16, 40
# Threads that encode at once in mode int8s, rows that each one encodes, and copies that it holds.
_WRITERS, _CHUNK_ROWS, _ENCODED_COPIES = 4, 4096, 5
# Positions whose logits a job computes at once, and bytes of these logits, at most, as in
# `activations.packed_texts`; the number of positions that is always computed at once.
_HEAD_ROWS, _HEAD_BYTES, _LEAST_HEAD_ROWS = 256, 2**26, 32
# Arrays of that size that a job holds. Where the number of positions differs from text to text, the
# heap also keeps freed blocks that the next one does not fit.
_HEAD_COPIES, _FREED_COPIES = 2, 2
# Tokens of texts that are read together, and rows of examples that are put in order in memory: see
# `activations.example_extraction`.
_PACKED, _WINDOW_EXAMPLES = 2048, 4096
# Prompts whose answers are generated at once, tokens of a prompt with its answer, and those of them
# after the prefix that all prompts share. Longer prompts are batched by their length, in smaller
# batches.
_PROMPTS, _PROMPT_TOKENS, _OWN_TOKENS = 32, 160, 16
# Contexts of a spliced forward pass, and arrays of the size of a block of logits that the comparison
# of the passes holds: logits, log-probabilities and products of four passes.
_SPLICED_CONTEXTS, _SPLICED_COPIES = 2, 14
# Activations that stay in memory during training (`resident_mb` of train_sae), and rows of a window
# of the sampler that reads more than that.
RESIDENT, _WINDOW_ROWS = 1536 * 2**20, 64 * 4096
# Copies of an SAE's encoder or decoder in training: weights, gradients, moments, a checkpoint and
# work space.
_TRAINED_COPIES = 8
# The same on an accelerator: weights, gradients, two moments and work space.
_DEVICE_COPIES = 5
# Rows that a job encodes at once, and arrays (rows, d_sae) that it holds; more for SAE quality with
# its baselines, fewer to see which features fire.
_BLOCK_ROWS, _BLOCK_COPIES, _QUALITY_COPIES, _FIRING_COPIES = 4096, 4, 8, 2
# Features of two layers that are compared at once, and arrays (features, d_sae) that this takes.
_COMPARED, _COMPARED_COPIES = 1024, 6
# Held-out rows on which features are counted together, at most.
_COUNTED_ROWS = 32_768
# Rows of a batch of tracking, arrays (rows, d_sae), and bytes of a detection.
_TRACKED_ROWS, _TRACKED_COPIES, _DETECTION = 2048, 6, 40
# Bytes of the description of a feature, of the columns of it that name a cluster, and of a link
# between two features, as a job holds them.
_DESCRIBED, _NAMED, _LINK = 6000, 3000, 60
# Bytes of the neighbours of a feature in the next layer, as they are read.
_LINKED_FEATURE = 2000
# Bytes of a text, and of a row of a long table of scores, in a table in memory.
_TEXT, _SCORE = 4000, 400
# Scores of a text: probes, controls, stacks, and the classifiers of the track metrics; and those of
# candidate answers with their nulls.
_SCORES, _CANDIDATE_SCORES = 45, 25
# Columns of the track metrics of a token, with work space.
_METRICS = 200
# Numbers in a block of bootstrap weights, and arrays of that size.
_BOOTSTRAP, _BOOTSTRAP_COPIES = 8_000_000, 7
# Copies of the Gram matrix of a probe beside one for each fold, and the fraction of the features that
# fire on enough texts to have a column in it: ASSUME, half of them in the default run.
_GRAM_COPIES, _FIRING = 4, 0.7
# Bytes of the curves of a data set, and half of those of a layer.
_DRAWN = 2_000_000
# Kinds of training statements, and pools and layers of their activations.
_STATEMENT_KINDS, _STATEMENT_POOLS, _STATEMENT_LAYERS = 18, 3, 3
# Products of 384 principal components of 3 pools and of the polarity, for 40 kinds and facts.
_STATEMENT_PRODUCTS = 4 * 40 * 384**2
# Bytes of a shown track of the explorer as Python objects; tracks that it shows at most, unless
# each token has no more than the least number.
_SHOWN, _DRAWN_TRACKS, _LEAST_TRACKS = 400, 600_000, 4
# Tokens of a packed sequence with gradients, and widths of the tensors that its graph keeps per block.
_PASS_TOKENS, _GRAPH_WIDTHS = 1024, 24


class Run(NamedTuple):
    """What the memory of a model's jobs depends on."""

    settings: Settings
    d_sae: int  # features of one SAE
    datasets: Mapping[str, Texts]
    vocabulary: int
    parameters: int | None = None  # of the model, if its weights are at hand
    stored: int = _FP32  # bytes of a parameter in the checkpoint
    transposed: bool = True  # whether the checkpoint stores dense layers transposed
    gpu: bool = False  # whether jobs with an accelerator load the libraries of a GPU

    @property
    def d_model(self) -> int:
        """Width of the model."""
        assert self.settings.dimensions is not None  # loaded settings always have it
        return self.settings.dimensions.d_model

    @property
    def layers(self) -> int:
        """Number of analysed layers."""
        return len(self.settings.layers)

    @property
    def corpus(self) -> int:
        """Training tokens of a layer."""
        return self.settings.contexts * self.settings.corpus.context

    @property
    def heldout(self) -> int:
        """Held-out tokens."""
        context = self.settings.corpus.context
        return -(-self.settings.corpus.heldout_tokens // context) * context

    @property
    def largest(self) -> Texts:
        """The most texts, and the most stored tokens, of a data set."""
        sizes = self.datasets.values()
        return Texts(
            max((one.texts for one in sizes), default=0),
            max((one.tokens for one in sizes), default=0),
            max((one.longest for one in sizes), default=0),
            any(one.marked for one in sizes),
        )

    @property
    def together(self) -> Texts:
        """Texts and stored tokens of all data sets."""
        sizes = self.datasets.values()
        return Texts(
            sum(one.texts for one in sizes), sum(one.tokens for one in sizes), self.largest.longest
        )

    @property
    def attention_heads(self) -> int:
        """Heads of all blocks, estimated from the width."""
        assert self.settings.dimensions is not None
        return self.settings.dimensions.n_layers * max(1, self.d_model // _HEAD_WIDTH)

    @property
    def decoder(self) -> int:
        """Bytes of the decoder of one SAE; the encoder has the same size."""
        return _FP32 * self.d_sae * self.d_model


def asked(counted: float, cluster: bool = False, gpu: bool = False) -> int:
    """MB that the first attempt of a job asks for.

    Args:
        counted: MB at the peak, from a formula of this module.
        cluster: whether the job runs inside other processes of Snakemake, as on Slurm.
        gpu: whether jobs run with a build of torch for CUDA.
    """
    more = (SNAKEMAKE if cluster else 0) + (CUDA_BUILD if gpu else 0)
    return math.ceil(MARGIN * counted) + more


# ---- the model and its texts
def model_weights(run: Run) -> int:
    """Bytes of the model's weights in the data type of its forward pass.

    Without the weights at hand their number is estimated: 12 d^2 per block, and one matrix for
    embedding and unembedding.
    """
    return _parameter_bytes(run) * _parameters(run)


def _parameter_bytes(run: Run) -> int:
    """By `inference.dtype`; auto is float32 on a CPU, the data type of the checkpoint on a GPU."""
    dtype = run.settings.inference.dtype
    if dtype == "auto":
        return run.stored if run.gpu else _FP32
    return _FP32 if dtype == "float32" else _FP16


def _parameters(run: Run) -> int:
    if run.parameters is not None:
        return run.parameters
    size = run.settings.dimensions
    assert size is not None
    return 12 * size.n_layers * size.d_model**2 + run.vocabulary * size.d_model


def _with_model(run: Run) -> int:
    """A process with the model's weights."""
    return MODEL + (GPU_LIBRARIES if run.gpu else 0) + _mb(model_weights(run))


def _or_loading(run: Run, held: int) -> int:
    """The larger one of what a job holds later, and the weights beside their mapped file.

    Weights that need no conversion stay in the mapped file.
    """
    same = run.stored == _parameter_bytes(run) and run.settings.inference.dtype in (
        "auto",
        "float32",
    )
    if same and not run.transposed:
        return held
    mapped = _mb(run.stored * _parameters(run))
    return max(held, _with_model(run) + (MODEL_TABLES - MODEL) + mapped)


def _tokenizer(run: Run) -> int:
    return _TOKEN_BYTES * run.vocabulary


def _head(run: Run) -> int:
    """Logits of the positions that are scored at once."""
    return _head_block(run) * _HEAD_COPIES


def _head_block(run: Run) -> int:
    """Bytes of the logits that are computed at once."""
    rows = min(_HEAD_ROWS, max(_LEAST_HEAD_ROWS, _HEAD_BYTES // (_FP32 * run.vocabulary)))
    return _FP32 * rows * run.vocabulary


def fetching(run: Run) -> int:
    """The weights as read, as converted and as written, and the tokenizer."""
    return MODEL + _mb(_FETCHED_COPIES * _FP32 * _parameters(run) + _tokenizer(run))


def corpus(run: Run) -> int:
    """The tokenizer and some documents; packed tokens are written context by context."""
    return CORPUS + _mb(_tokenizer(run))


def dataset(run: Run) -> int:
    """The texts of the largest data set."""
    return TABLES + _mb(_table(run.largest))


def _table(texts: Texts) -> int:
    """Bytes of texts with their contexts in a table."""
    return texts.texts * (_TEXT + _CONTEXT_TOKEN * texts.longest)


def extraction(run: Run, layers: Sequence[int] | None = None) -> int:
    """Weights; a batch of contexts in one block; `layers` as read and in fp16 twice; all tokens."""
    rows = _CONTEXTS * run.settings.corpus.context * run.d_model
    kept = run.layers if layers is None else len(layers)
    batch = rows * (_STREAMS * _FP32 + (2 * _FP16 + _FP32) * kept)
    encoded = 0
    if run.settings.activations.storage == "int8s":
        encoded = _WRITERS * _ENCODED_COPIES * _FP32 * _CHUNK_ROWS * run.d_model
    return _or_loading(run, _with_model(run) + _mb(batch + encoded + 2 * _FP32 * run.corpus))


def examples(run: Run) -> int:
    """Weights, tokenizer, texts read together, logits, and a window of rows of every layer.

    With contexts also their KV caches, with all heads, and with spans the lookback ratios.
    """
    longest = run.largest.longest
    window = min(_WINDOW_EXAMPLES, run.largest.tokens) * (run.layers + 1) * run.d_model
    packed = max(_PACKED, longest) * run.d_model * _STREAMS
    assert run.settings.dimensions is not None
    cached = 2 * run.settings.dimensions.n_layers * run.d_model
    cached *= (_CACHED_TOKENS + 2 * longest) * bool(longest)
    held = (
        _with_model(run)
        + (MODEL_TABLES - MODEL)
        + _mb(
            _FP32 * (packed + 2 * window)
            + _parameter_bytes(run) * cached
            + _head(run)
            + _head_block(run) * _FREED_COPIES
            + _tokenizer(run)
            + _table(run.largest)
            + _LOOKBACK_COPIES * _lookback(run)
        )
    )
    return _or_loading(run, held)


def _lookback(run: Run) -> int:
    """Bytes of the lookback ratios of the answer tokens."""
    marked = max((one.tokens for one in run.datasets.values() if one.marked), default=0)
    return _FP16 * marked * run.attention_heads


def statements(run: Run) -> int:
    """What the reading of examples holds, and pooled activations twice, whole and in half precision."""
    return examples(run) + _mb(2 * _FP32 * _statement_states(run))


def model_check(run: Run) -> int:
    """What extraction and the reading of examples hold, with the weights in float32.

    A model in half precision is checked in float32, too.
    """
    more = (_FP32 - _parameter_bytes(run)) * _parameters(run)
    return max(extraction(run), examples(run)) + _mb(max(more, 0))


def generation(run: Run) -> int:
    """Weights, tokenizer, the KV cache of a batch of prompts with all heads, and its logits."""
    size = run.settings.dimensions
    assert size is not None
    cache = 2 * size.n_layers * _PROMPTS * _PROMPT_TOKENS * size.d_model
    prompts = _PROMPTS * _OWN_TOKENS * size.d_model * _STREAMS
    head = _PROMPTS * run.vocabulary * _HEAD_COPIES
    return (
        _with_model(run)
        + (MODEL_TABLES - MODEL)
        + _mb(_FP32 * (cache + prompts + head) + _tokenizer(run))
    )


def splicing(run: Run) -> int:
    """Weights, the unembedding once more in another order, one SAE, contexts, logits of four passes."""
    head = _FP32 * run.vocabulary * run.d_model + _SPLICED_COPIES * _head_block(run)
    rows = _SPLICED_CONTEXTS * run.settings.corpus.context * run.d_model * _STREAMS
    return _with_model(run) + _mb(
        2 * run.decoder + head + _FP32 * rows + _encoded(run, run.heldout, _QUALITY_COPIES)
    )


def scoring(run: Run) -> int:
    """What the reading of examples holds, and the SAEs of all layers."""
    return examples(run) + _mb(2 * run.layers * run.decoder)


def attribution(run: Run) -> int:
    """What scoring holds, the SAEs with random decoders, and the graph of a pass with gradients."""
    size = run.settings.dimensions
    assert size is not None
    graph = _PASS_TOKENS * size.n_layers * _GRAPH_WIDTHS * size.d_model
    return scoring(run) + _mb(2 * run.layers * run.decoder + _FP32 * graph)


# ---- SAEs
def training(run: Run) -> int:
    """An SAE's weights, gradients and moments with copies, rows, and a batch of pre-activations."""
    return _trainer(run) + _mb(_trained(run) + _rows(run, 1))


def shared_training(run: Run) -> int:
    """Training of one SAE on the rows of all layers."""
    return _trainer(run) + _mb(_trained(run) + _rows(run, run.layers))


def sweep(run: Run) -> int:
    """Training, with weights, gradients and moments of every swept SAE."""
    arms = len(run.settings.sweep.k) * len(run.settings.sweep.seeds)
    return _trainer(run) + TORCH_LEARNING - TORCH + _mb(arms * _trained(run) + _rows(run, 1))


def _trainer(run: Run) -> int:
    """Python with torch, and with the libraries of a GPU."""
    return TORCH + (GPU_LIBRARIES if run.gpu else 0)


def _trained(run: Run) -> int:
    """Encoder and decoder in training, and the pre-activations of a batch."""
    rows = max(min(run.settings.sae.batch, _BLOCK_ROWS), _BLOCK_ROWS)
    return _TRAINED_COPIES * 2 * run.decoder + _BLOCK_COPIES * _FP32 * rows * run.d_sae


def _rows(run: Run, layers: int) -> int:
    """Rows of the layers in fp16: if they fit `resident_mb` all of them, and as read from disk.

    Otherwise two windows of the sampler.
    """
    width = _FP16 * run.d_model
    total = run.corpus * width * layers
    return 2 * total if total <= RESIDENT else 2 * _WINDOW_ROWS * width


def _encoded(run: Run, rows: float, copies: int = _BLOCK_COPIES) -> int:
    """A block of rows with their feature activations."""
    block = min(_BLOCK_ROWS, math.ceil(rows))
    return _FP32 * block * (copies * run.d_sae + 4 * run.d_model)


def pretrained(run: Run) -> int:
    """A pretrained SAE as read, as converted and as written."""
    return TORCH + _mb(6 * run.decoder)


def answers(run: Run) -> int:
    """The SAE and the activations of all texts of a layer and of the one before, and a block of rows."""
    stored = _FP16 * run.together.tokens * run.d_model
    return TORCH_ANSWERS + _mb(2 * (2 * run.decoder + stored) + _encoded(run, run.largest.tokens))


def dictionary(run: Run) -> int:
    """One SAE with a block of rows, the unembedding, and the description of every feature."""
    unembedding = run.vocabulary * run.d_model + 2 * 256 * run.vocabulary
    return MODEL_TABLES + _mb(
        2 * run.decoder
        + _encoded(run, run.heldout)
        + _FP32 * unembedding
        + _tokenizer(run)
        + _DESCRIBED * run.d_sae
    )


# ---- tracks
def neighbours(run: Run) -> int:
    """Three SAEs, normalised decoders, and blocks of similarities.

    For links by correlation also the sparse codes of the held-out rows.
    """
    codes = 0
    if run.settings.tracking.links == "correlation":
        codes = 4 * 3 * (_FP64 + _FP32) * run.heldout * run.settings.sae.k + _encoded(
            run, run.heldout
        )
    return TORCH + _mb(3 * 2 * run.decoder + 4 * run.decoder + 2 * _compared(run) + codes)


def _compared(run: Run) -> int:
    return _COMPARED_COPIES * _FP32 * min(_COMPARED, run.d_sae) * run.d_sae


def clusters(run: Run) -> int:
    """Firings of two layers, joint counts, the graph of all features, and their descriptions."""
    firings = 6 * 2 * _FP32 * min(_COUNTED_ROWS, run.heldout) * run.settings.sae.k
    links = run.layers * run.d_sae * _LINK * 2 * run.settings.tracking.neighbours
    features = run.layers * run.d_sae * _NAMED
    return TORCH_LEARNING + _mb(
        2 * 2 * run.decoder
        + _encoded(run, run.heldout, _FIRING_COPIES)
        + firings
        + _compared(run)
        + links
        + features
    )


def tracking(run: Run) -> int:
    """The SAEs of all layers, links, and the detections of a batch of tokens in every layer."""
    choices = run.settings.tracking
    rows = min(_TRACKED_ROWS, run.largest.tokens)
    batch = rows * (
        _TRACKED_COPIES * _FP32 * run.d_sae
        + run.layers * _DETECTION * choices.top_k * choices.second_association
    )
    saes = (2 if _decoders(run) else 1) * run.layers * run.decoder + 2 * run.decoder
    links = run.layers * run.d_sae * _LINK * choices.neighbours
    return TORCH_TRACKS + _mb(saes + links + batch)


def _decoders(run: Run) -> bool:
    """Whether tracking reads the decoders of all layers."""
    choices = run.settings.tracking
    return choices.mode == "original" or "shuffled" in choices.variants


def signals(run: Run) -> int:
    """The metrics of every token, and a batch of tracks."""
    choices = run.settings.tracking
    slots = run.layers * choices.top_k * choices.second_association
    return (
        TABLES
        + 30
        + _mb(
            _FP64 * _METRICS * run.largest.tokens
            + 2 * 15 * slots * min(_TRACKED_ROWS, run.largest.tokens)
        )
    )


# ---- detectors
def audit(run: Run) -> int:
    """The texts, the products of all pairs of texts, and the token embeddings of the answers."""
    texts = run.largest.texts
    return LEARNING + _mb(
        _pairs(texts) + _table(run.largest) + 2 * _FP32 * run.d_model * run.largest.tokens
    )


def _pairs(texts: int) -> int:
    """Kernel matrices of the texts of a data set; with more than EXACT texts, of landmarks."""
    return 6 * _FP64 * texts * min(texts, 2000)


def detectors(run: Run) -> int:
    """Pooled activations, feature activations and residuals of the texts in all layers.

    Also kernel matrices, and one layer as it is read and encoded.
    """
    texts = run.largest.texts
    pooled = texts * run.layers * (2 * run.d_sae + 3 * run.d_model)
    layer = run.largest.tokens * run.d_model + 2 * texts * (2 * run.d_sae + 3 * run.d_model)
    return (
        TORCH_LEARNING
        + 190
        + _mb(
            _FP32 * (pooled + 2 * layer)
            + _encoded(run, run.largest.tokens)
            + 2 * run.decoder
            + _pairs(texts)
            + _table(run.largest)
        )
    )


def detector_class(run: Run) -> int:
    """What the training of detectors holds, and a process for the class.

    A user's class may need more, on a second attempt.
    """
    return detectors(run) + TORCH_LEARNING


def score_table(run: Run) -> int:
    """The rows of a table of scores as Python objects, and the long table of all scores."""
    return TABLES + 15 + _mb(_TEXT * run.together.texts + _scores(run))


def seeds(run: Run) -> int:
    """What the training of detectors holds."""
    return detectors(run)


def transfer(run: Run) -> int:
    """What the training of detectors holds, for the texts of all data sets."""
    return detectors(run._replace(datasets={"all": run.together}))


def saved_detector(run: Run) -> int:
    """One layer of the texts of all data sets, Gram matrices, the SAEs, and the probes of all folds."""
    texts, columns = run.together.texts, run.d_sae
    folds = max(run.settings.detection.folds, 3) + 1
    width = min(_FIRING * columns, texts)
    gram = (folds + _GRAM_COPIES) * _FP64 * width**2
    rotation = _FP32 * texts * columns * (width == texts)
    layer = _FP32 * texts * (2 * columns + 2 * run.d_model) * 2
    probes = 4 * folds * _FP64 * run.layers * (2 * columns + 2 * run.d_model)
    return TORCH_LEARNING + _mb(
        gram
        + rotation
        + layer
        + probes
        + 2 * run.layers * run.decoder
        + _encoded(run, run.largest.tokens)
    )


def statement_detector(run: Run) -> int:
    """Pooled activations of all statements, a training part, columns of a pool, and products."""
    held = 5 * _FP32 * _statement_states(run) + 2 * _FP32 * _STATEMENT_PRODUCTS
    return LEARNING + _mb(held)


def _statement_states(run: Run) -> int:
    """Numbers in the pooled activations of all statements."""
    texts = _STATEMENT_KINDS * run.settings.detection.statements_per_kind
    return texts * _STATEMENT_POOLS * min(run.layers, _STATEMENT_LAYERS) * run.d_model


def tracked_arm(run: Run) -> int:
    """What tracking and the track metrics hold, for every data set in turn, and for links anew."""
    everything = run._replace(datasets={"all": run.together})
    return TORCH_TRACKS + max(
        part - floor
        for part, floor in (
            (tracking(run) + neighbours(run) - TORCH, TORCH_TRACKS),
            (signals(everything), TABLES),
        )
    )


def scored_arm(run: Run) -> int:
    """The track metrics of all data sets, and kernel matrices of the largest."""
    return LEARNING + _mb(
        _FP64 * _METRICS * run.together.texts + _pairs(run.largest.texts) + _scores(run)
    )


def judged_arms(run: Run) -> int:
    """The scores of all arms, a block of bootstrap draws, and a figure."""
    return evaluation(run) + FIGURES - TABLES


# ---- tables, figures and pages
def _scores(run: Run) -> int:
    """The long table of the scores of all data sets."""
    compared = run.settings.tracking.compare_candidates != "none"
    scores = _SCORES + (_CANDIDATE_SCORES if compared else 0)
    return _SCORE * scores * run.together.texts


def token_detectors(run: Run) -> int:
    """Activations of a layer twice, SAE features of its tokens, moments of every fold, scores.

    Also the lookback ratios with their means in single precision, and the columns used of them.
    """
    tokens, settings = run.largest.tokens, run.settings
    columns = max(min(run.d_sae, _WIDEST), _WORD_BUCKETS, run.d_model)
    # With chosen columns, a second matrix.
    features = (3 if run.d_sae <= _WIDEST else 4) * (_FP64 + _FP32) * tokens * settings.sae.k
    heads = 2 * run.attention_heads
    lookback = 2 * _lookback(run) + _FP32 * tokens * (heads + heads * (heads > _WIDEST))
    moments = (settings.detection.folds + _GRAM_COPIES) * _FP64 * columns**2
    scores = _FP64 * tokens * settings.detection.folds * (2 * run.layers + _TOKEN_SCORES)
    tables = _FP64 * tokens * _TOKEN_COLUMNS
    return (
        TORCH_LEARNING
        + 40
        + _mb(
            2 * _FP32 * tokens * run.d_model
            + features
            + lookback
            + moments
            + scores
            + tables
            + _encoded(run, tokens)
            + 2 * run.decoder
        )
    )


def token_evaluation(run: Run) -> int:
    """Scores of all tokens, and resampled bins of one score."""
    bins = _TOKEN_BINS * (run.settings.evaluation.bootstrap * 4 + 2 * run.largest.texts)
    return LEARNING + _mb(_FP64 * (run.largest.tokens * 2 * _TOKEN_COLUMNS // 3 + bins))


def evaluation(run: Run) -> int:
    """All scores, and a block of bootstrap draws."""
    draws = min(_BOOTSTRAP, run.settings.evaluation.bootstrap * run.largest.texts)
    return LEARNING - 10 + _mb(_scores(run) + _BOOTSTRAP_COPIES * _FP64 * draws)


def checks(run: Run) -> int:
    """All scores, and the texts of all data sets."""
    return TABLES + 15 + _mb(_scores(run) + sum(map(_table, run.datasets.values())))


def figures(run: Run) -> int:
    """Tables of metrics, of the track metrics and of the links, and one figure at a time."""
    links = 4 * (_FP32 + _FP32) * run.layers * run.d_sae * run.settings.tracking.neighbours
    metrics = _FP64 * _METRICS * run.together.texts
    return FIGURES + _mb(links + metrics + _DRAWN * (len(run.datasets) + 2 * run.layers))


def comparison(run: Run, models: int) -> int:
    """The scores of several models, and a block of bootstrap draws."""
    return evaluation(run) + _mb((models - 1) * _scores(run)) + FIGURES - TABLES


def page(run: Run) -> int:
    """Small tables, the links between all layers, and a page with its figures."""
    return TABLES + 15 + _mb(_LINKED_FEATURE * run.d_sae * max(run.layers - 1, 0))


def costs(_run: Run) -> int:
    """Small tables without pandas."""
    return PLAIN


def explorer(run: Run) -> int:
    """The tokenizer, the texts with their tracks, and the descriptions of the features."""
    shown = min(run.settings.report.explorer_texts, run.together.texts)
    share = shown / max(run.together.texts, 1)
    tokens = run.together.tokens * share
    most = run.settings.report.explorer_tracks
    tracks = min(tokens * most, max(tokens * _LEAST_TRACKS, _DRAWN_TRACKS)) * _SHOWN
    return (
        TORCH_LEARNING
        - 40
        + _mb(
            _tokenizer(run)
            + _table(run.together)
            + tracks
            + _scores(run)
            + run.layers * run.d_sae * _DESCRIBED
        )
    )


# ---- beside a run
def verification(_run: Run) -> int:
    """Chunks of a store, one after the other."""
    return TABLES + 64


def gpu_check(run: Run) -> int:
    """Training of the model's SAE on random rows, on the CPU and on a GPU."""
    return training(run) + TORCH_LEARNING - TORCH + _mb(_trained(run))


# ---- on an accelerator, in bytes
def device_training(settings: Settings) -> int:
    """Weights, gradients and moments of an SAE, and the pre-activations of a micro-batch."""
    assert settings.dimensions is not None
    rows = min(settings.sae.batch, _BLOCK_ROWS)
    weights = _DEVICE_COPIES * 2 * settings.sae.d_sae * settings.dimensions.d_model
    return _FP32 * (weights + rows * (_BLOCK_COPIES * settings.sae.d_sae))


def device_model(run: Run) -> int:
    """Weights of the model, a batch of contexts in one block, and the logits of scored tokens."""
    rows = _CONTEXTS * run.settings.corpus.context * run.d_model
    return model_weights(run) + _FP32 * rows * _STREAMS // 2 + _head(run)


def _mb(size: float) -> int:
    """Bytes in MB, rounded up."""
    return math.ceil(size / 1e6)
