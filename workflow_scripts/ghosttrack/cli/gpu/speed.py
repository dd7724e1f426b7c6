"""Speed of the heavy phases on a device: extraction, SAE training, feeding, generation.

Every rate is given with its share of a limit that the same run measured (see `card.limits`), so
that results of two cards or two versions can be compared.
"""

import functools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ghosttrack.activations import extraction, hooks
from ghosttrack.activations.decoding import complete
from ghosttrack.activations.limits import Limits as ReadingLimits
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.cli.gpu import card
from ghosttrack.cli.gpu.measurement import Measurement
from ghosttrack.inputs import sites
from ghosttrack.inputs.tiny import build_tokenizer
from ghosttrack.runtime import gpu_usage
from ghosttrack.sae import speed
from ghosttrack.sae.engine import Engine, back_end
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.training import architecture
from ghosttrack.settings import SaeSettings

_WARM_UP = 3
# Contexts of a forward pass of extraction, as in rules/extract.smk.
_CONTEXTS = 16
# Interval between two samples of the GPU's utilisation, in seconds.
_SAMPLE_SECONDS = 0.5


class Shape(NamedTuple):
    """Dimensions of a GPT-2 model with random weights."""

    name: str
    n_layers: int
    d_model: int
    vocab_size: int = 50_257
    context: int = 1024

    @property
    def flops(self) -> float:
        """Operations of the products with weights in all blocks, per token."""
        return 2.0 * 12 * self.n_layers * self.d_model**2


class Sizes(NamedTuple):
    """How large and how long the measurements are."""

    shapes: tuple[Shape, ...]
    written_layers: int  # layers that extraction writes
    d_model: int  # of the SAE and of the fed rows
    d_sae: int
    batches: tuple[int, ...]
    rows: int  # rows of the stores that are fed
    answers: int  # questions per batch
    seconds: float  # of one measurement


FULL = Sizes(
    (Shape("GPT-2 small", 12, 768), Shape("GPT-2 medium", 24, 1024)),
    written_layers=4,
    d_model=1024,
    d_sae=16_384,
    batches=(4096, 16_384),
    rows=393_216,
    answers=32,
    seconds=3.0,
)
# For a rehearsal without a GPU.
SMALL = Sizes(
    (Shape("a small GPT-2", 2, 64, 1000, 64),),
    written_layers=2,
    d_model=64,
    d_sae=256,
    batches=(256,),
    rows=8192,
    answers=4,
    seconds=0.05,
)


