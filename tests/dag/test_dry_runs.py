"""The plan of a run, without torch: which jobs each model needs, and which words an error uses."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fake_saelens
import pytest

from ghosttrack.settings import code_digest
from tests.conftest import ROOT, copy_house, job_counts, snakemake

pytestmark = pytest.mark.dag


@pytest.mark.parametrize(("model", "layers"), [("gpt2-small", 12), ("gpt2-medium", 24)])
def test_the_cluster_command_plans_one_training_per_layer(
    house: Path, model: str, layers: int
) -> None:
    result = snakemake(house, "--profile", "slurm", "--config", f"model={model}", "-n")
    assert result.returncode == 0, result.stderr
    counts = job_counts(result.stdout + result.stderr)
    assert counts["train_sae"] == counts["evaluate_sae"] == counts["describe_features"] == layers
    assert counts["find_neighbours"] == layers - 1


def test_make_run_takes_a_target_among_its_arguments(house: Path) -> None:
    result = subprocess.run(
        ["make", "run", f"VENV={sys.prefix}", "READY=", "ARGS=saes -n --config model=gpt2-small"],
        cwd=house,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = job_counts(result.stdout + result.stderr)
    assert counts["saes"] == 1
    assert "write_report" not in counts


def test_make_score_passes_a_dollar_sign_on() -> None:
    text = "It costs $5 or $10M."
    result = subprocess.run(
        ["make", "-n", "score", "READY=", f"ARGS=results/x '{text}'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"results/x '{text}'" in result.stdout


def test_both_models_are_planned_together_and_compared(house: Path) -> None:
    result = snakemake(house, "--profile", "slurm", "--config", "model=both", "-n")
    counts = job_counts(result.stdout + result.stderr)
    assert counts["train_sae"] == 36
    assert counts["compare_models"] == 1
    assert counts["write_report"] == 2


def test_what_runs_the_model_or_trains_an_sae_asks_for_a_gpu_and_nothing_else_does(
    house: Path,
) -> None:
    result = snakemake(house, "--profile", "slurm", "--config", "model=gpt2-medium", "-n")
    lines = [
        line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Job ")
    ]
    with_gpu = {
        line.split(": ", 1)[1].split(" of ")[0].split(" gpt2")[0]
        for line in lines
        if "(GPUs: 1)" in line
    }
    extractions = {
        "Checking",
        "Extracting activations",
        "Extracting held-out activations",
        "Generating answers",
        "Reading statements",
    }
    assert with_gpu == {
        *extractions,
        "Training the SAE",
        "Evaluating the SAE",
        "Testing the explanations",
    }
    # The check of the model, six waves of ten shards, the held-out text, nine data sets, the questions,
    # the training statements, 24 SAEs trained and measured, explanations.
    assert sum("(GPUs: 1)" in line for line in lines) == 1 + 60 + 1 + 9 + 1 + 1 + 24 + 24 + 1


def test_jobs_that_run_the_model_ask_for_the_gpus_that_it_is_spread_over(house: Path) -> None:
    result = snakemake(
        house, "--profile", "slurm", "--config", "model=tiny-gpt2", "plan={gpus_per_model: 2}", "-n"
    )
    asked = {
        int(gpus): {
            line.split(": ", 1)[1].split(" of ")[0].split(" tiny")[0]
            for line in (result.stdout + result.stderr).splitlines()
            if line.startswith("Job ") and f"(GPUs: {gpus})" in line
        }
        for gpus in "12"
    }
    assert asked[1] == {"Training the SAE"}
    assert {"Checking", "Generating answers", "Evaluating the SAE"} < asked[2]


def test_each_model_of_a_run_is_spread_over_its_own_number_of_gpus(tmp_path: Path) -> None:
    house = copy_house(tmp_path / "house")
    medium = house / "config" / "models" / "gpt2-medium.yaml"
    medium.write_text(f"{medium.read_text()}plan: {{gpus_per_model: 2}}\n")
    result = snakemake(house, "--profile", "slurm", "--config", "model=both", "-n")
    shown = result.stdout + result.stderr
    for model, gpus in (("gpt2-small", 1), ("gpt2-medium", 2)):
        for begin in ("Checking", "Extracting activations of"):
            jobs = [
                line
                for line in shown.splitlines()
                if re.search(rf": {begin} {model}\b", line) and "(GPUs: " in line
            ]
            assert jobs
            assert all(f"(GPUs: {gpus})" in line for line in jobs)


@pytest.mark.parametrize(
    # 10 M x 1024 values are 20.5 GB a layer in fp16: three fit into 70 GB. Of the six that fit in int8s, four GPUs train four.
    ("storage", "count"),
    [("fp16", 8), ("int8s", 6)],
)
def test_the_disk_budget_splits_medium_into_waves(house: Path, storage: str, count: int) -> None:
    result = snakemake(
        house,
        "--profile",
        "slurm",
        "--config",
        "model=gpt2-medium",
        f"activations={{storage: {storage}}}",
        "-n",
    )
    counts = job_counts(result.stdout + result.stderr)
    waves = [name for name in counts if name.startswith("extract_activations_gpt2_medium_wave_")]
    assert len(waves) == count
    assert all(counts[name] == 10 for name in waves)


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (
            ["model=both"],
            [
                "Plan of gpt2-small: 12 layers in 6 waves of 2; at most 16.4 GB of training activations at once and 1.89 GB held-out, budget 25 GB",
                "a layer in int8s takes 8.21 GB, all layers 98.5 GB; forward cost 3.5 passes instead of 1",
                "GPUs busy: 3.3 of 4 in extraction, 2.0 of 4 in SAE training",
                "Plan of gpt2-medium: 24 layers in 6 waves of 4; at most 43.6 GB of training activations at once and 5.05 GB held-out, budget 70 GB",
                "a layer in int8s takes 10.9 GB, all layers 262 GB; forward cost 3.5 passes instead of 1",
                "GPUs busy: 3.3 of 4 in extraction, 4.0 of 4 in SAE training",
            ],
        ),
        (
            ["model=gpt2-medium", "activations={storage: fp16}"],
            [
                "Plan of gpt2-medium: 24 layers in 8 waves of 3; at most 61.6 GB of training activations at once and 5.05 GB held-out, budget 70 GB",
                "a layer in fp16 takes 20.5 GB, all layers 493 GB; forward cost 4.5 passes instead of 1",
                "GPUs busy: 3.3 of 4 in extraction, 3.0 of 4 in SAE training",
            ],
        ),
    ],
)
def test_a_dry_run_says_once_what_the_disk_will_hold(
    house: Path, config: list[str], lines: list[str]
) -> None:
    result = snakemake(house, "-n", "--config", *config)
    assert result.returncode == 0, result.stderr
    for line in lines:
        assert result.stderr.count(line) == 1, result.stderr
    assert "Plan of" not in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--rulegraph"], ["--lint"], ["--list-rules"], ["--summary"]]
)
def test_graphs_lists_and_lint_are_not_mixed_with_the_plan(
    house: Path, arguments: list[str]
) -> None:
    result = snakemake(house, *arguments, "--config", "model=tiny-gpt2")
    assert "Plan of" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "config",
    [
        ["model=gpt2-medium"],
        ["model=tiny-gpt2", "strict=true"],
        ["model=gpt2-medium", "sae={source: owner/name, revision: abc}"],
    ],
)
def test_status_counts_the_jobs_that_snakemake_plans(house: Path, config: list[str]) -> None:
    planned = job_counts(snakemake(house, "-n", "--config", *config).stdout)
    by_phase: dict[str, int] = {}
    for name, count in planned.items():
        phase = re.sub(r"_(gpt2_medium|tiny_gpt2)(_wave_\d\d)?$", "", name)
        by_phase[phase] = by_phase.get(phase, 0) + count
    command = [sys.executable, "-m", "ghosttrack.cli.status", "--json", "--config", *config]
    environment = {**os.environ, "PYTHONPATH": str(house / "workflow_scripts")}
    shown = subprocess.run(
        command, cwd=house, env=environment, capture_output=True, text=True, check=True
    )
    (found,) = json.loads(shown.stdout).values()
    assert {phase: each["total"] for phase, each in found["phases"].items()} == {
        phase: count for phase, count in by_phase.items() if phase != "all"
    }


def checkpoint(folder: Path, layer: int, **change: object) -> None:
    """A pretrained autoencoder of tiny-gpt2, as far as it is looked at before any job runs."""
    folder.mkdir(parents=True)
    hook = {"hook_name": f"blocks.{layer}.hook_resid_post"}
    cfg = {
        "architecture": "topk",
        "k": 8,
        "d_in": 64,
        "d_sae": 512,
        "dtype": "float32",
        "metadata": hook,
        **change,
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))
    (folder / "sae_weights.safetensors").touch()


def test_pretrained_autoencoders_are_fetched_and_nothing_is_extracted_or_trained_for_them(
    house: Path, tmp_path: Path
) -> None:
    for layer in range(4):
        checkpoint(tmp_path / f"blocks.{layer}.hook_resid_post", layer)
    for source in (
        f"sae={{source: {tmp_path}}}",
        "sae={source: 'owner/name/layers.{layer}', revision: abc}",
    ):
        result = snakemake(house, "-n", "--config", "model=tiny-gpt2", source)
        assert result.returncode == 0, result.stderr
        counts = job_counts(result.stdout)
        assert counts["fetch_sae"] == counts["evaluate_sae"] == counts["describe_features"] == 4
        assert not [
            name for name in counts if name.startswith(("train_sae", "extract_activations"))
        ]
        assert "Plan of" not in result.stderr
    result = snakemake(
        house, "-n", "activations", "--config", "model=tiny-gpt2", f"sae={{source: {tmp_path}}}"
    )
    assert "pretrained SAEs" in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, ["no autoencoder for resid_post of layer 2", "blocks.0.hook_resid_post"]),
        ({"d_in": 32}, ["d_in is 32, but the model's width is 64"]),
        (
            {"metadata": {"hook_name": "blocks.1.hook_resid_post"}},
            ["it was trained on resid_post of layer 1", "layer 2"],
        ),
        ({"architecture": "temporal"}, ["architecture is 'temporal'"]),
    ],
)
def test_a_pretrained_autoencoder_that_does_not_fit_stops_the_run_before_any_job(
    house: Path, tmp_path: Path, change: dict[str, object] | None, words: list[str]
) -> None:
    for layer in range(4):
        if layer != 2 or change is not None:
            checkpoint(
                tmp_path / f"blocks.{layer}.hook_resid_post",
                layer,
                **((change or {}) if layer == 2 else {}),
            )
    result = snakemake(house, "-n", "--config", "model=tiny-gpt2", f"sae={{source: {tmp_path}}}")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in output
    for word in words:
        assert word in output, output


def test_saes_of_the_library_are_planned_by_name_and_refused_by_name(
    house: Path, tmp_path: Path
) -> None:
    def dry_run(source: str, *paths: Path) -> "subprocess.CompletedProcess[str]":
        path = os.pathsep.join(map(str, (house / "workflow_scripts", *paths)))
        arguments = ("-n", "--config", "model=tiny-gpt2", f"sae={{source: '{source}'}}")
        return snakemake(house, *arguments, PYTHONPATH=path)

    fake_saelens.write(tmp_path)
    source = "saelens:tiny-res/layer_{layer}/width_32/canonical"
    result = dry_run(source, tmp_path)
    assert result.returncode == 0, result.stderr
    assert job_counts(result.stdout)["fetch_sae"] == 4
    refused = dry_run(source.replace("tiny-res", "tiny-rse"), tmp_path)
    assert refused.returncode != 0
    assert (
        "SAELens knows no release tiny-rse; most similar: tiny-res"
        in refused.stdout + refused.stderr
    )
    if importlib.util.find_spec("sae_lens") is None:
        refused = dry_run(source)
        assert refused.returncode != 0
        assert "pip install -r envs/saelens.txt" in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stdout + refused.stderr


def test_a_sweep_is_planned_on_request_only(house: Path) -> None:
    sweep = "sweep={layers: [1, 2], k: [4, 8], seeds: [0, 1]}"
    result = snakemake(house, "-n", "sae_sweep", "--config", "model=tiny-gpt2", sweep)
    assert result.returncode == 0, result.stderr
    counts = job_counts(result.stdout)
    assert (counts["sweep_sae"], counts["draw_sweep"]) == (2, 1)
    assert "train_sae" not in counts
    counts = job_counts(snakemake(house, "-n", "--config", "model=tiny-gpt2", sweep).stdout)
    assert not [name for name in counts if "sweep" in name]


def test_a_sweep_of_default_values_that_no_small_dictionary_holds_is_refused_before_any_job(
    house: Path,
) -> None:
    small = ["--config", "model=tiny-gpt2", "sae={d_sae: 100}"]
    assert snakemake(house, "-n", "saes", *small).returncode == 0  # no part of a run reads sweep.k
    result = snakemake(house, "-n", "sae_sweep", *small)
    assert result.returncode != 0
    assert "sweep.k: 128 must be below sae.d_sae (100)" in result.stdout + result.stderr
    advised = ["sweep={k: [12, 25]}"]
    assert f"--config '{advised[0]}'" in result.stdout + result.stderr
    assert snakemake(house, "-n", "sae_sweep", *small, *advised).returncode == 0


def test_other_seeds_refuse_a_sweep_that_no_small_dictionary_holds_before_any_job(
    house: Path,
) -> None:
    """With one analysed layer, seed_variance reads the sweep without being told to."""
    small = ["--config", "model=tiny-gpt2", "activations={layers: [1]}", "sae={d_sae: 100, k: 32}"]
    result = snakemake(house, "-n", "seed_variance", *small)
    assert result.returncode != 0
    assert "sweep.k: 128 must be below sae.d_sae (100)" in result.stdout + result.stderr
    assert snakemake(house, "-n", "seed_variance", *small, "sweep={k: [32]}").returncode == 0


def test_scoring_without_texts_names_the_key_and_with_texts_is_one_job_more(
    house: Path, tmp_path: Path
) -> None:
    result = snakemake(house, "-n", "scores", "--config", "model=tiny-gpt2")
    assert result.returncode != 0
    assert "score.texts: none is given" in result.stdout + result.stderr
    (tmp_path / "mine.txt").write_text("Paris is a city in France.\n")
    result = snakemake(
        house,
        "-n",
        "scores",
        "--config",
        "model=tiny-gpt2",
        f"score={{texts: {tmp_path / 'mine.txt'}}}",
    )
    counts = job_counts(result.stdout + result.stderr)
    assert counts["score_texts"] == counts["save_detector"] == 1
    assert "write_report" not in counts


def test_verifying_plans_nothing_else_and_always_runs(house: Path) -> None:
    for _ in range(2):
        result = snakemake(
            house, "--cores", "1", "verify_activations", "--config", "model=gpt2-medium"
        )
        assert result.returncode == 0, result.stderr
        assert job_counts(result.stderr) == {"verify_activations": 1}
        assert "Plan of" not in result.stderr
    assert not (house / "results" / "gpt2-medium").exists()


def test_the_tiny_model_is_planned_without_torch(house: Path) -> None:
    blocked = house / "no_torch"
    blocked.mkdir(exist_ok=True)
    for name in ("torch", "transformers", "zarr", "scipy", "sklearn", "matplotlib"):
        (blocked / f"{name}.py").write_text(
            "raise ImportError('the Snakefile must not import this')\n"
        )
    path = f"{blocked}:{house / 'workflow_scripts'}"
    result = snakemake(house, "-n", "--config", "model=tiny-gpt2", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert job_counts(result.stdout + result.stderr)["train_sae"] == 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("modle=x", ["unknown key modle", "did you mean model?"]),
        ("model=nope", ["model: 'nope' is not known", "gpt2-small", "model_path"]),
        ("sae={k: -1}", ["sae.k", "-1", "greater than or equal to 1"]),
        ("sae={kk: 1}", ["unknown key sae.kk", "did you mean sae.k?"]),
        ("seed=abc", ["seed", "abc", "integer"]),
        ("datasets=[nope]", ["datasets: 'nope' is not known", "cities"]),
        ("activations={layers: [3, 99]}", ["activations.layers", "99", "0..29"]),
        (
            "sae={dictionaries: warm_start, warm_start_layer: 11}",
            ["sae.warm_start_layer", "11", "[10, 12, 14, 16, 18, 20]"],
        ),
        (
            "tracking={links: correlation, variants: [shuffled]}",
            ["tracking.variants", "shuffled", "correlation"],
        ),
        (
            "activations={disk_budget_gb: 0.001}",
            ["activations.disk_budget_gb", "Raise it to at least"],
        ),
        ("corpus={source: missing.txt}", ["corpus.source", "missing.txt"]),
        ("sae={source: missing}", ["sae.source: there is no folder missing", "sae.revision"]),
        ("sweep={layers: [11]}", ["sweep.layers: 11 is not one of the analysed layers"]),
    ],
)
def test_a_wrong_setting_is_named_before_any_job_starts(
    house: Path, config: str, words: list[str]
) -> None:
    result = snakemake(house, "-n", "--config", config)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in output
    for word in words:
        assert word in output, output


def test_a_model_path_without_weights_is_refused(house: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 2, "n_embd": 8}')
    result = snakemake(house, "-n", "--config", "model=mine", f"model_path={tmp_path}")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "has no weights" in output
    assert "Traceback" not in output


def test_every_rule_has_a_docstring_log_conda_and_message() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    rules = re.split(r"\n(?=(?:    )?rule\b.*:\n)", text)[1:]
    assert len(rules) > 15
    for rule in rules:
        # A rule without outputs runs whenever it is asked for, unless its benchmark stands from last time.
        timed = ["benchmark:"] if "output:" in rule else []
        for part in ("log:", *timed, "conda:", "message:", "script:", "code=source_digest"):
            assert part in rule, f"{part} is missing in:\n{rule[:300]}"
        assert '"""' in rule or "name:" in rule


