"""Compare kinds of dictionaries and links on the activations of a finished run.

    PYTHONPATH=workflow_scripts python benchmarks/dictionaries.py --help

An arm is a kind of dictionary (`sae.dictionaries`) with each kind of link that it allows. Real
answer tokens are tracked with the settings of the run's model. The columns:

FVU             held-out fraction of variance unexplained at equal L0, mean over layers (every layer's
                threshold gives a mean L0 of k); worse: largest increase over the independent one, in %
links           per token and pair of layers; null: with permuted decoders or shifted tokens
next            P(the linked feature fires at the next layer | this one fires), over each feature's best
                link; shuffled: the same with the targets shuffled among these links
length          mean detections per track; random: with as many random links
same            mean cosine of the decoder rows of equal index in adjacent layers
CPU             seconds of training all layers, and of all comparisons of layers
"""

import argparse
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import cost, show

from ghosttrack import sae
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.planning.configuration import load
from ghosttrack.runtime import files
from ghosttrack.sae import Sae
from ghosttrack.sae.initialisation import (
    WarmStart,
    seed_of,
    unfold_normalisation,
    warm_start_settings,
)
from ghosttrack.sae.model import CFG_NAME, WEIGHTS_NAME, save
from ghosttrack.sae.quality import ReconstructionSums
from ghosttrack.sae.rows import blocks, mean_of
from ghosttrack.sae.shared_rows import training_layers
from ghosttrack.sae.training import Dictionary, TrainedSae, TrainingLayer, train
from ghosttrack.settings import SaeSettings, Settings
from ghosttrack.tracks.neighbour_run import LinkKind, compare_as
from ghosttrack.tracks.neighbours import LayerComparison, Links, links
from ghosttrack.tracks.similarity import ActivationCorrelation, DecoderCosine, codes_of
from ghosttrack.tracks.tracking import TrackerOptions, detect, follow, shuffle_links

KINDS: dict[str, tuple[LinkKind, ...]] = {
    "independent": ("cosine", "correlation"),
    "shared_init": ("cosine", "correlation", "identity"),
    "warm_start": ("cosine", "correlation", "identity"),
    "shared": ("cosine", "correlation", "identity"),
}
COLUMNS = (
    "dictionaries",
    "links by",
    "FVU",
    "worse %",
    "same",
    "links",
    "null",
    "next",
    "shuffled",
    "length",
    "random",
    "of",
    "CPU train",
    "CPU compare",
)
# Tokens per batch.
BATCH = 1024


class Layer(NamedTuple):
    """Activation stores of one layer."""

    number: int
    train: ActivationStore
    heldout: ActivationStore
    answers: list[ActivationStore]


def opened(home: Path, number: int, datasets: Sequence[str]) -> Layer:
    """Open the stores of a finished run that kept its training activations."""
    name = f"layer_{number:02d}"
    shards = sorted((home / "activations" / name).glob("*.zarr"))
    single = [
        home / "heldout" / name,
        *(home / "examples" / dataset / name for dataset in datasets),
    ]
    heldout, *answers = (
        ActivationStore.open([path.with_suffix(".zarr")], [path.with_suffix(".json")])
        for path in single
    )
    return Layer(
        number,
        ActivationStore.open(shards, [shard.with_suffix(".json") for shard in shards]),
        heldout,
        answers,
    )


class Training(NamedTuple):
    """Training settings of an arm."""

    settings: SaeSettings
    warm_start: SaeSettings  # of layers that train from the warm start
    seed: int
    folder: Path  # directory of the trained SAEs


def trained(arm: str, layers: Sequence[Layer], training: Training) -> tuple[list[Sae], float]:
    """Train the SAEs of one arm, or read them from the folder; also the CPU seconds of training."""
    middle = len(layers) // 2
    names = [f"{arm}/layer_{layer.number:02d}" for layer in layers]
    if arm == "warm_start":  # the first layer is trained as in shared_init
        names[middle] = f"shared_init/layer_{layers[middle].number:02d}"
    places = [training.folder / name for name in names]
    if arm == "shared":
        if not places[0].exists():
            shared(layers, places, training)
        return [sae.load(place) for place in places], cpu_of(places)
    for number in sorted(range(len(layers)), key=lambda number: number != middle):
        if not places[number].exists():
            start = (
                unfold_normalisation(sae.load(places[middle]))
                if arm == "warm_start" and number != middle
                else None
            )
            one(arm, layers[number], places[number], training, start)
    return [sae.load(place) for place in places], cpu_of(places)


def shared(layers: Sequence[Layer], places: Sequence[Path], training: Training) -> None:
    """Train one dictionary for all layers."""
    chosen = training.settings.model_copy(update={"dictionaries": "shared"})
    sources = training_layers(
        [layer.train for layer in layers], chosen.batch, training.seed, resident=True
    )
    made: list[TrainedSae] = []
    dictionary = Dictionary(chosen, training.seed, training.folder / "state")
    spent = cost(lambda: made.extend(*train(sources, [dictionary], micro_batch=4096)))
    for place, layer, each in zip(places, layers, made, strict=True):
        keep(each.sae, place, layer.number, spent.cpu / len(layers))