def gpt2(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """A GPT-2 of this shape with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=max(1, shape.d_model // 64),
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device(device):
        model = GPT2LMHeadModel(config)
    return model.to(dtype).requires_grad_(False).eval()


def extraction_speed(
    sizes: Sizes, device: torch.device, limits: card.Limits
) -> Iterator[Measurement]:
    """Tokens per second of the bare forward pass and of a whole extraction job, by precision."""
    for shape in sizes.shapes:
        layers = range(shape.n_layers - sizes.written_layers, shape.n_layers)
        for precision in card.PRECISIONS:
            model = gpt2(shape, device, card.set_precision(precision))
            ids = torch.randint(shape.vocab_size, (_CONTEXTS, shape.context), device=device)
            modules = sites.site_modules(model, layers, "resid_post")
            with torch.inference_mode(), hooks.on_output(modules, lambda *_: None, stop=True):
                per_second = card.rate(
                    functools.partial(hooks.run_to_highest, model, ids), device, sizes.seconds
                )
            bare = per_second * ids.numel()
            name = f"{shape.name}, {precision}"
            yield Measurement(
                "extraction",
                f"{name}: forward pass alone",
                bare,
                "tokens/s",
                bare * shape.flops / limits.flops[precision],
                "large matrix products",
            )
            for storage in ("fp16", "int8s"):
                tokens, seconds, busy = _extract(
                    model, shape, layers, storage, bare * 2 * sizes.seconds
                )
                whole = tokens / seconds
                yield Measurement(
                    "extraction",
                    f"{name}: {len(layers)} layers to {storage} stores",
                    whole,
                    "tokens/s",
                    whole / bare,
                    "the forward pass alone",
                )
                if busy is not None:
                    yield Measurement(
                        "extraction", f"{name}: utilisation, {storage}", busy, "% of the time"
                    )
            del model
            _free(device)


def _extract(
    model: Any, shape: Shape, layers: range, storage: Any, tokens: float
) -> tuple[int, float, float | None]:
    """Tokens, seconds and utilisation of an extraction job of about `tokens` tokens."""
    contexts = max(1, round(tokens / (_CONTEXTS * shape.context))) * _CONTEXTS
    corpus = np.random.default_rng(0).integers(
        shape.vocab_size, size=(contexts, shape.context), dtype=np.int32
    )
    with tempfile.TemporaryDirectory() as name, _utilisation() as busy:
        folder = Path(name)
        targets = [
            extraction.StoreFiles(folder / f"layer_{layer}.zarr", folder / f"layer_{layer}.json")
            for layer in layers
        ]
        began = time.perf_counter()
        extraction.extract_contexts(
            model,
            extraction.ModelIdentity("random", "random"),
            corpus,
            list(layers),
            targets,
            extraction.Extraction("resid_post", _CONTEXTS, storage=storage),
        )
        seconds = time.perf_counter() - began
    return corpus.size, seconds, busy.get("percent")


@contextmanager
def _utilisation() -> Iterator[dict[str, float]]:
    """Mean utilisation of the GPU during the block, under the key `percent`, if it is known."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "gpu.tsv"
        with gpu_usage.sampled(path, _SAMPLE_SECONDS):
            yield result
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()[
                2:
            ]  # the first is before the work
            values = [float(line.split("\t")[1]) for line in lines]
            if values:
                result["percent"] = sum(values) / len(values)


def step_speed(sizes: Sizes, device: torch.device, limits: card.Limits) -> Iterator[Measurement]:
    """Tokens per second and MFU of an SAE training step on rows that are on the device already."""
    for batch in sizes.batches:
        for precision in ("fp32", "tf32", "bf16"):
            for graph in (False, True) if device.type == "cuda" else (False,):
                settings = SaeSettings(d_sae=sizes.d_sae, k=32, batch=batch, precision=precision)
                timing = time_steps(
                    sizes.d_model, settings, device, batch, sizes.seconds, cuda_graph=graph
                )
                peak = limits.flops[_PRODUCTS[precision]]
                yield Measurement(
                    "SAE step",
                    f"batch {batch:,}, {precision}" + (", CUDA graph" if graph else ""),
                    timing.tokens_per_second,
                    "tokens/s",
                    1e12 * timing.teraflops / peak,
                    "large matrix products",
                )
                if timing.memory_mb and not graph:
                    yield Measurement(
                        "SAE step", f"batch {batch:,}, {precision}: peak", timing.memory_mb, "MB"
                    )
                _free(device)


_PRODUCTS = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}


class Timing(NamedTuple):
    """Training speed on one device.

    `share` is the model FLOPs utilisation (MFU): the FLOP/s of training divided by those of plain
    matrix products of the same size on this device.
    """

    name: str
    tokens_per_second: float
    teraflops: float
    share: float
    memory_mb: float  # peak on a GPU, 0 on a CPU

    @property
    def line(self) -> str:
        """The result as a line of the log."""
        memory = f", peak memory {self.memory_mb:,.0f} MB" if self.memory_mb else ""
        return (
            f"{self.name}: {self.tokens_per_second:,.0f} tokens/s, {self.teraflops:.3g} TFLOP/s, "
            f"MFU {self.share:.0%} of plain matrix products of this size{memory}"
        )


def time_steps(
    d_model: int,
    sae: SaeSettings,
    device: torch.device,
    micro_batch: int,
    seconds: float,
    *,
    cuda_graph: bool = False,
) -> Timing:
    """Train an SAE with the batch and precision of `sae` on noise for about `seconds`."""
    generator = torch.Generator().manual_seed(0)
    engine = _engine(d_model, sae, device, micro_batch, cuda_graph=cuda_graph)
    x = torch.randn(sae.batch, d_model, generator=generator).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    engine.initialise(x)
    for _ in range(_WARM_UP):
        l0 = engine.step(x, 1e-4).l0
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not steps:
        engine.step(x, 1e-4)  # reads the loss back, which waits for the device
        steps += 1
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0
    rate = speed.step_flops(engine, sae.batch, l0) * steps / elapsed
    return Timing(
        f"a step of {sae.batch:,} tokens, d_model {d_model}, d_sae {sae.d_sae}, {sae.precision}"
        + (", as a CUDA graph" if cuda_graph else ""),
        sae.batch * steps / elapsed,
        rate / 1e12,
        rate / speed.matmul_rate(engine, sae.batch),
        memory,
    )


