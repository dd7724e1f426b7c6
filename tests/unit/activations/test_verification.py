"""Verification of stores: intact ones pass, all damaged ones are reported, absent ones are not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from develop import verify_activations
from ghosttrack.activations import verification
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.planning import run_state
from ghosttrack.planning.configuration import load
from ghosttrack.runtime import files
from ghosttrack.settings import Settings
from tests.conftest import ROOT

WIDTH, CONTEXT, ROWS = 8, 10, 500
LAYERS, SHARDS = (0, 2), 3


def write(
    store: Path, layer: int | None, start: int = 0, total: int = ROWS, context: int | None = CONTEXT
) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    header = Header(
        "tiny", "weights", layer, "embedding" if layer is None else "resid_post", context, "tokens"
    )
    values = np.random.default_rng(start).standard_normal((ROWS, WIDTH)).astype(np.float32)
    with StoreWriter(
        store,
        store.with_suffix(".json"),
        header,
        rows=ROWS,
        d_model=WIDTH,
        row_start=start,
        total_rows=total,
    ) as writer:
        writer.append(to_block(values))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two layers of three training stores, held-out text, and one data set with its embedding."""
    home = tmp_path / "tiny"
    for layer in LAYERS:
        for shard in range(SHARDS):
            write(
                home / f"activations/layer_{layer:02d}/shard_{shard:04d}.zarr",
                layer,
                shard * ROWS,
                SHARDS * ROWS,
            )
        write(home / f"heldout/layer_{layer:02d}.zarr", layer)
        write(home / f"examples/cities/layer_{layer:02d}.zarr", layer, context=None)
    write(home / "examples/cities/embedding.zarr", None, context=None)
    return home


def check(home: Path) -> list[verification.Finding]:
    return [verification.check(group) for group in verification.groups(home)]


def problems(home: Path) -> list[str]:
    return [
        problem.replace(f"{home}/", "") for finding in check(home) for problem in finding.problems
    ]


def test_sound_stores_are_counted_and_pass(home: Path) -> None:
    found = check(home)
    assert [(each.line, each.stores, each.rows) for each in found] == [
        ("activations/layer_00", 3, 1500),
        ("activations/layer_02", 3, 1500),
        ("heldout", 1, 500),
        ("heldout", 1, 500),
        ("examples/cities", 1, 500),
        ("examples/cities", 1, 500),
        ("examples/cities", 1, 500),
    ]
    assert problems(home) == []
    table = verification.as_table(found).splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["activations/layer_00", "3", "1,500"],
        ["activations/layer_02", "3", "1,500"],
        ["heldout", "2", "1,000"],
        ["examples/cities", "3", "1,500"],
        ["all", "11", "5,500"],
    ]
    assert all(line.endswith("intact") for line in table[1:])


def test_all_damage_is_found_and_each_says_what_to_delete(home: Path) -> None:
    layer = home / "activations" / "layer_00"
    flip(layer / "shard_0000.zarr/resid_post/c/0/0", 5000)
    (layer / "shard_0002.zarr/resid_post/c/0/0").write_bytes(b"")
    (home / "heldout/layer_02.json").unlink()
    shutil.rmtree(home / "examples/cities/embedding.zarr")
    (home / "examples/cities/layer_00.json").write_text("{}")
    wanted = {
        "activations/layer_00/shard_0000.zarr/resid_post/c/0/0: its SHA-256 is not the one in the manifest": "activations/layer_00/shard_0000",
        "activations/layer_00/shard_0002.zarr/resid_post/c/0/0: it has 0 bytes, its manifest says 65800": "activations/layer_00/shard_0002",
        "heldout/layer_02.zarr: its manifest is missing": "heldout/layer_02",
        "examples/cities/embedding.json: its store is missing": "examples/cities/embedding",
        "examples/cities/layer_00.json: it is not the manifest of an activation store": "examples/cities/layer_00",
    }
    found = problems(home)
    assert len(found) == len(wanted)
    for problem, (message, stem) in zip(found, wanted.items(), strict=True):
        assert problem.startswith(f"{message}; delete {stem}.zarr and {stem}.json, then: snakemake")
    assert "2 DAMAGED" in verification.as_table(check(home))


def test_stores_of_another_run_among_sound_ones_are_found(home: Path) -> None:
    write(home / "activations/layer_00/shard_0001.zarr", 5, ROWS, SHARDS * ROWS)
    (problem,) = problems(home)
    assert "shard_0001.zarr comes from another run: its layer is 5" in problem


def test_stores_deleted_under_a_disk_budget_are_no_damage_and_the_rest_are_verified(
    home: Path,
) -> None:
    shutil.rmtree(home / "activations/layer_02")
    for name in ("shard_0000.zarr", "shard_0001.zarr"):
        shutil.rmtree(home / "activations/layer_00" / name)
        (home / "activations/layer_00" / name).with_suffix(".json").unlink()
    assert problems(home) == []
    assert "intact; 1,500 rows when complete" in verification.as_table(check(home))
    flip(home / "activations/layer_00/shard_0002.zarr/resid_post/c/0/0", 5000)
    (problem,) = problems(home)
    assert "layer_00/shard_0002.zarr/resid_post/c/0/0: its SHA-256" in problem


