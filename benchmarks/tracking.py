"""Tracking against the original's algorithm, and its cost as tokens, layers and activations grow.

    python benchmarks/tracking.py speed results/NAME   texts per CPU second: tracks and metrics of one token
    python benchmarks/tracking.py growth results/NAME  CPU time against tokens and layers
    python benchmarks/tracking.py memory               peak memory of the tracking job on synthetic data

The reference of `speed` is original_tracker.py on the same codes. On one machine, the original's
step of 50 x 50 pairs took 46 ms of CPU time, and a bare loop over the cosines of 50 x 50 pairs of
768 numbers took 15.4 ms. The loop is timed here too, which gives the original's time on this
machine. Where the reference is slower than that, ratios are scaled down. Encoding is not included,
and printed separately.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import original_tracker
import torch
from measure import cost, show

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.sae import Sae
from ghosttrack.sae.model import save
from ghosttrack.settings import OriginalTrackingSettings
from ghosttrack.tracks.metrics import measure
from ghosttrack.tracks.neighbours import compare, load_links
from ghosttrack.tracks.neighbours import save as save_neighbours
from ghosttrack.tracks.track_metrics import BLOCK
from ghosttrack.tracks.track_run import LinkPlan, TrackingPlan, plan_original
from ghosttrack.tracks.track_table import ROWS
from ghosttrack.tracks.tracking import TrackerOptions, detect

# CPU milliseconds of the original's association step, and of the bare loop on the same machine.
STEP_MS, LOOP_MS = 46.0, 15.4
WIDE = TrackerOptions(50, 4, 1, 0.0)
NARROW = TrackerOptions(50, 1, 0, 0.0)


class Run(NamedTuple):
    """Data of a finished run."""

    saes: list[Sae]
    codes: list[np.ndarray]  # (texts, d_sae) of each layer: the last answer token of every text
    plan: LinkPlan
    encoding: float  # CPU seconds of all codes


def opened(home: Path, dataset: str, texts: int) -> Run:
    """Load one token of model of `texts` texts."""
    folders = sorted((home / "saes").glob("layer_*"))
    saes = [sae.load(folder) for folder in folders]
    paths = [home / "examples" / dataset / folder.name for folder in folders]
    stores = [
        ActivationStore.open([path.with_suffix(".zarr")], [path.with_suffix(".json")])
        for path in paths
    ]
    rows = np.random.default_rng(0).permutation(stores[0].rows)[:texts]
    values = [torch.from_numpy(store.read()[rows].astype(np.float32)) for store in stores]
    codes: list[np.ndarray] = []
    with torch.inference_mode():
        spent = cost(
            lambda: codes.extend(
                model.encode(x).numpy() for model, x in zip(saes, values, strict=True)
            )
        )
    stored = [
        load_links(home / "neighbours" / f"{folder.name}.npz", permuted=False)
        for folder in folders[:-1]
    ]
    plan = LinkPlan(
        list(range(len(saes))),
        [entry.adjacent for entry in stored],
        [entry.skip for entry in stored[:-1]],
    )
    return Run(saes, codes, plan, spent.cpu)


def ours(codes: Sequence[np.ndarray], plan: TrackingPlan, options: TrackerOptions) -> None:
    """Tracks and metrics of all tokens, from codes."""
    scale = np.ones(len(codes))
    for start in range(0, len(codes[0]), ROWS):
        table = plan.follow(
            [detect(code[start : start + ROWS], options.ranks) for code in codes], options
        ).table
        for first in range(0, len(table.feature), BLOCK):
            measure(table.part(first, first + BLOCK), scale)


def reference(
    codes: Sequence[np.ndarray], decoders: list[np.ndarray], texts: int, *, fast: bool
) -> None:
    """Tracks and metrics by the original's algorithm."""
    for text in range(texts):
        tracks = original_tracker.track([code[text] for code in codes], decoders, fast=fast)
        original_tracker.measure(tracks, len(codes))


def step_ms(run: Run, decoders: list[np.ndarray], steps: int) -> float:
    """CPU milliseconds of one association of 50 with 50 in the plain reference."""
    full = np.flatnonzero(
        np.min([(code > 0).sum(1) for code in run.codes[:2]], axis=0) >= original_tracker.TOP_K
    )
    lower, upper = (
        [original_tracker.features(code[text], decoder) for text in full[:steps]]
        for code, decoder in zip(run.codes[:2], decoders[:2], strict=True)
    )
    before = [[original_tracker.Track(0, {0: each}) for each in found] for found in lower]
    spent = cost(
        lambda: [
            original_tracker.associate(tracks, found, 1, fast=False)
            for tracks, found in zip(before, upper, strict=True)
        ]
    )
    return 1000 * spent.cpu / len(upper)