def test_a_rule_gives_its_script_every_argument_that_it_asks_for() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    blocks = re.split(r"\n(?=(?:    )?rule\b.*:\n)", text)[1:]
    wildcards = {"model", "layer", "shard", "dataset", "variant", "threads"}
    for block in blocks:
        script = re.search(r'workflow_scripts/\w+/(\w+)\.py"', block)
        assert script, block[:200]
        tree = ast.parse(code_digest.script_of(script[1]).read_text())
        (main,) = (
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"
        )
        needed = {
            each.arg
            for each, default in zip(main.args.kwonlyargs, main.args.kw_defaults, strict=True)
            # Without it, a job would run the model in the default precision.
            if not default or each.arg == "inference"
        }
        given = set(re.findall(r"^ +(\w+)=", block, flags=re.M))
        assert needed <= given | wildcards, f"{script[1]} lacks {needed - given - wildcards}"


def test_a_rule_s_script_carries_the_rule_s_name() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    scripts = set(re.findall(r'workflow_scripts/\w+/(\w+)\.py"', text))
    assert scripts == {
        path.stem
        for path in (ROOT / "workflow_scripts").glob("*/*.py")
        if path.parent.name != "ghosttrack"
    }
    for name in scripts:
        assert re.search(
            rf"rule {name}:|{name}_{{RULE_NAMES\[MODEL\]|{name.split('_')[0]}_{{STUDY}}", text
        ), name