def one(arm: str, layer: Layer, place: Path, training: Training, start: WarmStart | None) -> None:
    """One layer's autoencoder."""
    chosen = training.warm_start if start else training.settings
    made: list[TrainedSae] = []
    seed = seed_of(training.seed, layer.number, arm)
    sources = [TrainingLayer(layer.train, ChunkSampler(layer.train, chosen.batch, training.seed))]
    dictionary = Dictionary(chosen, seed, training.folder / "state", start)
    spent = cost(lambda: made.extend(*train(sources, [dictionary], micro_batch=4096)))
    keep(made[0].sae, place, layer.number, spent.cpu)


def keep(made: Sae, place: Path, layer: int, cpu: float) -> None:
    """Save an SAE, so that a second run of the benchmark does not train it again."""
    shutil.rmtree(place.parents[1] / "state")
    (place.parents[1] / "state").mkdir()
    place.mkdir(parents=True)
    weights, cfg = place / WEIGHTS_NAME, place / CFG_NAME
    save(made, weights, cfg, hook_name=f"blocks.{layer}.hook_resid_post", model_name="benchmark")
    files.write_json(place / "cpu.json", cpu)


def cpu_of(places: Sequence[Path]) -> float:
    """CPU seconds of training the SAEs."""
    return sum(float(files.read_json(place / "cpu.json")) for place in places)


def fvu(model: Sae, store: ActivationStore) -> tuple[float, float]:
    """FVU and L0 on held-out rows."""
    sums, active, rows = ReconstructionSums(mean_of(store)), 0, 0
    with torch.inference_mode():
        for x in blocks(store):
            code = model.encode(x)
            sums.add(x, model.decode(code))
            active, rows = active + int((code > 0).sum()), rows + len(x)
    return sums.result().fvu, active / rows


def compared(
    kind: LinkKind, saes: Sequence[Sae], layers: Sequence[Layer], settings: Settings
) -> dict[int, list[LayerComparison]]:
    """Comparisons one and two layers ahead, as in rule find_neighbours."""
    tracking, comparisons = settings.tracking, dict[int, list[LayerComparison]]({1: [], 2: []})
    if kind == "correlation":
        included = ~np.any([layer.heldout.excluded for layer in layers], axis=0)
        codes = [
            codes_of(model, layer.heldout, included)
            for model, layer in zip(saes, layers, strict=True)
        ]
    for ahead, number in itertools.product((1, 2), range(len(layers))):
        if number + ahead >= len(layers):
            continue
        seed = [settings.seed, layers[number].number, layers[number + ahead].number]
        similarity: Any = (
            ActivationCorrelation(
                codes[number], codes[number + ahead], layers[0].heldout.context or 1, seed
            )
            if kind == "correlation"
            else DecoderCosine(saes[number].W_dec, saes[number + ahead].W_dec, seed)
        )
        comparisons[ahead].append(
            compare_as(kind, similarity, tracking.neighbours, tracking.gate_quantile)
        )
    return comparisons


class Tracked(NamedTuple):
    """Statistics of the tracks of answer tokens with one set of links."""

    links: float  # per token and pair of layers
    length: float  # detections per track
    random_length: float
    next: float
    shuffled: float
    hard: float  # fraction of candidate links that needed the solver


def tracked(
    codes: Sequence[np.ndarray], tables: dict[int, list[Links]], options: TrackerOptions, seed: int
) -> Tracked:
    """Track answer tokens, codes (tokens, d_sae) of each layer, and count links."""
    tokens, steps = len(codes[0]), len(codes) - 1
    sums = np.zeros(5)
    for start in range(0, tokens, BATCH):
        detections_of_layers = [
            detect(code[start : start + BATCH], options.ranks) for code in codes
        ]
        table, candidates, hard = follow(detections_of_layers, tables[1], tables[2], options)
        random = shuffle_links(table, options.top_k, np.random.default_rng([seed, start]))
        sums += [
            int((table.gap > 0).sum()),
            int((table.feature >= 0).sum()),
            candidates,
            hard,
            int((random.gap > 0).sum()),
        ]
    linked, detections, links, hard_links, random_links = sums.tolist()
    hits = np.zeros((steps, 3))
    generator = np.random.default_rng(seed)
    for step in range(steps):
        hits[step] = followed(codes[step] > 0, codes[step + 1] > 0, tables[1][step], generator)
    fires, next_fires, shuffled_fires = hits.sum(0)
    return Tracked(
        linked / tokens / steps,
        detections / (detections - linked),
        detections / (detections - random_links),
        next_fires / max(fires, 1),
        shuffled_fires / max(fires, 1),
        hard_links / max(links, 1),
    )