def loop_ms(repeats: int = 20) -> float:
    """CPU milliseconds of 50 x 50 cosines of 768 numbers in a Python loop."""
    rows, others = np.random.default_rng(0).standard_normal((2, 50, 768)).astype(np.float32)

    def loop() -> None:
        found = np.zeros((50, 50))
        for i in range(50):
            for j in range(50):
                lengths = np.linalg.norm(rows[i]) * np.linalg.norm(others[j])
                found[i, j] = np.dot(rows[i], others[j]) / lengths

    return 1000 * min(cost(loop).cpu for _ in range(repeats))


def speed(given: argparse.Namespace) -> None:
    """Texts per CPU second of model method."""
    run = opened(given.results, given.dataset, given.texts)
    decoders = [model.W_dec.numpy() for model in run.saes]
    layers, texts = len(decoders), len(run.codes[0])
    step = step_ms(run, decoders, 10)
    original = STEP_MS * loop_ms() / LOOP_MS
    scale = min(1.0, original / step)
    costs = OriginalTrackingSettings()
    methods: list[tuple[str, int, Callable[[int], Any]]] = [
        (
            "the original's algorithm, plain",
            8,
            lambda count: reference(run.codes, decoders, count, fast=False),
        ),
        (
            "the same, costs in one product",
            100,
            lambda count: reference(run.codes, decoders, count, fast=True),
        ),
        (
            "mode: original",
            texts,
            lambda _: ours(run.codes, plan_original("default", run.saes, costs, 0), NARROW),
        ),
        (
            "gated, no coasting, no second association",
            texts,
            lambda _: ours(run.codes, run.plan, NARROW),
        ),
        ("gated, as by default", texts, lambda _: ours(run.codes, run.plan, WIDE)),
    ]
    rates = [
        (name, count, cost(lambda: method(count)).cpu / count) for name, count, method in methods
    ]
    plain, fast = rates[0][2], rates[1][2]
    slow = (
        (layers - 1) * original / 1000 + rates[0][2] - (layers - 1) * step / 1000
    )  # the steps at the original's speed, the rest as in the reference
    encoding = run.encoding / texts
    rows = [
        [
            name,
            count,
            1000 * model,
            1 / model,
            fast / model,
            scale * plain / model,
            slow / model,
            (slow + encoding) / (model + encoding),
        ]
        for name, count, model in rates
    ]
    print(
        f"a step of 50 x 50: {step:.1f} ms of CPU in the reference, {original:.1f} in the original by the bare loop; "
        f"encoding {1000 * encoding:.3f} ms a text",
        flush=True,
    )
    show(
        f"{given.results.name}, {layers} layers, one token per text: CPU time, and speed relative to the references",
        [
            "method",
            "texts",
            "ms/text",
            "texts/s",
            "x one product",
            "x plain",
            "x original's step",
            "with encoding",
        ],
        rows,
        "speed",
    )