def test_the_leak_of_a_random_pair_split_is_shown_without_a_model(house: Path) -> None:
    result = snakemake(house, "--profile", "profiles/local", "reproduce_leak", "-n")
    assert job_counts(result.stdout + result.stderr) == {
        "fetch_dataset": 8,
        "score_leak": 1,
        "reproduce_leak": 1,
    }


def test_a_leak_without_given_texts_is_refused_before_any_job(house: Path) -> None:
    result = snakemake(house, "-n", "reproduce_leak", "--config", "datasets=[questions]")
    assert result.returncode != 0
    assert "smollm2-135m has no data set of given texts" in result.stdout + result.stderr


def test_the_slurm_profile_says_what_the_rules_ask_for() -> None:
    profile = (ROOT / "profiles" / "slurm" / "config.yaml").read_text()
    asked = {}
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for block in re.split(r"\n(?= *rule[ :])", path.read_text()):
            if re.search(r"ACCELERATOR,|model_accelerator\(", block):
                (script,) = re.findall(r'workflow_scripts/\w+/(\w+)\.py"', block)
                (minutes,) = re.findall(r"runtime=(?:\w+\()?\s*(\d+)", block)
                asked[script] = ("1", minutes)
    assert "train_shared_sae, one dictionary for all layers: 120 minutes per layer" in profile
    assert asked.pop("train_shared_sae") == ("1", "120")
    table = re.findall(r"^#   (\w+) +(\d)  .*? (?:(\d+))$", profile, re.MULTILINE)
    assert {phase: (gpus, minutes) for phase, gpus, minutes in table} == asked


