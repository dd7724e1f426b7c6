"""Dictionaries and links side by side on the activations of a finished run: `python benchmarks/dictionaries.py --help`.

Arms are dictionaries (`sae.dictionaries`), each followed by every kind of link that it allows. Real answer
tokens are tracked with the settings of the run's model. A row says:

FVU             on held-out text at equal L0 (every layer's threshold gives a mean of k), mean over layers; worse: the
                largest rise of a layer's FVU over the independent one, in per cent
links           per token and pair of layers, all, and by the links of the null (permuted decoders or shifted tokens)
next, relinked  P(the linked feature fires at the next layer | this one fires), over each feature's best link; and with
                the same features' links dealt out at random among them
length          mean detections per track; the same with as many links drawn at random
same            mean cosine of decoder rows of one number in adjacent layers
CPU             seconds of training all layers, and of all comparisons of layers
"""

import argparse
import csv
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
from ghosttrack.tracks.neighbours import Comparison, Links, links
from ghosttrack.tracks.similarity import ActivationCorrelation, DecoderCosine, codes_of
from ghosttrack.tracks.tracking import Options, detect, follow, relink

KINDS: dict[str, tuple[LinkKind, ...]] = {
    "independent": ("cosine", "correlation"),
    "common": ("cosine", "correlation", "identity"),
    "anchored": ("cosine", "correlation", "identity"),
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
    "relinked",
    "length",
    "random",
    "of",
    "CPU train",
    "CPU compare",
)
# Tokens tracked at once.
BATCH = 1024


class Layer(NamedTuple):
    """One layer's rows: to train on, held out, and of answers."""

    number: int
    train: ActivationStore
    heldout: ActivationStore
    answers: list[ActivationStore]


def opened(home: Path, number: int, datasets: Sequence[str]) -> Layer:
    """The stores of a finished run whose training activations were kept."""
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
    """How an arm is trained."""

    settings: SaeSettings
    warm_start: SaeSettings  # of layers that train from the warm start
    seed: int
    folder: Path  # where autoencoders are kept


def trained(arm: str, layers: Sequence[Layer], training: Training) -> tuple[list[Sae], float]:
    """The autoencoders of one arm, trained into the folder or read from it, and the CPU seconds that they took."""
    middle = len(layers) // 2
    names = [f"{arm}/layer_{layer.number:02d}" for layer in layers]
    if arm == "anchored":  # the anchor is trained as any other
        names[middle] = f"common/layer_{layers[middle].number:02d}"
    places = [training.folder / name for name in names]
    if arm == "shared":
        if not places[0].exists():
            shared(layers, places, training)
        return [sae.load(place) for place in places], cpu_of(places)
    for number in sorted(range(len(layers)), key=lambda number: number != middle):
        if not places[number].exists():
            start = (
                unfold_normalisation(sae.load(places[middle]))
                if arm == "anchored" and number != middle
                else None
            )
            one(arm, layers[number], places[number], training, start)
    return [sae.load(place) for place in places], cpu_of(places)


def shared(layers: Sequence[Layer], places: Sequence[Path], training: Training) -> None:
    """One dictionary for all layers."""
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
    """Write an autoencoder, so that a second run of the benchmark only compares."""
    shutil.rmtree(place.parents[1] / "state")
    (place.parents[1] / "state").mkdir()
    place.mkdir(parents=True)
    weights, cfg = place / WEIGHTS_NAME, place / CFG_NAME
    save(made, weights, cfg, hook_name=f"blocks.{layer}.hook_resid_post", model_name="benchmark")
    files.write_json(place / "cpu.json", cpu)


def cpu_of(places: Sequence[Path]) -> float:
    """CPU seconds of training them."""
    return sum(float(files.read_json(place / "cpu.json")) for place in places)


def fvu(each: Sae, store: ActivationStore) -> tuple[float, float]:
    """FVU and L0 on held-out rows."""
    sums, active, rows = ReconstructionSums(mean_of(store)), 0, 0
    with torch.inference_mode():
        for x in blocks(store):
            code = each.encode(x)
            sums.add(x, each.decode(code))
            active, rows = active + int((code > 0).sum()), rows + len(x)
    return sums.result().fvu, active / rows


