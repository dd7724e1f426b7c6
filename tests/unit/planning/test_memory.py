"""Formulas of memory: figures of known models, and growth with what a job holds."""

import csv
import inspect
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghosttrack.activations import packed_texts
from ghosttrack.detection import fold_ridge
from ghosttrack.planning import data_sizes, memory
from ghosttrack.planning.configuration import load
from ghosttrack.planning.data_sizes import Texts
from ghosttrack.planning.memory import Run
from ghosttrack.settings import DatasetSettings, Settings
from tests.conftest import ROOT

# Formulas that take a run alone, by name.
FORMULAS = {
    name: function
    for name, function in inspect.getmembers(memory, inspect.isfunction)
    if not name.startswith("_")
    and function.__module__ == memory.__name__
    and list(inspect.signature(function).parameters) in (["run"], ["_run"], ["run", "layers"])
    and name != "model_weights"
}
WITH_MODEL = ["extraction", "examples", "model_check", "generation", "splicing", "scoring"]
SAES = ["training", "shared_training", "sweep", "gpu_check"]
TEXTS = ["dataset", "audit", "detectors", "seeds", "transfer", "saved_detector", "evaluation"]
LAYERS = ["shared_training", "scoring", "clusters", "tracking", "detectors", "saved_detector"]
FEATURES = [*SAES, "scoring", "splicing", "answers", "dictionary", "neighbours", "clusters"]


def settings_of(**config: Any) -> Settings:
    (settings,) = load({"model": "gpt2-small", **config}, ROOT / "config").values()
    return settings


def run_of(texts: int = 800, gpu: bool = False, **config: Any) -> Run:
    settings = settings_of(**config)
    assert settings.dimensions is not None
    vocabulary = settings.dimensions.vocab_size or data_sizes.VOCABULARY
    sizes = {"one": Texts(texts, 2 * texts), "other": Texts(texts // 2, texts)}
    return Run(settings, settings.sae.d_sae, sizes, vocabulary, None, 4, True, gpu)


def test_every_formula_is_a_positive_whole_number() -> None:
    assert len(FORMULAS) > 25
    for name, formula in FORMULAS.items():
        assert isinstance(formula(run_of()), int), name
        assert formula(run_of()) >= memory.PLAIN, name


def test_the_weights_of_gpt2_are_estimated_within_a_third_and_known_once_they_are_there() -> None:
    # GPT-2 small has 124 million parameters.
    assert memory.model_weights(run_of()) / 4 == pytest.approx(124e6, rel=0.35)
    assert memory.model_weights(run_of()._replace(parameters=7)) == 28


@pytest.mark.parametrize(
    ("dtype", "gpu", "expected"),
    [
        ("auto", False, 4),
        ("auto", True, 2),
        ("float32", True, 4),
        ("bfloat16", True, 2),
        ("float16", False, 2),
    ],
)
def test_weights_take_the_bytes_of_the_data_type_in_which_they_run(
    dtype: str, gpu: bool, expected: int
) -> None:
    run = run_of(inference={"dtype": dtype})._replace(parameters=10, stored=2, gpu=gpu)
    assert memory.model_weights(run) == 10 * expected


@pytest.mark.parametrize(
    ("vocabulary", "rows"),
    [(100, 256), (50_257, 256), (128_256, 130), (262_144, 64), (10_000_000, 32)],
)
def test_the_logits_at_once_have_about_the_same_size_with_any_vocabulary(
    vocabulary: int, rows: int
) -> None:
    text_part = SimpleNamespace(vocab_size=vocabulary)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text_part))
    assert packed_texts.head_rows(model) == rows
    assert memory._head_block(run_of()._replace(vocabulary=vocabulary)) == 4 * rows * vocabulary