def followed(
    lower: np.ndarray, upper: np.ndarray, table: Links, generator: np.random.Generator
) -> list[int]:
    """Firings of linked features, of the targets of their best links, and of shuffled targets.

    The second and third count tokens on which the feature and the target both fire.
    """
    count = np.diff(table.start)
    feature = np.flatnonzero(count)
    entry = np.lexsort(
        (-table.surplus, np.repeat(np.arange(len(count)), count))
    )  # by feature, best first
    target = table.target[entry[table.start[feature]]]
    fires = lower[:, feature]
    shuffled = target[generator.permutation(len(target))]
    return [
        int(fires.sum()),
        int((fires & upper[:, target]).sum()),
        int((fires & upper[:, shuffled]).sum()),
    ]


def main() -> None:
    """Train the arms, track answer tokens, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        type=Path,
        help="folder of a finished run whose activations were kept, results/NAME",
    )
    parser.add_argument(
        "--layers", default="", help="such as 10,14; default: all layers of the run"
    )
    parser.add_argument("--arms", default=",".join(KINDS))
    parser.add_argument("--kinds", default="cosine,correlation,identity", help="kinds of links")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--warm-start-epochs",
        type=int,
        help="of the layers that are warm-started; default as --epochs",
    )
    parser.add_argument(
        "--warm-start-rate", type=float, help="learning rate of these layers; default the model's"
    )
    parser.add_argument("--datasets", default="cities,languages,us_cities")
    parser.add_argument("--tokens", type=int, default=3000, help="answer tokens of each data set")
    parser.add_argument(
        "--keep",
        type=Path,
        required=True,
        help="directory of the trained SAEs; SAEs in it are not trained again",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    (settings,) = load({"model": given.results.name}, Path(__file__).parents[1] / "config").values()
    numbers = (
        [int(number) for number in given.layers.split(",")] if given.layers else settings.layers
    )
    layers = [opened(given.results, number, given.datasets.split(",")) for number in numbers]
    given.keep.mkdir(parents=True, exist_ok=True)
    (given.keep / "state").mkdir(exist_ok=True)
    chosen = settings.sae.model_copy(update={"epochs": given.epochs})
    warm_start: dict[str, Any] = {
        "dictionaries": "warm_start",
        "warm_start_epochs": given.warm_start_epochs,
    }
    if given.warm_start_rate:
        warm_start["learning_rate"] = given.warm_start_rate
    training = Training(
        chosen, warm_start_settings(chosen.model_copy(update=warm_start)), settings.seed, given.keep
    )
    tracking = settings.tracking
    options = TrackerOptions.from_settings(tracking)
    rows: list[list[Any]] = []
    base: list[float] = []
    for arm in given.arms.split(","):
        made, spent = trained(arm, layers, training)
        measured = [fvu(each, layer.heldout) for each, layer in zip(made, layers, strict=True)]
        losses = [loss for loss, _ in measured]
        base = base or losses
        unit = [torch.nn.functional.normalize(each.W_dec, dim=1) for each in made]
        same = [float((lower * upper).sum(1).mean()) for lower, upper in itertools.pairwise(unit)]
        print(
            arm,
            "FVU (L0) by layer:",
            " ".join(f"{loss:.4f} ({l0:.1f})" for loss, l0 in measured),
            flush=True,
        )
        print(
            arm,
            "cosine of equal indices, by pair:",
            " ".join(f"{value:.3f}" for value in same),
            flush=True,
        )
        codes = [
            answer_codes(each, layer, given.tokens)
            for each, layer in zip(made, layers, strict=True)
        ]
        for kind in [kind for kind in KINDS[arm] if kind in given.kinds.split(",")]:
            pairs: dict[int, list[LayerComparison]] = {}
            comparing = cost(lambda: pairs.update(compared(kind, made, layers, settings)))
            real, null = (
                {
                    ahead: [links(getattr(pair, name), pair.gate) for pair in found]
                    for ahead, found in pairs.items()
                }
                for name in ("real", "permuted")
            )
            result, chance = (
                tracked(codes, tables, options, settings.seed) for tables in (real, null)
            )
            print(
                arm,
                kind,
                "gates",
                " ".join(f"{pair.gate:.3f}" for pair in pairs[1]),
                "features with a link",
                " ".join(f"{(pair.best > pair.gate).mean():.3f}" for pair in pairs[1]),
                "covered",
                all(pair.covered for pair in pairs[1]),
                f"hard {result.hard:.5f}",
                flush=True,
            )
            rows.append(
                [
                    arm,
                    kind,
                    float(np.mean(losses)),
                    100 * max(a / b - 1 for a, b in zip(losses, base, strict=True)),
                    float(np.mean(same)),
                    result.links,
                    chance.links,
                    result.next,
                    result.shuffled,
                    result.length,
                    result.random_length,
                    len(layers),
                    spent,
                    comparing.cpu,
                ]
            )
    show(f"{given.results.name}, layers {numbers}, {len(codes[0])} answer tokens", COLUMNS, rows)


@torch.inference_mode()
def answer_codes(model: Sae, layer: Layer, tokens: int) -> np.ndarray:
    """Codes (tokens of all data sets, d_sae); rows with massive activations are 0."""
    parts = []
    for store in layer.answers:
        count = min(tokens, store.rows)
        code = model.encode(torch.from_numpy(store.read(0, count).astype(np.float32))).numpy()
        code[store.massive[:count]] = 0
        parts.append(code)
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