def compared(
    kind: LinkKind, saes: Sequence[Sae], layers: Sequence[Layer], settings: Settings
) -> dict[int, list[Comparison]]:
    """Comparisons one and two layers ahead, as rule find_neighbours makes them."""
    tracking, found = settings.tracking, dict[int, list[Comparison]]({1: [], 2: []})
    if kind == "correlation":
        kept = ~np.any([layer.heldout.excluded for layer in layers], axis=0)
        codes = [
            codes_of(each, layer.heldout, kept) for each, layer in zip(saes, layers, strict=True)
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
        found[ahead].append(
            compare_as(kind, similarity, tracking.neighbours, tracking.gate_quantile)
        )
    return found


class Tracked(NamedTuple):
    """What the answer tokens say about a set of links."""

    links: float  # per token and pair of layers
    length: float  # detections per track
    random_length: float
    next: float
    relinked: float
    hard: float  # share of candidate links that needed the solver


def tracked(
    codes: Sequence[np.ndarray], tables: dict[int, list[Links]], options: Options, seed: int
) -> Tracked:
    """Track answer tokens, codes (tokens, d_sae) of each layer, and count."""
    tokens, steps = len(codes[0]), len(codes) - 1
    sums = np.zeros(5)
    for start in range(0, tokens, BATCH):
        found = [detect(code[start : start + BATCH], options.ranks) for code in codes]
        table, candidates, hard = follow(found, tables[1], tables[2], options)
        random = relink(table, options.top_k, np.random.default_rng([seed, start]))
        sums += [
            int((table.gap > 0).sum()),
            int((table.feature >= 0).sum()),
            candidates,
            hard,
            int((random.gap > 0).sum()),
        ]
    linked, detections, links, unsettled, drawn = sums.tolist()
    hits = np.zeros((steps, 3))
    generator = np.random.default_rng(seed)
    for step in range(steps):
        hits[step] = followed(codes[step] > 0, codes[step + 1] > 0, tables[1][step], generator)
    fires, next_fires, by_chance = hits.sum(0)
    return Tracked(
        linked / tokens / steps,
        detections / (detections - linked),
        detections / (detections - drawn),
        next_fires / max(fires, 1),
        by_chance / max(fires, 1),
        unsettled / max(links, 1),
    )


def followed(
    lower: np.ndarray, upper: np.ndarray, table: Links, generator: np.random.Generator
) -> list[int]:
    """How often linked features fire, how often their best link fires too, and a partner drawn from the others' links."""
    count = np.diff(table.start)
    feature = np.flatnonzero(count)
    entry = np.lexsort(
        (-table.surplus, np.repeat(np.arange(len(count)), count))
    )  # by feature, best first
    target = table.target[entry[table.start[feature]]]
    fires = lower[:, feature]
    drawn = target[generator.permutation(len(target))]
    return [
        int(fires.sum()),
        int((fires & upper[:, target]).sum()),
        int((fires & upper[:, drawn]).sum()),
    ]


def main() -> None:
    """Train the arms, track real answers, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        type=Path,
        help="folder of a finished run whose activations were kept, results/NAME",
    )
    parser.add_argument("--layers", default="", help="as 10,14; default all of the run")
    parser.add_argument("--arms", default=",".join(KINDS))
    parser.add_argument("--kinds", default="cosine,correlation,identity", help="kinds of links")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--anchored-epochs",
        type=int,
        help="of the layers that begin with the anchor; default as --epochs",
    )
    parser.add_argument(
        "--anchored-rate", type=float, help="learning rate of these layers; default the model's"
    )
    parser.add_argument("--datasets", default="cities,languages,us_cities")
    parser.add_argument("--tokens", type=int, default=3000, help="answer tokens of each data set")
    parser.add_argument(
        "--keep",
        type=Path,
        required=True,
        help="folder for the autoencoders; what is there is used",
    )
    parser.add_argument("--csv", type=Path, help="write the table there too")
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
    anchored: dict[str, Any] = {
        "dictionaries": "anchored",
        "anchored_epochs": given.anchored_epochs,
    }
    if given.anchored_rate:
        anchored["learning_rate"] = given.anchored_rate
    training = Training(
        chosen, warm_start_settings(chosen.model_copy(update=anchored)), settings.seed, given.keep
    )
    tracking = settings.tracking
    options = Options(tracking.top_k, tracking.rescue, tracking.coast, tracking.activation_weight)
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
            "FVU, L0 by layer:",
            " ".join(f"{loss:.4f} ({l0:.1f})" for loss, l0 in measured),
            flush=True,
        )
        print(
            arm,
            "cosine of one number, by pair:",
            " ".join(f"{value:.3f}" for value in same),
            flush=True,
        )
        codes = [
            answer_codes(each, layer, given.tokens)
            for each, layer in zip(made, layers, strict=True)
        ]
        for kind in [kind for kind in KINDS[arm] if kind in given.kinds.split(",")]:
            pairs: dict[int, list[Comparison]] = {}
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
                    result.relinked,
                    result.length,
                    result.random_length,
                    len(layers),
                    spent,
                    comparing.cpu,
                ]
            )
    show(f"{given.results.name}, layers {numbers}, {len(codes[0])} answer tokens", COLUMNS, rows)
    if given.csv:
        with given.csv.open("w", newline="") as stream:
            csv.writer(stream).writerows([COLUMNS, *rows])


@torch.inference_mode()
def answer_codes(each: Sae, layer: Layer, tokens: int) -> np.ndarray:
    """(tokens of all data sets, d_sae); a massive row has no code."""
    parts = []
    for store in layer.answers:
        count = min(tokens, store.rows)
        code = each.encode(torch.from_numpy(store.read(0, count).astype(np.float32))).numpy()
        code[store.massive[:count]] = 0
        parts.append(code)
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