@pytest.mark.parametrize(
    ("dtype", "gpu", "stored", "transposed", "copied"),
    [
        ("auto", False, 4, False, False),
        ("float32", False, 4, False, False),
        ("auto", True, 2, False, False),
        ("auto", False, 4, True, True),
        ("auto", False, 2, False, True),
        ("float16", False, 2, False, True),
    ],
)
def test_weights_that_need_no_conversion_stay_in_their_mapped_file(
    dtype: str, gpu: bool, stored: int, transposed: bool, copied: bool
) -> None:
    run = run_of(inference={"dtype": dtype})._replace(stored=stored, transposed=transposed, gpu=gpu)
    one, two = (run._replace(parameters=number * 10**10) for number in (1, 2))
    weights = memory.model_weights(one) / 1e6
    file = 10_000 * stored * copied
    assert memory.extraction(two, [0]) - memory.extraction(one, [0]) == weights + file


def grows(name: str, larger: Run, than: Run | None = None) -> None:
    formula = FORMULAS[name]
    small = formula(than or run_of())
    assert small < formula(larger), name


@pytest.mark.parametrize("name", [*WITH_MODEL, "fetching"])
def test_a_larger_model_takes_memory_wherever_it_runs(name: str) -> None:
    sizes = {"d_model": 768, "vocab_size": 50_257}
    grows(name, run_of(dimensions={**sizes, "n_layers": 36}))


@pytest.mark.parametrize("name", [*WITH_MODEL, "fetching", "corpus", "dictionary", "explorer"])
def test_a_larger_vocabulary_takes_memory_wherever_model_or_tokenizer_are(name: str) -> None:
    grows(name, run_of(dimensions={"n_layers": 12, "d_model": 768, "vocab_size": 262_144}))


@pytest.mark.parametrize("name", FEATURES)
def test_a_larger_dictionary_takes_memory_wherever_features_are(name: str) -> None:
    grows(name, run_of(sae={"d_sae": 65_536}))


@pytest.mark.parametrize("name", LAYERS)
def test_more_layers_take_memory_where_all_layers_are_together(name: str) -> None:
    few = run_of(activations={"layers": [0, 1]}, corpus={"tokens": 50_000})
    grows(name, run_of(corpus={"tokens": 50_000}), few)


@pytest.mark.parametrize("name", TEXTS)
def test_more_texts_take_memory_where_texts_are(name: str) -> None:
    grows(name, run_of(texts=20_000))


@pytest.mark.parametrize("name", ["checks", "figures", "explorer", "signals", "answers"])
def test_more_texts_take_memory_in_tables_and_pages(name: str) -> None:
    grows(name, run_of(texts=20_000))


@pytest.mark.parametrize("name", ["extraction", "splicing", "model_check"])
def test_longer_contexts_take_memory_in_forward_passes(name: str) -> None:
    grows(name, run_of(corpus={"context": 1024}), run_of(corpus={"context": 128}))


def test_the_gram_matrices_of_a_probe_grow_with_the_dictionary_up_to_the_number_of_texts() -> None:
    def asked(texts: int, size: int) -> int:
        return memory.saved_detector(run_of(texts=texts, sae={"d_sae": size}))

    square = 3 * 8 * 0.49 * (16_384**2 - 8192**2) / 1e6
    assert asked(20_000, 16_384) - asked(20_000, 8192) > square
    assert asked(10, 16_384) - asked(10, 8192) < square / 3  # the SAEs themselves


def test_the_check_of_a_model_in_half_precision_holds_its_float32_weights() -> None:
    half, full = (run_of(inference={"dtype": dtype}) for dtype in ("bfloat16", "float32"))
    assert memory.extraction(half) < memory.extraction(full)
    assert memory.model_check(half) == pytest.approx(memory.model_check(full), abs=1)


def test_a_wave_of_few_layers_asks_for_less_than_one_of_all() -> None:
    run = run_of(corpus={"context": 1024})
    assert memory.extraction(run, run.settings.layers[:1]) < memory.extraction(run)


def test_training_holds_sixteen_copies_of_encoder_or_decoder() -> None:
    small, large = (memory.training(run_of(sae={"d_sae": size})) for size in (4096, 65_536))
    weights = 16 * 4 * (65_536 - 4096) * 768
    batch = 4 * 4 * 4096 * (65_536 - 4096)
    assert large - small == pytest.approx((weights + batch) / 1e6, rel=0.01)