def growth(given: argparse.Namespace) -> None:
    """CPU seconds as tokens and layers grow; linear if the last column is constant."""
    run = opened(given.results, given.dataset, given.texts)
    texts, layers, rows = len(run.codes[0]), len(run.codes), []
    ours([code[:256] for code in run.codes], run.plan, WIDE)
    cases = [(layers, texts // part) for part in (8, 4, 2, 1)] + [
        (some, texts) for some in range(2, layers)
    ]
    for some, tokens in cases:
        plan = LinkPlan(list(range(some)), run.plan.adjacent[: some - 1], run.plan.skip[: some - 2])
        spent = min(
            cost(lambda: ours([code[:tokens] for code in run.codes[:some]], plan, WIDE)).cpu
            for _ in range(2)
        )
        rows.append([some, tokens, spent, 1e6 * spent / tokens / some])
    columns = ["layers", "tokens", "CPU s", "CPU us per token and layer"]
    show(f"{given.results.name}: tracking and metrics", columns, rows, "growth")
    if given.figure:
        draw(rows, layers, texts, given.figure)


def draw(rows: list[list[Any]], layers: int, texts: int, path: Path) -> None:
    """CPU time over tokens and over layers, with the proportional line through the last point."""
    from matplotlib.figure import Figure

    whole = next(row[2] for row in rows if row[0] == layers and row[1] == texts)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    for place, (label, column, end, kept) in enumerate(
        (("tokens", 1, texts, 0), ("layers", 0, layers, 1))
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        points = [(row[column], row[2]) for row in rows if row[kept] == (layers, texts)[kept]]
        axes.plot([0, end], [0, whole], color="0.6", linestyle="--", label="proportional")
        axes.plot(*zip(*sorted(points), strict=True), "o", label="measured")
        axes.set(xlabel=label, ylabel="CPU s", xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def memory(given: argparse.Namespace) -> None:
    """Run the tracking job's script on synthetic data, and print its peak memory."""
    generator = np.random.default_rng(0)
    base = generator.standard_normal((given.d_sae, given.d_model)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        arguments: dict[str, list[str]] = {
            "stores": [],
            "manifests": [],
            "weights": [],
            "neighbours": [],
        }
        layers = list(range(given.layers))
        decoders = []
        block = generator.standard_normal((4096, given.d_model)).astype(np.float32)
        # One threshold for all features, for a mean of about L0 active features.
        threshold = float(np.quantile(block[:256] @ base.T, 1 - given.l0 / given.d_sae))
        for layer in layers:
            noise = generator.standard_normal(base.shape).astype(np.float32) / np.sqrt(
                given.d_model
            )
            decoder = torch.nn.functional.normalize(torch.from_numpy(base + 0.75 * noise), dim=1)
            decoders.append(decoder)
            folder = home / f"layer_{layer:02d}"
            each = Sae(
                decoder.T.contiguous(),
                torch.zeros(given.d_sae),
                decoder,
                torch.zeros(given.d_model),
                torch.full((given.d_sae,), threshold),
            )
            arguments["weights"].append(str(folder / sae.model.WEIGHTS_NAME))
            save(
                each,
                folder / sae.model.WEIGHTS_NAME,
                folder / sae.model.CFG_NAME,
                hook_name="",
                model_name="synthetic",
            )
            store, manifest = home / f"{layer}.zarr", home / f"{layer}.json"
            header = Header("synthetic", "0" * 64, layer, "resid_post", None, "1" * 64)
            with StoreWriter(
                store, manifest, header, rows=given.tokens, d_model=given.d_model
            ) as out:
                for start in range(0, given.tokens, 4096):
                    turned = np.roll(block, start // 4096 + layer % 2, axis=0)[
                        : given.tokens - start
                    ]
                    out.append(to_block(turned))
            arguments["stores"].append(str(store))
            arguments["manifests"].append(str(manifest))
        # All layers are noisy copies of one dictionary, so one comparison serves every pair.
        adjacent, skip = (
            compare(decoders[0], decoders[ahead], 32, 0.999, [ahead]) for ahead in (1, 2)
        )
        for layer in layers[:-1]:
            arguments["neighbours"].append(str(home / f"{layer}.npz"))
            save_neighbours(
                Path(arguments["neighbours"][-1]),
                layers[layer : layer + 3],
                [adjacent, skip][: given.layers - 1 - layer],
            )
        code = (
            "import sys, json; from pathlib import Path; from track import track_features; "
            "from ghosttrack.settings import TrackingSettings; given = json.loads(sys.stdin.read()); "
            "track_features.main(**{key: [Path(each) for each in value] for key, value in given['paths'].items()}, "
            "errors=Path(given['errors']), layers=given['layers'], variants=['default'], tracking=TrackingSettings(), seed=0, threads=1)"
        )
        paths = {
            **arguments,
            "tracks": [str(home / "tracks.zarr")],
            "tracks_manifests": [str(home / "tracks.json")],
        }
        sent = json.dumps(
            {"paths": paths, "layers": layers, "errors": str(home / "errors.parquet")}
        )
        scripts = str(Path(__file__).parents[1] / "workflow_scripts")
        subprocess.run([sys.executable, "-c", code], input=sent, text=True, check=True, cwd=scripts)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        counts = json.loads((home / "tracks.json").read_text())["counts"]
        linked = (sum(counts["adjacent"]) + sum(counts["coasted"])) / given.tokens
        size = sum(
            path.stat().st_size for path in (home / "tracks.zarr").rglob("*") if path.is_file()
        )
        show(
            "memory of the tracking job",
            [
                "tokens",
                "layers",
                "d_model",
                "d_sae",
                "detections/token/layer",
                "links/token",
                "peak GB",
                "CPU s",
                "tracks GB",
            ],
            [
                [
                    given.tokens,
                    given.layers,
                    given.d_model,
                    given.d_sae,
                    sum(counts["detections"]) / given.tokens / given.layers,
                    linked,
                    used.ru_maxrss * 1024 / 1e9,
                    used.ru_utime + used.ru_stime,
                    size / 1e9,
                ]
            ],
            "memory",
        )


def main() -> None:
    """Run `speed`, `growth` or `memory`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = parser.add_subparsers(required=True)
    for call in (speed, growth, memory):
        part = chosen.add_parser(call.__name__, help=call.__doc__)
        part.set_defaults(call=call)
        if call is memory:
            for key, value in (
                ("tokens", 100_000),
                ("layers", 24),
                ("d-model", 576),
                ("d-sae", 2048),
                ("l0", 64),
            ):
                part.add_argument(f"--{key}", type=int, default=value)
            continue
        part.add_argument("results", type=Path, help="folder of a finished run, results/NAME")
        part.add_argument("--dataset", default="cities")
        part.add_argument("--texts", type=int, default=2048)
        if call is growth:
            part.add_argument("--figure", type=Path, help="write the figure to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.call(given)


if __name__ == "__main__":
    main()