def test_every_key_of_a_profile_says_why_it_is_there() -> None:
    for path in (ROOT / "profiles").glob("*/config.yaml"):
        for line in path.read_text().splitlines():
            if re.match(r"[a-z-]+: +\S", line) and not line.startswith("executor"):
                assert "  # " in line, f"{path.parent.name}: {line}"


def test_dictionaries_that_share_an_identity_change_the_plan_of_training_alone(house: Path) -> None:
    plain = job_counts(snakemake(house, "-n", "--config", "model=tiny-gpt2").stdout)
    warm_started = snakemake(
        house,
        "-n",
        "--config",
        "model=tiny-gpt2",
        "sae={dictionaries: warm_start, warm_start_layer: 1}",
    )
    assert job_counts(warm_started.stdout) == plain
    reasons = [
        line.partition("updated by another job")[2] for line in warm_started.stdout.splitlines()
    ]
    waiting = [
        reason
        for reason in reasons
        if "saes/layer_01/cfg.json" in reason and "activations/layer_" in reason
    ]
    assert len(waiting) == 3  # all other layers wait for it
    shared = job_counts(
        snakemake(house, "-n", "--config", "model=tiny-gpt2", "sae={dictionaries: shared}").stdout
    )
    assert shared.pop("train_shared_sae_tiny_gpt2") == 1
    assert shared == {rule: count for rule, count in plain.items() if rule != "train_sae"}