def test_a_sweep_trains_all_arms_at_once() -> None:
    one, four = (
        memory.sweep(run_of(sweep={"k": [16], "seeds": seeds})) for seeds in ([0], [0, 1, 2, 3])
    )
    assert four - one > 3 * 16 * 4 * run_of().d_sae * 768 / 1e6


def test_rows_that_do_not_fit_are_read_in_windows() -> None:
    few, many, most = (
        memory.training(run_of(corpus={"tokens": tokens}))
        for tokens in (100_000, 10_000_000, 100_000_000)
    )
    assert few < many == most


@pytest.mark.parametrize("name", [*WITH_MODEL, *SAES])
def test_jobs_on_a_gpu_ask_for_the_memory_of_its_libraries(name: str) -> None:
    formula = FORMULAS[name]
    assert formula(run_of(gpu=True)) - formula(run_of()) == memory.GPU_LIBRARIES


def test_a_margin_is_asked_for_and_on_a_cluster_the_processes_of_snakemake() -> None:
    assert memory.asked(1000) == 1300
    assert memory.asked(1000, cluster=True) == 1300 + memory.SNAKEMAKE
    assert memory.asked(1000, True, True) == 1300 + memory.SNAKEMAKE + memory.CUDA_BUILD


# ---- sizes that are known before a job runs
def dataset(**given: Any) -> DatasetSettings:
    return DatasetSettings(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"source": "facts", "table": "capitals"}, 4 * 111),
        ({"source": "facts", "table": "capitals", "max_examples": 100}, 100),
        ({"source": "facts", "mode": "generated"}, 200),
        ({"source": "halueval"}, 20_000),
        ({"source": "halueval", "max_examples": 2000}, 2000),
        ({"source": "file", "path": "nowhere.csv"}, data_sizes.OTHER_TEXTS),
    ],
)
def test_texts_are_estimated_from_what_is_at_hand(given: dict[str, Any], expected: int) -> None:
    assert data_sizes.texts(settings_of(), dataset(**given)) == expected


def test_the_rows_of_a_local_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "a b,1\n" * 5000)
    found = data_sizes.texts(settings_of(), dataset(source="file", path=str(path)))
    assert found == 5001


def test_stored_rows_replace_the_estimate(tmp_path: Path) -> None:
    manifest = tmp_path / "gpt2-small" / "examples" / "capitals" / "embedding.json"
    given = dataset(source="facts", table="capitals")
    before = data_sizes.known_texts(settings_of(), "capitals", given, tmp_path)
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"rows": 300}')
    after = data_sizes.known_texts(settings_of(), "capitals", given, tmp_path)
    assert before == Texts(444, 888)
    assert after == Texts(300, 300)


@pytest.mark.parametrize("name", ["long.jsonl", "long.csv", "long.tsv"])
def test_the_longest_row_of_a_local_file_bounds_its_contexts(tmp_path: Path, name: str) -> None:
    long = "a line\n" * 600  # a cell of many lines
    rows = [("text", "passage"), ("a b", "short"), ("c d", long)]
    path = tmp_path / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps({"passage": cell}) + "\n" for _, cell in rows))
    else:
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t" if name.endswith("tsv") else ",").writerows(rows)
    about = {"source": "file", "path": str(path), "text_column": "text", "label_column": "label"}
    given = dataset(**about, context_column="passage")
    found = data_sizes.known_texts(settings_of(model="smollm2-135m"), "x", given, tmp_path)
    assert 1400 <= found.longest <= 1700
    # GPT-2 reads 1,024 tokens.
    assert data_sizes.known_texts(settings_of(), "x", given, tmp_path).longest == 1024
    assert data_sizes.known_texts(settings_of(), "x", dataset(**about), tmp_path).longest == 0


def with_contexts(longest: int = 0, marked: bool = False, **config: Any) -> Run:
    return run_of(**config)._replace(datasets={"x": Texts(1000, 100_000, longest, marked)})


