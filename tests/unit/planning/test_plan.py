"""Disk use, waves under a disk budget, and checks of the inputs."""

import math
from functools import partial
from pathlib import Path

import fake_saelens
import numpy as np
import pytest

from ghosttrack.activations.store import Header, Storage, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import saelens
from ghosttrack.planning import plan
from ghosttrack.planning.configuration import load
from ghosttrack.runtime import files, progress, records
from ghosttrack.settings import Settings
from tests.conftest import ROOT


def settings(**config: object) -> Settings:
    (found,) = load(config, ROOT / "config").values()
    return found


def test_bytes_of_a_store_worked_by_hand() -> None:
    # 5,000 rows are 2 chunks in 1 shard file. Values and checksums, index and record, flags and
    # norms, metadata.
    assert (
        plan.store_bytes(5000, 8, "fp16", 1000)
        == 2 * (4096 * 8 * 2 + 4) + 2260 + 25_000 + 16_000
        == 174_340
    )
    # One byte per value; twice: mean and scale of 8 channels in 2 chunks, 5,000 row scales, and
    # 50 + 5 exactly stored rows of 24 bytes.
    assert plan.store_bytes(5000, 8, "int8s", 1000) == 2 * (
        4096 * 8 + 4
    ) + 2260 + 25_000 + 16_000 + 2 * (128 + 20_000 + 1320)


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
@pytest.mark.parametrize("context", [16, 1000])
def test_a_store_needs_at_most_the_planned_disk_space_while_it_is_written(
    storage: Storage, context: int, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((70_000, 8)).astype(np.float32)
    rows[1::100] *= 1000  # as many rows far above the rest as the plan allows for
    rows[::context] *= 1000
    header = Header("tiny", "weights", 3, "resid_post", context, "tokens", storage)
    with StoreWriter(
        tmp_path / "a.zarr", tmp_path / "a.json", header, rows=70_000, d_model=8, resume=""
    ) as writer:
        writer.append(to_block(rows))
        writer.finish()
        written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    planned = plan.store_bytes(70_000, 8, storage, context)
    assert planned - plan.STORE_EXTRA_BYTES - 2 * plan.RECORD_BYTES < written < planned


def test_bytes_of_a_layer_count_a_full_last_chunk_per_job() -> None:
    # 10 M tokens: nine jobs of 1,048,576 rows (256 chunks, 16 files), one of 563,200 (138 chunks, 9
    # files).
    full = 256 * (4096 * 768 * 2 + 4) + 16 * 2260 + 5 * 1_048_576 + 16_000
    last = 138 * (4096 * 768 * 2 + 4) + 9 * 2260 + 5 * 563_200 + 16_000
    assert (
        plan.layer_bytes(settings(model="gpt2-small", activations={"storage": "fp16"}))
        == 9 * full + last
        == 15_414_253_020
    )


@pytest.mark.parametrize(
    ("model", "storage", "sizes", "budget", "passes"),
    [
        ("gpt2-small", "fp16", [1] * 12, 25, 78 / 12),
        ("gpt2-small", "int8s", [2] * 6, 25, 42 / 12),
        ("gpt2-medium", "fp16", [3] * 8, 70, 108 / 24),
        ("gpt2-medium", "int8s", [4] * 6, 70, 84 / 24),
    ],
)
def test_ten_million_tokens_of_both_models_fit_the_disk_budget(
    model: str, storage: str, sizes: list[int], budget: int, passes: float
) -> None:
    found = settings(model=model, activations={"storage": storage})
    waves = plan.waves(found)
    assert [len(wave) for wave in waves] == sizes
    assert [layer for wave in waves for layer in wave] == found.layers
    assert found.activations.disk_budget_gb == budget
    assert plan.peak_bytes(found, waves) == sizes[0] * plan.layer_bytes(found)
    assert plan.peak_bytes(found, waves) + plan.heldout_bytes(found) <= budget * 1e9
    assert plan.forward_passes(waves) == passes
    printed = plan.summary(found, waves)
    assert (
        f"at most {progress.amount(plan.peak_bytes(found, waves))} of training activations at once"
        in printed
    )
    assert f"{progress.amount(plan.heldout_bytes(found))} held-out, budget {budget} GB" in printed


@pytest.mark.parametrize(
    ("fits", "gpus", "layers", "sizes"),
    [
        (6, 4, 24, [4] * 6),  # waves of six take two rounds each
        (5, 4, 24, [4] * 6),
        (6, 1, 24, [6] * 4),  # one accelerator: only the forward passes count
        (6, 8, 24, [6] * 4),
        (24, 4, 24, [24]),
        (4, 4, 6, [3, 3]),  # as [4, 2]: two rounds, two passes; the smaller wave takes less disk
        (3, 2, 5, [3, 2]),
        (100, 4, 5, [5]),
    ],
)
def test_waves_have_the_fewest_rounds_and_then_the_fewest_passes(
    fits: int, gpus: int, layers: int, sizes: list[int]
) -> None:
    given = settings(
        model="gpt2-medium", activations={"layers": list(range(layers))}, plan={"gpus": gpus}
    )
    budget = math.ceil((fits * plan.layer_bytes(given) + plan.heldout_bytes(given)) / 1e6) / 1e3
    capped = given.model_copy(
        update={"activations": given.activations.model_copy(update={"disk_budget_gb": budget})}
    )
    assert [len(wave) for wave in plan.waves(capped)] == sizes


def test_a_job_that_exceeds_the_disk_budget_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "layer_03" / "shard_0000.zarr"
    for path in (
        tmp_path / "layer_02/shard_0000.zarr/c",
        own / "c",
        own.with_suffix(".zarr.partial") / "c",
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
    plan.require_room(tmp_path, [own], planned=2000, budget=3000)
    with pytest.raises(
        UserError,
        match=r"disk_budget_gb: .* has 0\.001 MB of other layers or jobs "
        r"\(layer_02 0\.001 MB\), this job needs 0\.002 MB",
    ):
        plan.require_room(tmp_path, [own], planned=2001, budget=3000)


def test_models_whose_names_differ_only_in_punctuation_have_different_rules() -> None:
    models = ["my-gpt", "my_gpt", "my-gpt_", "gpt2-small"]
    names = plan.rule_names(models)
    assert names == {
        "my-gpt": "my_gpt",
        "my_gpt": "my_gpt_",
        "my-gpt_": "my_gpt__",
        "gpt2-small": "gpt2_small",
    }
    assert all(name.isidentifier() for name in names.values())


def test_mean_number_of_busy_accelerators() -> None:
    medium = settings(model="gpt2-medium", activations={"storage": "fp16"})
    assert plan.training_busy(medium, plan.waves(medium)) == 3.0
    assert plan.extraction_busy(medium) == pytest.approx(10 / 3)  # ten jobs in three rounds


def test_without_a_budget_there_is_one_wave() -> None:
    free = settings(model="gpt2-small", activations={"disk_budget_gb": None})
    assert plan.waves(free) == [list(range(12))]


def test_the_error_of_a_budget_below_one_layer_gives_a_sufficient_budget() -> None:
    with pytest.raises(UserError, match=r"at least 17\.4, or lower"):
        plan.waves(
            settings(model="gpt2-small", activations={"disk_budget_gb": 15, "storage": "fp16"})
        )


@pytest.mark.parametrize("budget", [1e-5, 0.02, 3])
@pytest.mark.parametrize("tokens", [100, 300_000])
@pytest.mark.parametrize("dictionaries", ["independent", "shared"])
def test_the_budget_that_an_error_names_is_enough(
    budget: float, tokens: int, dictionaries: str
) -> None:
    chosen = partial(
        settings, model="gpt2-small", corpus={"tokens": tokens}, sae={"dictionaries": dictionaries}
    )
    try:
        plan.waves(chosen(activations={"disk_budget_gb": budget}))
    except UserError as error:
        named = str(error).partition("at least ")[2].split(",")[0]
        plan.waves(chosen(activations={"disk_budget_gb": float(named)}))


def test_other_weights_for_a_model_with_results_are_refused(tmp_path: Path) -> None:
    small = settings(model="gpt2-small")
    manifest = tmp_path / "gpt2-small" / "model" / "source.json"
    files.write_json(manifest, {**small.source.model_dump(), "weights_sha256": "x"})
    plan.check_sources({"gpt2-small": small}, tmp_path)
    files.write_json(manifest, {"kind": "directory", "id": "elsewhere", "revision": None})
    with pytest.raises(UserError, match="results/gpt2-small was made with directory elsewhere"):
        plan.check_sources({"gpt2-small": small}, tmp_path)


def test_a_model_of_a_branch_is_the_one_that_was_fetched_at_this_branch(tmp_path: Path) -> None:
    branch = settings(model="gpt2-small", source={"revision": "step1000"})
    manifest = tmp_path / "results" / "gpt2-small" / "model" / "source.json"
    about = {**branch.source.model_dump(), "revision": "a" * 40}
    files.write_json(manifest, about)

    def check(wanted: Settings) -> None:
        plan.check_sources({"gpt2-small": wanted}, tmp_path / "results")

    check(branch)  # the job was killed before it wrote its record, and runs again
    fetched = records.Description({"source": branch.source.model_dump()}, {})
    records.write("fetch_model", fetched, {}, [str(manifest)])
    check(branch)
    check(settings(model="gpt2-small", source={"revision": "a" * 40}))
    for other in ("step2000", "b" * 40):
        with pytest.raises(UserError, match=f"but hub gpt2 {other} has other weights"):
            check(settings(model="gpt2-small", source={"revision": other}))


MODEL_64 = {"num_hidden_layers": 4, "hidden_size": 64, "max_position_embeddings": 64}


def known_model(folder: Path, place: str, **about: object) -> Settings:
    """Settings of tiny-gpt2 with contexts of 128 tokens, and a limit of 64 in one place."""
    config = {**MODEL_64, **about}
    if place == "settings":
        return settings(model="tiny-gpt2", dimensions={"max_position_embeddings": 64})
    if place == "fetched":
        files.write_json(folder / "results" / "tiny-gpt2" / "model" / "config.json", config)
        return settings(model="tiny-gpt2")
    files.write_json(folder / "mine" / "config.json", config)
    (folder / "mine" / "model.safetensors").write_bytes(b"")
    if place == "model_path":
        return settings(
            model="mine",
            model_path=str(folder / "mine"),
            corpus={"source": "embedded", "context": 128},
        )
    return settings(model="tiny-gpt2", source={"kind": "directory", "id": str(folder / "mine")})


@pytest.mark.parametrize("place", ["settings", "fetched", "model_path", "source.id"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {},
            r"corpus\.context: 128 tokens are more than .* allows; set corpus\.context to at most 64",
        ),
        ({"corpus": {"context": 64}}, ""),
        (
            {"corpus": {"context": 64}, "generation": {"max_new_tokens": 64}},
            r"generation\.max_new_tokens: 64 tokens leave",
        ),
    ],
)
def test_lengths_above_a_known_limit_of_the_model_are_refused_before_any_job(
    tmp_path: Path, place: str, changed: dict[str, dict[str, int]], message: str
) -> None:
    wanted = known_model(tmp_path, place)
    for section, values in changed.items():
        wanted = wanted.model_copy(
            update={section: getattr(wanted, section).model_copy(update=values)}
        )
    if not message:
        plan.check_sources({wanted.model: wanted}, tmp_path / "results")
        return
    with pytest.raises(UserError, match=message):
        plan.check_sources({wanted.model: wanted}, tmp_path / "results")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"source": {"kind": "directory", "id": "nowhere"}},
            "source.id: there is no directory nowhere",
        ),
        (
            {"source": {"kind": "directory", "id": __file__}},
            "source.id: .*test_plan.py is a file, expected a directory",
        ),
        (
            {"source": {"kind": "directory", "id": "n" * 300}},
            r"source.id: 'n+\.+n+' cannot be looked up .File name too long",
        ),
        ({"score": {"texts": "nowhere.csv"}}, "score.texts: there is no file nowhere.csv"),
        ({"score": {"context": "."}}, "score.context: . is a directory"),
        ({"corpus": {"source": "n" * 300}}, r"corpus.source: 'n+\.+n+' cannot be looked up"),
    ],
)
def test_a_missing_file_or_directory_in_the_settings_is_refused_before_any_job(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan.check_sources({"tiny-gpt2": settings(model="tiny-gpt2", **config)}, tmp_path)


@pytest.mark.parametrize("content", ['{"body": "a"}', "[", '{"text": 1, "text": 2}'])
def test_a_corpus_with_an_invalid_first_line_is_refused_before_any_job(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    wanted = settings(model="tiny-gpt2", corpus={"source": str(path)})
    with pytest.raises(UserError, match=r"text_column: .*no column 'text'; found body|line 1 of"):
        plan.check_sources({"tiny-gpt2": wanted}, tmp_path)
    path.write_text('{"text": "a"}', encoding="utf-8")
    plan.check_sources({"tiny-gpt2": wanted}, tmp_path)


def test_a_damaged_config_in_results_does_not_stop_the_plan(tmp_path: Path) -> None:
    config = tmp_path / "tiny-gpt2" / "model" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{", encoding="utf-8")
    plan.check_sources({"tiny-gpt2": settings(model="tiny-gpt2")}, tmp_path)


@pytest.mark.parametrize(
    ("about", "key"), [({"num_hidden_layers": 5}, "n_layers"), ({"hidden_size": 65}, "d_model")]
)
def test_a_model_directory_with_other_dimensions_than_the_settings_is_refused_before_any_job(
    tmp_path: Path, about: dict[str, int], key: str
) -> None:
    wanted = known_model(tmp_path, "source.id", **about)
    with pytest.raises(
        UserError, match=rf"dimensions\.{key}: .* in the settings, (\d+) in .*; set it to \1$"
    ):
        plan.check_sources({wanted.model: wanted}, tmp_path)


NAMED = {"source": "saelens:tiny-res/layer_{layer}/width_32/canonical"}


def test_names_of_the_sae_library_are_checked_before_any_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_saelens.install(tmp_path, monkeypatch)
    check = partial(plan.check_sources, results=tmp_path / "results")
    named = settings(model="tiny-gpt2", sae=NAMED)
    check({"tiny-gpt2": named})
    assert plan.pretrained_locally(named) == {}
    one = {"source": "saelens:tiny-res/layer_0/width_32/canonical"}
    with pytest.raises(UserError, match="names one SAE, but 4 layers are analysed"):
        check({"tiny-gpt2": settings(model="tiny-gpt2", sae=one)})
    check({"tiny-gpt2": settings(model="tiny-gpt2", sae=one, activations={"layers": [0]})})
    wrong = {"source": "saelens:tiny-res/layer_{next_layer}/width_32/canonical"}
    with pytest.raises(UserError, match=r"no SAE layer_4/width_32/canonical; most similar of 5: "):
        check({"tiny-gpt2": settings(model="tiny-gpt2", sae=wrong)})
    with pytest.raises(UserError, match=r"the model tiny-gpt2, expected \S*gpt2; .*save_model"):
        check({"gpt2-small": settings(model="gpt2-small", sae=NAMED, activations={"layers": [0]})})


def test_a_missing_sae_library_stops_the_run_before_any_job_unless_it_is_not_needed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saelens, "registry", lambda: None)
    named = {"tiny-gpt2": settings(model="tiny-gpt2", sae=NAMED)}
    with pytest.raises(UserError, match=r"pip install -r envs/saelens\.txt"):
        plan.check_sources(named, tmp_path)
    plan.check_sources(named, tmp_path, own_environments=True)
    for layer in range(4):
        cfg = tmp_path / "tiny-gpt2" / "saes" / f"layer_{layer:02d}" / "cfg.json"
        cfg.parent.mkdir(parents=True)
        cfg.touch()
    plan.check_sources(named, tmp_path)  # all are fetched


def test_the_warm_start_layer_is_in_the_first_wave_and_every_layer_in_one_wave() -> None:
    found = plan.waves(
        settings(model="gpt2-small", sae={"dictionaries": "warm_start", "warm_start_layer": 7})
    )
    assert found[0] == [0, 7]
    assert sorted(layer for wave in found for layer in wave) == list(range(12))
    assert all(wave == sorted(wave) for wave in found)
    assert settings(model="gpt2-small", sae={"dictionaries": "warm_start"}).warm_start_layer == 6
    assert settings(model="gpt2-small").warm_start_layer is None


def test_a_shared_dictionary_needs_all_layers_on_disk() -> None:
    with pytest.raises(
        UserError, match=r"25 GB is enough for 2 layers of 12, .*shared.* at least (\d+\.\d)"
    ) as caught:
        plan.waves(settings(model="gpt2-small", sae={"dictionaries": "shared"}))
    least = float(str(caught.value).partition("at least ")[2].split(",")[0])
    enough = settings(
        model="gpt2-small",
        sae={"dictionaries": "shared"},
        activations={"disk_budget_gb": least, "storage": "int8s"},
    )
    assert plan.waves(enough) == [list(range(12))]
    assert plan.training_busy(enough, plan.waves(enough)) == 1.0


def test_links_by_index_need_index_aligned_features() -> None:
    assert settings(tracking={"links": "identity"}).sae.dictionaries == "warm_start"
    with pytest.raises(UserError, match=r"tracking\.links: identity needs index-aligned features"):
        settings(tracking={"links": "identity"}, sae={"dictionaries": "independent"})


@pytest.mark.parametrize(
    ("missing", "extracted", "waited_for"),
    [
        ([[0, 1], [2, 3], [4, 5]], set(), [2, 3]),  # layers 2 and 3 wait for 0 and 1 themselves
        ([[0, 1], [2, 3], [4, 5]], {2}, [2, 3]),  # layer 3 does
        ([[0, 1], [2, 3], [4, 5]], {2, 3}, [2, 3, 0, 1]),  # no extraction is due that would wait
        ([[0, 1], [], [4, 5]], set(), [0, 1]),
        ([[0], [2, 3], []], set(), []),  # nothing to extract
        ([[0, 1]], set(), []),
    ],
)
def test_a_wave_waits_for_the_nearest_earlier_wave_and_for_those_that_this_wave_does_not_wait_for(
    missing: list[list[int]], extracted: set[int], waited_for: list[int]
) -> None:
    assert plan.layers_waited_for(missing, extracted.__contains__) == waited_for


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "{}", '{"metadata": null}', '{"metadata": 3}', '{"a": "\xff"}']
)
def test_an_sae_with_a_damaged_cfg_is_not_finished_and_stops_no_plan(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "sae_weights.safetensors").write_bytes(b"x")
    (tmp_path / "cfg.json").write_bytes(text.encode("latin-1"))
    assert not plan.has_training_digest(tmp_path, "digest")
    (tmp_path / "cfg.json").write_text('{"metadata": {"training_digest": "digest"}}')
    assert plan.has_training_digest(tmp_path, "digest")


def test_a_model_on_several_gpus_leaves_fewer_extraction_jobs_at_once() -> None:
    two = settings(model="gpt2-medium", plan={"gpus": 4, "gpus_per_model": 2})
    assert plan.extraction_rounds(two) == two.shards / 2
    assert plan.extraction_busy(two) == 4
