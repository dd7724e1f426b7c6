"""The archive of a run: read back by the library of its format, whole, and only of a finished run."""

import csv
import hashlib
import io
import json
import re
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from rocrate.rocrate import ROCrate

from ghosttrack.cli import archive, crate
from ghosttrack.planning import run_state
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.runtime import records
from ghosttrack.settings import DatasetSettings
from tests.conftest import ROOT

MODEL = "tiny-gpt2"
SAE = f"results/{MODEL}/saes/layer_01/sae_weights.safetensors"


def make_run(folder: Path, **config: str) -> Path:
    """A finished run with made-up content: every output and its record."""
    (settings,) = load({"model": MODEL, **config}, ROOT / "config").values()
    datasets = {name: load_dataset(name, ROOT / "config") for name in settings.datasets}
    home = folder / "results" / MODEL
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(f"model: {MODEL}\n", encoding="utf-8")
    made = {
        "model/source.json": {"id": "tiny", "revision": None, "weights_sha256": "ab" * 32},
        "detection/detector.json": {"libraries": {"torch": "2.13.0", "snakemake": "9.27.1"}},
    }
    for rule, wildcards, outputs in run_state._outputs(settings, datasets):
        params = {"name": wildcards}
        for name in outputs:
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made.get(name, name)), encoding="utf-8")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            record = records.record_path(path)
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(
                json.dumps({"rule": rule, "params": params, "inputs": {}, "sha256": digest}),
                encoding="utf-8",
            )
    (home / "logs").mkdir()
    (home / "logs" / "fetch_model.log").write_text("process 1 on my-host", encoding="utf-8")
    return home


def planned(said: str, code: int = 0) -> Any:
    """A stand-in for the dry run, which says `said`."""
    return lambda *_: subprocess.CompletedProcess("snakemake", code, said, "")


@pytest.fixture(autouse=True)
def _nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_dry_run", planned(archive.NOTHING_DUE))


def write(home: Path, *options: str) -> zipfile.ZipFile:
    out = home.parents[1] / "run.zip"
    assert archive.main([str(home), "--out", str(out), *options]) == 0
    return zipfile.ZipFile(out)


def graph(archived: zipfile.ZipFile) -> dict[str, Mapping[str, Any]]:
    content = json.loads(archived.read("ro-crate-metadata.json"))
    return {entity["@id"]: entity for entity in content["@graph"]}