def test_contexts_take_memory_where_they_are_read_and_kept() -> None:
    plain, long = with_contexts(), with_contexts(6000)
    assert memory.dataset(long) > memory.dataset(plain)
    # GPT-2 has 12 blocks of width 768: keys and values of 4,096 cached tokens in float32.
    cache = 2 * 12 * 768 * 4 * 4096 / 1e6
    assert memory.examples(with_contexts(1)) - memory.examples(plain) >= cache
    assert memory.examples(long) - memory.examples(with_contexts(1)) > 6000 * 768 * 4 / 1e6


def test_lookback_ratios_take_memory_where_answers_have_spans() -> None:
    ratios = 2 * 100_000 * 12 * 12 / 1e6  # 12 heads in 12 blocks, in half precision
    for formula in (memory.examples, memory.token_detectors):
        more = formula(with_contexts(500, True)) - formula(with_contexts(500))
        assert more >= 2 * ratios - 1, formula.__name__


def test_token_detectors_on_a_wide_dictionary_stay_within_memory() -> None:
    assert memory._WIDEST == fold_ridge.WIDEST
    narrow = memory.token_detectors(with_contexts(500, True, sae={"d_sae": 2048, "k": 64}))
    wide = memory.token_detectors(with_contexts(500, True, sae={"d_sae": 65_536, "k": 64}))
    # Encoded blocks and the SAE itself grow with the dictionary, products of columns do not.
    assert wide - narrow < 5000
    assert 8 * 65_536**2 / 1e6 > 30_000


def write_header(path: Path, **shapes: tuple[int, ...]) -> None:
    header = {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_llama_stores_its_dense_layers_as_they_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2-small" / "model"
    folder.mkdir(parents=True)
    write_header(folder / "model.safetensors", wte=(17, 8))
    (folder / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 17}'
    )
    assert not data_sizes.model_numbers(settings_of(), tmp_path).transposed


def test_parameters_and_vocabulary_come_from_the_fetched_model(tmp_path: Path) -> None:
    settings = settings_of(dimensions={"n_layers": 12, "d_model": 768, "vocab_size": None})
    assert data_sizes.model_numbers(settings, tmp_path) == (data_sizes.VOCABULARY, None, 4, True)
    folder = tmp_path / "gpt2-small" / "model"
    folder.mkdir(parents=True)
    write_header(folder / "model.safetensors", wte=(17, 8), bias=(8,))
    (folder / "config.json").write_text(
        '{"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "vocab_size": 17}'
    )
    assert data_sizes.model_numbers(settings, tmp_path) == (17, 17 * 8 + 8, 4, True)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 2) + b"[]"])
def test_a_damaged_header_gives_no_number(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert data_sizes.checkpoint([tmp_path / "model.safetensors"]) is None


@pytest.mark.parametrize(
    ("device", "cluster", "driver", "expected"),
    [
        ("gpu", True, False, True),
        ("gpu", False, True, True),
        ("gpu", False, False, False),
        ("cpu", True, True, False),
    ],
)
def test_a_machine_without_a_driver_has_no_gpu_libraries(
    device: str,
    cluster: bool,
    driver: bool,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_sizes, "_DRIVER", tmp_path if driver else tmp_path / "none")
    assert data_sizes.uses_gpu(settings_of(plan={"device": device}), cluster) is expected


def test_the_width_of_saes_of_a_hub_is_known_once_they_are_fetched(tmp_path: Path) -> None:
    (hub,) = load(
        {"model": "tiny-gpt2", "sae": {"source": "OWNER/NAME", "revision": "a" * 40}},
        ROOT / "config",
    ).values()
    assert data_sizes.fetched_width(hub, tmp_path) == 0
    for layer, content in [(0, '{"d_sae": 512}'), (2, '{"d_sae": 16384}'), (3, "[damaged")]:
        cfg = tmp_path / f"tiny-gpt2/saes/layer_{layer:02d}/cfg.json"
        cfg.parent.mkdir(parents=True)
        cfg.write_text(content)
    assert data_sizes.fetched_width(hub, tmp_path) == 16384
    (trained,) = load({"model": "tiny-gpt2"}, ROOT / "config").values()
    assert data_sizes.fetched_width(trained, tmp_path) == 0