def test_unfinished_stores_of_killed_jobs_are_listed_and_live_ones_are_not(home: Path) -> None:
    killed = home / "activations/layer_00/shard_0003.zarr.partial"
    killed.mkdir()
    (killed / "lock").write_text("process 1 on nowhere")
    with files.lock(home / "heldout/layer_04.zarr.partial"):
        assert verification.abandoned(home) == [killed]
    assert problems(home) == []


def test_the_script_reports_every_model_and_fails_at_the_end(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    none: dict[str, list[Path]] = {"promised": [], "released": []}
    verify_activations.main(models=["tiny", "absent"], results=home.parent, **none)
    assert "activation stores of absent:" in caplog.text
    flip(home / "heldout/layer_00.zarr/resid_post/c/0/0", 5000)
    flip(home / "heldout/layer_02.zarr/resid_post/c/0/0", 5000)
    with pytest.raises(
        UserError, match=r"2 problems in the activation stores:\n.*layer_00.*\n.*layer_02"
    ):
        verify_activations.main(models=["tiny"], results=home.parent, **none)


# ---- stores missing with their manifests, and stores that may be deleted
def settings(budget: float | None) -> Settings:
    """Layers 0 and 2, three shards."""
    chosen = {
        "activations": {"layers": list(LAYERS), "disk_budget_gb": budget, "rows_per_job": 16_384},
        "corpus": {"tokens": 40_000},
        "datasets": ["capitals"],
    }
    (found,) = load({"model": "tiny-gpt2", **chosen}, ROOT / "config").values()
    assert found.shards == SHARDS
    return found.model_copy(update={"model": "tiny"})


@pytest.fixture
def trained(home: Path) -> Path:
    """Both SAEs are trained, the second is not evaluated; example stores as in the settings."""
    (home / "examples/cities").rename(home / "examples/capitals")
    for layer in LAYERS:
        files.write_json(home / f"saes/layer_{layer:02d}/cfg.json", {})
        (home / f"saes/layer_{layer:02d}/sae_weights.safetensors").touch()
    files.write_json(home / "saes/layer_00/quality.json", {})
    (home / "examples/capitals/tokens.parquet").touch()
    return home


def losses(home: Path, budget: float | None) -> list[str]:
    found = verification.lost(run_state.promised_manifests(settings(budget), home.parent))
    return [problem.replace(f"{home}/", "") for problem in found]


def lose(home: Path, *stems: str) -> None:
    for stem in stems:
        shutil.rmtree(home / f"{stem}.zarr")
        (home / f"{stem}.json").unlink()


def test_a_store_missing_with_its_manifest_is_reported_if_later_results_need_it(
    trained: Path,
) -> None:
    assert losses(trained, None) == []
    lose(
        trained,
        "activations/layer_00/shard_0001",
        "heldout/layer_00",
        "heldout/layer_02",
        "examples/capitals/embedding",
    )
    assert problems(trained) == []  # nothing on disk is damaged
    training, heldout, examples = losses(trained, None)
    assert training.startswith("activations/layer_00: shard_0001 and its manifest are missing")
    assert training.endswith("snakemake --profile YOURS activations/layer_00/shard_0001.json")
    assert heldout.startswith(
        "heldout: layer_00 and its manifest are missing"
    )  # layer 2 is not evaluated: a run writes its store again
    assert examples.startswith("examples/capitals: embedding and its manifest are missing")
    lose(trained, "activations/layer_00/shard_0002")
    assert losses(trained, None)[0].startswith(
        "activations/layer_00: shard_0001, shard_0002 and their manifests are missing"
    )
    # The script fails as for damage.
    promised = run_state.promised_manifests(settings(None), trained.parent)
    with pytest.raises(UserError, match="3 problems in the activation stores"):
        verify_activations.main(
            models=["tiny"], promised=promised, released=[], results=trained.parent
        )


def test_pretrained_saes_need_no_training_stores(trained: Path) -> None:
    shutil.rmtree(trained / "activations")
    chosen = settings(None)
    sae = chosen.sae.model_copy(update={"source": "OWNER/SAES/layer_{layer}", "revision": "a" * 40})
    pretrained = chosen.model_copy(update={"sae": sae})
    assert verification.lost(run_state.promised_manifests(pretrained, trained.parent)) == []


def test_only_training_stores_may_be_missing_under_a_disk_budget(trained: Path) -> None:
    lose(
        trained,
        *(f"activations/layer_00/shard_{shard:04d}" for shard in range(SHARDS)),
        "heldout/layer_00",
    )
    (heldout,) = losses(trained, 25)
    assert heldout.startswith("heldout: layer_00")


def test_a_missing_store_without_a_trained_sae_is_not_reported(trained: Path) -> None:
    (trained / "saes/layer_02/sae_weights.safetensors").unlink()
    lose(trained, "activations/layer_02/shard_0000")
    assert losses(trained, None) == []


def test_stores_whose_sae_is_trained_are_reported_with_how_to_delete_them(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left, gone = home / "activations/layer_00", home / "activations/layer_04"
    caplog.set_level("INFO")
    verify_activations.main(
        models=["tiny"], promised=[], released=[left, gone], results=home.parent
    )
    (line,) = [
        record.message for record in caplog.records if "whose SAE is trained" in record.message
    ]
    assert line.endswith(f"rm -r {left}")