def test_links_by_correlation_wait_for_held_out_activations(house: Path) -> None:
    planned = {}
    for kind in ("cosine", "correlation"):
        result = snakemake(
            house, "-n", "tracks", "--config", "model=tiny-gpt2", f"tracking={{links: {kind}}}"
        )
        planned[kind] = [
            line
            for line in result.stdout.splitlines()
            if "heldout/layer_00.zarr" in line and "saes/layer_02" in line
        ]
    assert not planned["cosine"]
    assert len(planned["correlation"]) == 1


def test_questions_in_a_chat_template_wait_for_the_tokenizer_and_plain_ones_do_not(
    house: Path,
) -> None:
    questions = "results/tiny-gpt2/datasets/questions/questions.parquet"
    planned = {}
    for kind in ("plain", "chat"):
        asked = "model=tiny-gpt2", "datasets=[questions]", f"generation={{prompt: {kind}}}"
        result = snakemake(house, "-n", "features", questions, "--config", *asked)
        (planned[kind],) = (
            line for line in result.stdout.splitlines() if f"output files: {questions}" in line
        )
    assert "model/tokenizer.json" in planned["chat"]
    assert "model/tokenizer.json" not in planned["plain"]


@pytest.mark.parametrize("dictionaries", ["warm_start", "shared"])
def test_status_counts_the_jobs_of_every_kind_of_dictionaries(
    house: Path, dictionaries: str
) -> None:
    chosen = ["--config", "model=tiny-gpt2", f"sae={{dictionaries: {dictionaries}}}"]
    planned = job_counts(snakemake(house, "-n", *chosen).stdout)
    command = [sys.executable, "-m", "ghosttrack.cli.status", "--json", *chosen]
    environment = {**os.environ, "PYTHONPATH": str(house / "workflow_scripts")}
    shown = subprocess.run(
        command, cwd=house, env=environment, capture_output=True, text=True, check=True
    )
    (found,) = json.loads(shown.stdout).values()
    assert (
        sum(each["total"] for each in found["phases"].values())
        == sum(planned.values()) - planned["all"]
    )