def _engine(
    d_model: int, sae: SaeSettings, device: torch.device, micro_batch: int, *, cuda_graph: bool
) -> Engine:
    return Engine(
        Parameters.tied(d_model, sae.d_sae, torch.Generator().manual_seed(0)).to(device),
        architecture(sae),
        aux_coefficient=sae.aux_coefficient,
        dead_after_tokens=10**12,
        back_end=back_end(device, micro_batch, sae.precision),
        cuda_graph=cuda_graph,
    )


def feeding_speed(sizes: Sizes, device: torch.device, limits: card.Limits) -> Iterator[Measurement]:
    """Rows per second of the sampler alone, and of training steps that it feeds."""
    batch = sizes.batches[0]
    settings = SaeSettings(d_sae=sizes.d_sae, k=32, batch=batch, precision="bf16")
    unfed = time_steps(sizes.d_model, settings, device, batch, sizes.seconds)
    for storage, row_bytes in (("fp16", 2 * sizes.d_model), ("int8s", sizes.d_model + 4)):
        with tempfile.TemporaryDirectory() as name:
            store = _store(Path(name), sizes, storage)
            for resident in (True, False):
                sampler = ChunkSampler(store, batch, 0, resident, device=device)
                home = "resident" if resident else "read window by window"
                rows = batch * _steps_per_second(sampler, device, sizes.seconds)
                yield Measurement(
                    "feeding",
                    f"{storage}, {home}: rows alone",
                    rows,
                    "rows/s",
                    rows * row_bytes / limits.to_device,
                    "a copy from the host",
                )
                engine = _engine(sizes.d_model, settings, device, batch, cuda_graph=False)
                engine.initialise(sampler.batch_at(0).to(device))
                fed = batch * _steps_per_second(sampler, device, sizes.seconds, engine)
                yield Measurement(
                    "feeding",
                    f"{storage}, {home}: training",
                    fed,
                    "tokens/s",
                    fed / unfed.tokens_per_second,
                    "training on rows that are on the device",
                )
        _free(device)


def _steps_per_second(
    sampler: ChunkSampler, device: torch.device, seconds: float, engine: Engine | None = None
) -> float:
    """Batches per second, with a training step on each if there is an engine."""
    step = 0

    def advance() -> None:
        nonlocal step
        x = sampler.batch_at(step).to(device)
        if engine is not None:
            engine.step(x, 1e-4)
        step += 1

    return card.rate(advance, device, seconds)


def _store(folder: Path, sizes: Sizes, storage: Any) -> ActivationStore:
    """A store of normally distributed rows."""
    target = folder / "layer.zarr", folder / "layer.json"
    header = Header("random", "random", 0, "resid_post", 1024, "random", storage)
    block = torch.randn(4096, sizes.d_model, generator=torch.Generator().manual_seed(0))
    with StoreWriter(*target, header, rows=sizes.rows, d_model=sizes.d_model) as writer:
        for _ in range(0, sizes.rows, len(block)):
            writer.append(to_block(block))
    return ActivationStore.open([target[0]], [target[1]])


def generation_speed(sizes: Sizes, device: torch.device) -> Iterator[Measurement]:
    """Answers per second of eight tokens to prompts of 150 to 160 tokens."""
    tokenizer = build_tokenizer()
    shape = sizes.shapes[-1]
    length = min(150, shape.context // 2)
    limits = ReadingLimits(
        packed=0, padded=shape.context, cached=shape.context, batched=True, skipped=True, named=True
    )
    random = np.random.default_rng(0)
    prompts = [
        [0, *random.integers(1, shape.vocab_size, size=length + number % 10).tolist()]
        for number in range(sizes.answers)
    ]
    for precision in card.PRECISIONS:
        model = gpt2(shape, device, card.set_precision(precision))
        with torch.inference_mode():
            answer = functools.partial(
                complete,
                model,
                tokenizer,
                prompts,
                limits=limits,
                max_new_tokens=8,
                batch=sizes.answers,
                dataset="random prompts",
            )
            per_second = card.rate(answer, device, sizes.seconds, warm_up=1)
        yield Measurement(
            "generation", f"{shape.name}, {precision}", per_second * len(prompts), "answers/s"
        )
        del model
        _free(device)


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