def refusal(home: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert archive.main([str(home), *options]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


def test_the_library_reads_the_archive_and_every_digest_matches(tmp_path: Path) -> None:
    home = make_run(tmp_path)
    with write(home) as archived:
        contents = {name: archived.read(name) for name in archived.namelist()}
    assert len(contents) == len(set(contents))
    read = ROCrate(tmp_path / "run.zip")
    assert read.mainEntity.id == "Snakefile"
    assert "ComputationalWorkflow" in read.mainEntity.type
    described = {unquote(entity.id): entity["sha256"] for entity in read.get_by_type("File")}
    assert set(described) == set(contents) - {"ro-crate-metadata.json"}
    for name, digest in described.items():
        assert hashlib.sha256(contents[name]).hexdigest() == digest, name
    assert {entity.id for entity in read.root_dataset["conformsTo"]} > set(crate.PROFILES)
    (action,) = read.root_dataset["mentions"]
    assert action["instrument"] == read.mainEntity
    assert f"results/{MODEL}/report.html" in {entity.id for entity in action["result"]}
    assert json.loads(contents["settings.json"])["sae"]["k"]


def test_the_workflow_is_whole_and_no_host_or_cache_is_archived(tmp_path: Path) -> None:
    with write(make_run(tmp_path)) as archived:
        names = set(archived.namelist())
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    roots = {name for name in crate.WORKFLOW if (ROOT / name).is_dir()}
    wanted = {name for name in tracked if name.split("/")[0] in roots}
    assert len(wanted) > 300
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or "/logs/" in name]


def test_weights_are_in_the_archive_by_choice_and_named_with_their_digest_otherwise(
    tmp_path: Path,
) -> None:
    home = make_run(tmp_path)
    digest = hashlib.sha256((tmp_path / SAE).read_bytes()).hexdigest()
    with write(home) as archived:
        assert SAE not in archived.namelist()
        assert graph(archived)[f"#{SAE}"]["sha256"] == digest
        rows = list(csv.DictReader(io.StringIO(archived.read("digests.csv").decode())))
    listed = {row["path"]: row for row in rows}
    assert listed[SAE]["sha256"] == digest
    assert listed[SAE]["in_archive"] == "0"
    assert listed[f"results/{MODEL}/report.html"]["in_archive"] == "1"
    assert len(rows) == len(list((home / "records").rglob("*.json")))
    with write(home, "--weights") as archived:
        assert archived.read(SAE) == (tmp_path / SAE).read_bytes()
        assert f"#{SAE}" not in graph(archived)


def test_data_sets_carry_the_licences_of_their_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_run(tmp_path, datasets="[capitals, languages, truthfulqa]")
    with write(home, "--config", "datasets=[capitals, languages, truthfulqa]") as archived:
        entities = graph(archived)
    licences = {
        name: [
            each["@id"]
            for each in entities[f"results/{MODEL}/datasets/{name}/examples.parquet"].get(
                "license", []
            )
        ]
        for name in ("capitals", "languages", "truthfulqa")
    }
    assert licences["capitals"] == [crate.LICENCES["CC BY 4.0"]]
    assert len(licences["languages"]) == 2
    assert not licences["truthfulqa"]
    assert "licence of the texts in truthfulqa is not known" in capsys.readouterr().err
    table = "workflow_scripts/ghosttrack/data/facts/capitals.csv"
    assert entities[table]["license"] == [{"@id": crate.LICENCES["CC BY 4.0"]}]


def test_a_data_set_with_a_space_in_its_name_has_its_licence(tmp_path: Path) -> None:
    home = make_run(tmp_path)
    (settings,) = load({"model": MODEL, "datasets": "[capitals]"}, ROOT / "config").values()
    named = settings.model_copy(update={"datasets": ["my (set)"]})
    datasets = {"my (set)": DatasetSettings(source="facts", table="capitals")}
    (home / "datasets" / "capitals").rename(home / "datasets" / "my (set)")
    (home / "records" / "datasets" / "capitals").rename(home / "records/datasets/my (set)")
    out = tmp_path / "run.zip"
    assert not crate.write(crate.Run(home, named, datasets, [], False), ROOT, out)
    path = f"results/{MODEL}/datasets/my (set)/examples.parquet"
    table = ROCrate(out).get(quote(path))
    assert [licence.id for licence in table["license"]] == [crate.LICENCES["CC BY 4.0"]]
    with zipfile.ZipFile(out) as archived:
        assert path in archived.namelist()


@pytest.mark.parametrize("name", ["run", "model", "torch"])
def test_a_data_set_is_described_whatever_its_name(name: str, tmp_path: Path) -> None:
    home = make_run(tmp_path)
    (settings,) = load({"model": MODEL, "datasets": "[capitals]"}, ROOT / "config").values()
    named = settings.model_copy(update={"datasets": [name]})
    datasets = {name: DatasetSettings(source="file", path="mine.csv")}
    for folder in ("datasets", "records/datasets"):
        (home / folder / "capitals").rename(home / folder / name)
    out = tmp_path / "run.zip"
    assert crate.write(crate.Run(home, named, datasets, [], False), ROOT, out) == [name]
    crated = ROCrate(out)
    (action,) = crated.root_dataset["mentions"]
    described = [str(entity.get("description", "")) for entity in action["object"]]
    assert len([text for text in described if text.startswith("A data set that does not")]) == 1
    assert len([text for text in described if text.startswith("The language model")]) == 1


def test_files_of_earlier_settings_are_not_archived(tmp_path: Path) -> None:
    home = make_run(tmp_path, datasets="[capitals, cities]")
    other = home / "judged" / "mine"
    other.mkdir(parents=True)
    (other / "metrics.csv").write_text("mine", encoding="utf-8")
    with write(home, "--config", "datasets=[capitals]") as archived:
        names = archived.namelist()
    assert f"results/{MODEL}/datasets/capitals/examples.parquet" in names
    assert not [name for name in names if name.startswith("results/") and "/cities" in name]
    assert not [name for name in names if "judged/mine" in name]


def test_all_outputs_of_a_job_and_of_the_jobs_before_it_are_found(tmp_path: Path) -> None:
    home = tmp_path / "results" / MODEL
    for rule, path, inputs in (
        ("early", "corpus/train.json", []),
        ("early", "corpus/train.zarr", []),
        ("late", "figures/auroc.png", [f"results/{MODEL}/corpus/train.json"]),
        ("late", "figures/risk.png", [f"results/{MODEL}/corpus/train.json"]),
        ("other", "figures/old.png", []),
    ):
        record = records.record_path(home / path)
        record.parent.mkdir(parents=True, exist_ok=True)
        content = {"rule": rule, "params": {}, "inputs": dict.fromkeys(inputs, "0"), "sha256": path}
        record.write_text(json.dumps(content), encoding="utf-8")
    found = crate.outputs_of(home, ["figures/auroc.png"])
    assert [(output.path, output.rule, output.sha256) for output in found] == [
        ("corpus/train.json", "early", "corpus/train.json"),
        ("corpus/train.zarr", "early", "corpus/train.zarr"),
        ("figures/auroc.png", "late", "figures/auroc.png"),
        ("figures/risk.png", "late", "figures/risk.png"),
    ]


def test_every_shipped_data_file_has_a_known_licence() -> None:
    found = crate.shipped_licences(ROOT)
    assert {one for names in found.values() for one in names} <= set(crate.LICENCES)
    folder = ROOT / crate.DATA
    shipped = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert shipped - {"README.md"} == set(found)


@pytest.mark.parametrize("name", ["report.html", "saes/layer_01/quality.json"])
def test_an_unfinished_run_is_refused_with_what_is_missing_and_what_to_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_run(tmp_path)
    (home / name).unlink()
    said = refusal(home, capsys, "--config", "seed=0")
    job = "write_report" if name == "report.html" else "evaluate_sae layer_01"
    assert re.search(
        rf"not finished, 1 of \d+ jobs have no outputs \({job}\); "
        "give the --config values of the run, or first run: ",
        said,
    )
    assert f'make run ARGS="--config seed=0 model={MODEL}"' in said
    assert not home.with_name(f"{MODEL}.crate.zip").exists()


def test_the_named_command_passes_every_setting_through_the_shell_and_make(tmp_path: Path) -> None:
    given = ['model="2024"', "sae={k: 32}", 'datasets=["it\'s","$HOME `a`"]', r"corpus=a\b"]
    (tmp_path / "Makefile").write_text("run:\n\t@printf '%s\\n' $(ARGS)\n", encoding="utf-8")
    command = archive._command(given)
    said = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["--config", *given], command


def test_the_model_may_be_named_again_as_in_the_command_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, asked = make_run(tmp_path), list[str]()

    def dry_run(_: Path, given: list[str]) -> "subprocess.CompletedProcess[str]":
        asked.extend(given)
        return subprocess.CompletedProcess("snakemake", 0, archive.NOTHING_DUE, "")

    monkeypatch.setattr(archive, "_dry_run", dry_run)
    write(home, "--config", f"model={MODEL}", "seed=0").close()
    assert asked == ["seed=0", f"model={MODEL}"]


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (
            "Finished jobs that must run again:\n  train_sae (4 jobs): settings: sae.k 4 -> 8\n",
            0,
            "train_sae (4 jobs): settings: sae.k 4 -> 8",
        ),
        ("Job stats:\njob count\n", 0, "jobs are due"),
        ("settings: unknown key\n", 1, "settings: unknown key"),
    ],
)
def test_results_of_other_settings_or_code_are_refused(
    said: str,
    code: int,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = make_run(tmp_path)
    monkeypatch.setattr(archive, "_dry_run", planned(said, code))
    assert f"({reason}); give the --config values of the run" in refusal(home, capsys)


def test_a_wrong_folder_or_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path / "results" / "gone", tmp_path, Path("/")):
        assert "there is no such folder of results" in refusal(folder, capsys)
    home = make_run(tmp_path)
    assert "name such a file" in refusal(home, capsys, "--out", str(tmp_path / "no" / "a.zip"))
    assert "name such a file" in refusal(home, capsys, "--out", str(tmp_path / "folder"))


def test_a_run_without_the_configuration_of_its_workflow_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_run(tmp_path)
    (home.parents[1] / "config" / "config.yaml").unlink()
    message = refusal(home, capsys)
    assert "moved or copied, give results/MODEL in the folder of the workflow" in message
    assert "with this one as a module cannot be archived" in message


def test_results_may_be_a_link_and_the_clone_may_be_below_a_folder_named_results(
    tmp_path: Path,
) -> None:
    (tmp_path / "disk").mkdir()
    home = make_run(tmp_path / "disk")
    clone = tmp_path / "results" / "clone"
    clone.mkdir(parents=True)
    (home.parents[1] / "config").rename(clone / "config")
    (clone / "results").symlink_to(home.parent)
    names = write(clone / "results" / MODEL).namelist()
    assert {f"results/{MODEL}/report.html", f"results/{MODEL}/records/report.html.json"} <= set(
        names
    )