def test_other_relations_and_other_seeds_are_asked_for_by_name_and_use_a_sweep_of_every_layer(
    house: Path,
) -> None:
    result = snakemake(house, "--profile", "profiles/local", "transfer", "seed_variance", "-n")
    counts = job_counts(result.stdout + result.stderr)
    assert (
        counts["transfer_detectors"]
        == counts["draw_transfer"]
        == counts["measure_seed_variance"]
        == 1
    )
    assert counts["vary_seeds"] == counts["train_detectors"]
    assert "sweep_sae" not in counts
    swept = "sweep={layers: [10, 12, 14, 16, 18, 20], k: [64]}"
    result = snakemake(
        house, "--profile", "profiles/local", "seed_variance", "-n", "--config", swept
    )
    assert job_counts(result.stdout + result.stderr)["sweep_sae"] == 6


OUTER = """
config["model"] = "tiny-gpt2"
module ghosttrack:
    snakefile: "{snakefile}"
    config: config
use rule * from ghosttrack as gt_*
rule mine:
    output: "mine.txt"
    params: word=open("word").read()
    shell: "echo {{params.word}} > {{output}}"
rule top:
    default_target: True
    input: "mine.txt", "results/tiny-gpt2/datasets/capitals/examples.parquet"
"""


def test_a_workflow_that_uses_this_one_as_a_module_keeps_its_own_reasons_to_run(
    house: Path, tmp_path: Path
) -> None:
    (tmp_path / "Snakefile").write_text(OUTER.format(snakefile=house / "Snakefile"))
    (tmp_path / "word").write_text("first")
    made = snakemake(tmp_path, "-c1")
    assert made.returncode == 0, made.stderr[-3000:]
    again = snakemake(tmp_path, "-n")
    assert "Nothing to be done" in again.stdout + again.stderr
    (tmp_path / "word").write_text("second")
    changed = snakemake(tmp_path, "-n")
    assert job_counts(changed.stdout + changed.stderr) == {"mine": 1, "top": 1}
