"""Records of jobs: content decides; dates, folders and Snakemake's metadata do not."""

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghosttrack.errors import UserError
from ghosttrack.planning import due
from ghosttrack.planning.due import Request
from ghosttrack.runtime import files, records


class Named(list[Any]):
    """A fake of Snakemake's named lists."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self._parts = parts
        for name, value in parts.items():
            self.extend(value if isinstance(value, list) else [value])
            setattr(self, name, value)

    def keys(self) -> list[str]:
        return list(self._parts)

    def items(self) -> list[tuple[str, Any]]:
        return list(self._parts.items())


SAE = "results/m/saes/layer_02/sae_weights.safetensors"
ROWS, MANIFEST = (
    "results/m/activations/layer_02/shard_0000.zarr",
    "results/m/activations/layer_02/shard_0000.json",
)
TABLE = "results/m/evaluation/metrics.csv"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".snakemake").mkdir()
    monkeypatch.chdir(tmp_path)


def put(path: str, content: bytes = b"x") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def job(output: str, inputs: dict[str, Any] | None = None, **params: Any) -> Any:
    return SimpleNamespace(
        rule="made",
        input=Named(**(inputs or {})),
        output=Named(out=output),
        params=Named(**{"code": "c", **params}),
    )


def made(one: Any, content: bytes = b"x") -> None:
    """Run a job: it writes its output."""
    with records.recorded(one):
        put(one.output[0], content)


def chain(k: int = 16, site: str = "resid_post") -> list[Any]:
    """Three jobs in a chain: extraction, training, a table."""
    return [
        job(MANIFEST, site=site),
        job(SAE, {"manifests": [MANIFEST]}, sae={"k": k, "epochs": 2}),
        job(TABLE, {"weights": [SAE]}, seed=0),
    ]


def requests(jobs: list[Any], **calls: str) -> list[Request]:
    makers = {one.output[0]: place for place, one in enumerate(jobs)}
    return [
        Request(
            f"rule{place}",
            records.describe_job(one),
            tuple(one.output),
            {path: makers[path] for path in one.input if path in makers},
            calls.get(f"rule{place}", ""),
        )
        for place, one in enumerate(jobs)
    ]


def states(jobs: list[Any]) -> list[str]:
    return [verdict.state for verdict in due.judge(requests(jobs))]


def finish(jobs: list[Any]) -> None:
    for one in jobs:
        made(one)


def test_before_the_first_run_all_jobs_are_missing_without_a_reason() -> None:
    verdicts = due.judge(requests(chain()))
    assert verdicts == [("missing", "")] * 3
    assert due.described(requests(chain()), verdicts) == ""


def test_a_finished_run_is_current_with_any_dates() -> None:
    finish(chain())
    assert states(chain()) == ["current"] * 3
    for place, path in enumerate(
        (TABLE, SAE, MANIFEST)
    ):  # results that are older than their inputs
        os.utime(path, (1000 + place, 1000 + place))
    shutil.rmtree(".snakemake")
    assert states(chain()) == ["current"] * 3


def test_a_copy_of_the_folder_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(chain())
    shutil.copytree("results", tmp_path / "elsewhere" / "results", copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert states(chain()) == ["current"] * 3


def test_a_changed_setting_is_named_and_makes_dependent_jobs_due() -> None:
    finish(chain())
    verdicts = due.judge(requests(chain(k=8)))
    assert [verdict.state for verdict in verdicts] == ["current", "due", "due"]
    assert verdicts[1].reason == "settings: sae.k 16 -> 8"
    text = due.described(requests(chain(k=8)), verdicts)
    assert "rule1: settings: sae.k 16 -> 8" in text
    assert "jobs that depend on these: 1" in text


@pytest.mark.parametrize(
    ("before", "now", "state"),
    [("models/mine", "/home/ann/models/mine", "current"), ("models/mine", "models/theirs", "due")],
)
def test_the_folder_of_a_local_model_or_of_local_saes_may_be_moved(
    before: str, now: str, state: str
) -> None:
    def jobs(folder: str) -> list[Any]:
        model = {"kind": "directory", "id": folder, "revision": None}
        sae = {"source": f"{folder}_layer_{{layer}}", "revision": None, "k": 16}
        return [job(MANIFEST, source=model), job(SAE, sae=sae)]

    finish(jobs(before))
    assert states(jobs(now)) == [state] * 2


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"source": "saelens:release/a"}, {"source": "saelens:other/a"}),
        ({"source": "ann/saes/a", "revision": "1"}, {"source": "bob/saes/a", "revision": "1"}),
        ({"source": "train"}, {"source": "saes/layer_{layer}"}),
    ],
)
def test_saes_of_another_origin_are_due(before: dict[str, str], now: dict[str, str]) -> None:
    finish([job(SAE, sae=before)])
    assert states([job(SAE, sae=now)]) == ["due"]


def test_a_changed_setting_is_not_forgotten_when_its_first_job_fails() -> None:
    finish(chain())
    changed = chain(site="mlp_out")
    Path(MANIFEST).unlink()  # Snakemake removes the output before it runs the job, which fails
    assert states(changed) == ["due", "due", "due"]
    made(changed[0])  # the second attempt extracts, and nothing is trained yet
    assert states(changed) == [
        "current",
        "current",
        "current",
    ]  # the content is the same, so no other job runs
    made(changed[0], b"other")
    assert states(changed) == ["current", "due", "due"]


def test_a_lost_result_is_missing_and_dependent_jobs_stay_current() -> None:
    finish(chain())
    Path(SAE).unlink()
    assert states(chain()) == ["current", "missing", "current"]


def test_activations_deleted_under_a_disk_budget_are_missing_and_make_no_job_due() -> None:
    finish(chain())
    Path(MANIFEST).unlink()
    assert states(chain()) == ["missing", "current", "current"]
    assert states(chain(site="mlp_out")) == ["due", "due", "due"]


@pytest.mark.parametrize("path", [MANIFEST, SAE, TABLE])
def test_a_flipped_bit_is_reported_and_only_its_job_runs_again(path: str) -> None:
    finish(chain())
    put(path, b"y")
    verdicts = due.judge(requests(chain()))
    assert [verdict.state for verdict in verdicts].count("damaged") == 1
    assert [verdict.state for verdict in verdicts].count("current") == 2
    assert any(path in verdict.reason for verdict in verdicts)


def test_a_result_rewritten_with_other_content_makes_dependent_jobs_due() -> None:
    finish(chain())
    made(chain()[1], b"other rounding")
    assert states(chain()) == ["current", "current", "due"]


def test_an_output_without_a_record_is_due() -> None:
    finish(chain())
    records.record_path(SAE).unlink()
    assert states(chain()) == ["current", "due", "due"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"params": 3}', '{"params": {}, "inputs": {}}', "\x00"]
)
def test_a_damaged_record_counts_as_missing(text: str) -> None:
    finish(chain())
    records.record_path(SAE).write_text(text)
    assert states(chain()) == ["current", "due", "due"]


def test_order_only_inputs_are_not_in_the_description() -> None:
    waiting = job(MANIFEST, {"earlier": [SAE], "weights": ["results/m/model/model.safetensors"]})
    assert list(records.describe_job(waiting).inputs) == ["results/m/model/model.safetensors"]


def test_a_user_file_counts_by_content_and_not_by_folder() -> None:
    put("mine/texts.csv", b"a,b")
    one = job(TABLE, {"file": "mine/texts.csv"}, dataset_settings={"path": "mine/texts.csv"})
    made(one)
    shutil.move("mine", "moved")
    moved = job(TABLE, {"file": "moved/texts.csv"}, dataset_settings={"path": "moved/texts.csv"})
    assert states([moved]) == ["current"]
    put("moved/texts.csv", b"a,c")
    os.utime("moved/texts.csv", (1000, 1000))  # as `cp -p` of an older file
    assert states([moved]) == ["due"]
    assert "mine" not in records.record_path(TABLE).read_text()


def test_two_files_of_the_same_name_are_distinguished() -> None:
    put("a/texts.csv", b"1")
    put("b/texts.csv", b"2")
    made(job(TABLE, {"texts": "a/texts.csv", "context": "b/texts.csv"}))
    assert states([job(TABLE, {"texts": "a/texts.csv", "context": "b/texts.csv"})]) == ["current"]
    assert states([job(TABLE, {"texts": "b/texts.csv", "context": "a/texts.csv"})]) == ["due"]


def test_untracked_params_do_not_make_a_job_due() -> None:
    made(job(TABLE, state="a", training_digest="b", expected={"k": 1}))
    assert states([job(TABLE, state="c", training_digest="d", expected={"k": 2})]) == ["current"]


def test_settings_survive_json() -> None:
    values: dict[str, Any] = {
        "layers": (1, 2),
        "path": Path("x"),
        "nothing": None,
        "rate": 0.1,
        "on": True,
        "arms": {3: {"b": 1, "a": 2}},
    }
    made(job(TABLE, **values))
    assert states([job(TABLE, **values)]) == ["current"]
    assert states([job(TABLE, **{**values, "on": 1.5})]) == ["due"]


def test_a_job_refuses_an_input_that_differs_from_its_record() -> None:
    finish(chain()[:1])
    put(MANIFEST, b"damaged")
    with pytest.raises(
        UserError, match=r"shard_0000.json was damaged or edited .*Run the same command again"
    ):
        made(chain()[1])
    assert records.read(SAE) is None


def test_a_slurm_job_waits_for_the_new_version_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    finish(chain()[:1])
    put(MANIFEST, b"the former version")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("time.sleep", lambda _: put(MANIFEST))
    made(chain()[1])
    assert records.read(SAE) is not None


def _write_half() -> None:
    put(SAE)
    raise UserError("no room")


def test_a_job_that_fails_records_nothing() -> None:
    finish(chain()[:1])
    with pytest.raises(UserError), records.recorded(chain()[1]):
        _write_half()
    assert records.read(SAE) is None


def test_dependent_jobs_of_a_requested_job_are_due() -> None:
    finish(chain())
    verdicts = due.judge(requests(chain(), rule1="requested on the command line"))
    assert [verdict.state for verdict in verdicts] == ["current", "due", "due"]


def test_further_reasons_are_counted() -> None:
    jobs = [job(f"results/m/{name}.csv", seed=0) for name in range(due.SHOWN_REASONS + 5)]
    for one in jobs:
        put(one.output[0])
    verdicts = due.judge(requests(jobs))
    assert "and 5 more" in due.described(requests(jobs), verdicts)


# ---- digests of content
def store(files_of: dict[str, bytes], manifest: bytes = b"{}") -> None:
    for name, content in files_of.items():
        put(f"{ROWS}/{name}", content)
    put(MANIFEST, manifest)


def test_the_digest_of_a_store_covers_its_manifest_and_file_sizes() -> None:
    store({"zarr.json": b"{}", "c/0": b"12"})
    first = records.digest_of(ROWS)
    put(f"{ROWS}/.snakemake_timestamp")
    assert records.digest_of(ROWS) == first
    for change in ({"c/0": b"1"}, {"c/1": b""}):
        shutil.rmtree(ROWS)
        store({"zarr.json": b"{}", "c/0": b"12", **change})
        assert records.digest_of(ROWS) != first
    shutil.rmtree(ROWS)
    store({"zarr.json": b"{}", "c/0": b"12"}, manifest=b"[]")
    assert records.digest_of(ROWS) != first


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", [".nfs0000000000a1", "._c", ".DS_Store", "c/._0"])
def test_files_of_the_file_system_are_no_part_of_a_folder(name: str, sealed: bool) -> None:
    folder = Path("one.zarr")
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "0").write_bytes(b"rows")
    if sealed:
        Path("one.json").write_text("{}")
    before = records.digest_of(folder)
    (folder / name).write_bytes(b"of another program")
    assert records.digest_of(folder) == before
    (folder / "c" / "1").write_bytes(b"rows")
    assert records.digest_of(folder) != before


def test_the_digest_of_a_folder_without_a_manifest_covers_all_bytes() -> None:
    put("results/m/paper/a.tex", b"1")
    first = records.digest_of("results/m/paper")
    put("results/m/paper/a.tex", b"2")
    assert records.digest_of("results/m/paper") != first
    assert records.digest_of("results/m/none") is None


def test_a_large_file_is_read_once_and_again_after_any_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(records, "CACHED_BYTES", 4)
    monkeypatch.setattr(records, "SETTLED_SECONDS", -1.0)
    real = files.sha256_file

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(files, "sha256_file", counted)
    put("large", b"12345")
    first = records.digest_of("large")
    assert records.digest_of("large") == first
    assert len(read) == 1
    dates = Path("large").stat()
    put("large", b"12346")
    os.utime("large", ns=(dates.st_atime_ns, dates.st_mtime_ns))  # size and date as before
    assert records.digest_of("large") != first
    for damage in (b"", b"x", b"\xff\xfe"):
        for cached in Path(records.CACHE).iterdir():
            cached.write_bytes(damage)
        assert records.digest_of("large") == real(Path("large"))


def test_the_digest_of_a_new_file_is_not_cached() -> None:
    put("large", b"1" * (records.CACHED_BYTES + 1))
    records.digest_of("large")
    assert not Path(records.CACHE).exists()


def test_the_digest_of_a_model_covers_every_file_that_is_loaded() -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json", "merges.txt", "README.md"):
        put(f"mine/{name}", b"a" * 100_000)
    first = records.model_digest(Path("mine"))
    put("mine/README.md", b"b")
    assert records.model_digest(Path("mine")) == first
    for name in ("model.safetensors", "config.json", "tokenizer.json", "merges.txt"):
        put(f"mine/{name}", b"a" * 70_000 + b"b" + b"a" * 29_999)
        assert records.model_digest(Path("mine")) != first
        put(f"mine/{name}", b"a" * 100_000)


# ---- lineage of results
def test_results_with_the_settings_of_this_run_pass() -> None:
    finish(chain())
    assert (
        records.check_lineage(
            [TABLE], {"sae": {"k": 16, "epochs": 2, "new": 1}, "seed": 0, "site": "resid_post"}
        ).files
        == 3
    )


def test_results_of_two_versions_of_a_library_name_both() -> None:
    finish(chain())
    path = records.record_path(TABLE)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"libraries": {"numpy": "1.0", "zarr": "2.0"}}))
    found = records.check_lineage([TABLE], {}).libraries
    assert found["numpy"] == ["1.0", importlib.metadata.version("numpy")]
    assert found["torch"] == [importlib.metadata.version("torch")]


def test_a_record_without_versions_is_read() -> None:
    finish(chain())
    path = records.record_path(TABLE)
    content = json.loads(path.read_text())
    del content["libraries"]
    path.write_text(json.dumps(content))
    assert records.read(TABLE) == (*records.read(TABLE)[:3], {})  # type: ignore[index]
    assert records.check_lineage([TABLE], {}).libraries["torch"] == [
        "(not recorded)",
        importlib.metadata.version("torch"),
    ]


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"sae": {"k": 8, "epochs": 2}}, r"sae_weights.* made with sae.k 16, but this run has 8"),
        ({"seed": 1}, "seed 0"),
    ],
)
def test_results_with_other_settings_fail(expected: dict[str, Any], said: str) -> None:
    finish(chain())
    with pytest.raises(UserError, match=said):
        records.check_lineage([TABLE], expected)


def test_results_made_from_another_version_of_a_file_fail() -> None:
    finish(chain())
    made(chain()[1], b"other")
    with pytest.raises(UserError, match=r"metrics.csv was made from another .*sae_weights"):
        records.check_lineage([TABLE], {})


# ---- a finished run that other commands read
def test_an_untouched_run_passes_wherever_it_lies() -> None:
    finish(chain())
    records.check_run(Path("results/m"), [Path(TABLE)])
    shutil.copytree("results/m", "copy")
    records.check_run(Path("copy"), [Path("copy/evaluation/metrics.csv")])
    put("copy/evaluation/extra.csv")
    records.check_run(Path("copy"), [Path("copy/evaluation/extra.csv"), Path("copy/missing.csv")])


@pytest.mark.parametrize("run", ["results/m", "copy"])
def test_an_edited_file_of_a_run_is_named_with_the_command_that_makes_it_again(run: str) -> None:
    finish(chain())
    shutil.copytree("results/m", "copy")
    put(f"{run}/evaluation/metrics.csv", b"edited")
    with pytest.raises(UserError) as refused:
        records.check_run(Path(run), [Path(run) / "evaluation" / "metrics.csv"])
    assert str(refused.value).startswith(f"{run}/evaluation/metrics.csv was damaged or edited")
    assert f'make run ARGS="--config model={Path(run).name}"' in str(refused.value)


def test_a_run_that_was_changed_and_not_finished_is_refused() -> None:
    finish(chain())
    made(chain(k=8)[1], b"other")
    shutil.copytree("results/m", "kept/old")
    for run in ("results/m", "kept/old"):  # also a copy with another name
        table = Path(run) / "evaluation" / "metrics.csv"
        with pytest.raises(
            UserError, match=rf"{run}/.*metrics.csv was made from another version of .*layer_02"
        ):
            records.check_run(Path(run), [table])
    made(chain(k=8)[2])
    records.check_run(Path("results/m"), [Path(TABLE)])


def test_a_record_is_readable_json_in_the_results_folder() -> None:
    finish(chain())
    path = Path("results/m/records/saes/layer_02/sae_weights.safetensors.json")
    content = json.loads(path.read_text())
    assert content["params"]["sae"] == {"k": 16, "epochs": 2}
    assert list(content["inputs"]) == [MANIFEST]
