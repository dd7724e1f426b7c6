"""Arguments that Snakemake ignores or reports with a traceback."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.exceptions import WorkflowError

from ghosttrack.planning import traps

RULES = [
    "fetch_model",
    "train_sae",
    "evaluate_sae",
    "extract_heldout_gpt2_small",
    "extract_activations_gpt2_small_wave_00",
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "model=x", "saes"], "write it before --config: saes --config"),
        (["-n", "-C", "saes"], "write it before --config: saes --config"),
        (["--config", "sae.k=32"], "write 'sae={k: 32}'"),
        (["--config=sae.k=32"], "write 'sae={k: 32}'"),
        (["--config", "tracking.original.birth=1"], "write 'tracking={original: {birth: 1}}'"),
        (["--config", "model", "=", "x"], "'model' is not KEY=VALUE"),
        (["--config", "model=", "=x"], "without spaces around the equals sign"),
        (["--config", "sae={k:", "32}"], "quotation marks"),
        (["--config", "model=a", "model=b"], "model occurs twice, as a and as b"),
        (["--config", "seed=1", "-n", "--config", "seed=2"], "seed occurs twice"),
        (["--config", "sae={k: 1}", "sae=x"], "sae occurs twice"),
    ],
)
def test_settings_that_snakemake_would_misread_are_refused_with_the_remedy(
    arguments: list[str], said: str
) -> None:
    found = traps.refused_arguments(arguments)
    assert said in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["saes", "-n"],
        ["saes", "--config", "model=x", "sae={k: 32, epochs: 1}", "-n"],
        ["--config", "model_path=/a b/c.d"],
        ["--config", "model=x", "--set-resources", "train_sae:mem_mb=1"],
        ["--config", "sae={k: 1}", "sae={epochs: 2}"],
        ["--config", "datasets=[c++,facts (v2)]", "preset="],
        ["--configfile", "mine.yaml"],
        ["--config", "model=Llama-3.1-8B"],
    ],
)
def test_valid_arguments_are_accepted(arguments: list[str]) -> None:
    assert traps.refused_arguments(arguments) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trian_sae", "did you mean train_sae"),
        ("extract_heldout", "did you mean extract_heldout_gpt2_small?"),
        ("extract_activations", "did you mean extract_activations_gpt2_small_wave_00?"),
        ("extract_activations_gpt2_small", "did you mean extract_activations_gpt2_small_wave_00?"),
        ("extract_heldout_gpt2-small", "did you mean extract_heldout_gpt2_small?"),
        ("extract_heldout_gpt2_smal", "did you mean extract_heldout_gpt2_small?"),
        ("zzz", "a dry run prints the names"),
    ],
)
def test_an_unknown_rule_is_refused_with_similar_names(name: str, said: str) -> None:
    assert said in traps.refused_rule(name, RULES, ["gpt2_small", "gpt2_medium"])


@pytest.mark.parametrize(
    "name",
    [
        "train_sae",
        "extract_heldout_gpt2_small",
        "extract_heldout_gpt2_medium",
        "extract_activations_gpt2_medium_wave_07",
        "train_shared_sae_gpt2_small",
    ],
)
def test_a_profile_may_have_the_rules_of_every_model(name: str) -> None:
    assert traps.refused_rule(name, RULES, ["gpt2_small", "gpt2_medium"]) == ""


def workflow(home: Path, **change: Any) -> Any:
    """The parts of Snakemake's workflow object that are checked."""
    asked: dict[str, Any] = {
        "overwrite_resources": {},
        "overwrite_threads": {},
        "consider_ancient": {},
        "config_args": (),
        "configfiles": (),
        **change,
    }
    part = SimpleNamespace(**asked)
    return SimpleNamespace(
        is_main_process=True,
        modifier=SimpleNamespace(parent_modifier=None),
        current_basedir=home,
        configfiles=[],
        config_settings=part,
        resource_settings=part,
        workflow_settings=part,
        rules=[SimpleNamespace(name=name) for name in RULES],
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overwrite_resources": {"trian_sae": {}}}, "--set-resources: there is no rule trian_sae"),
        ({"overwrite_threads": {"trian_sae": 1}}, "--set-threads: there is no rule trian_sae"),
        (
            {"consider_ancient": {"trian_sae": {0}}},
            "--consider-ancient: there is no rule trian_sae",
        ),
        ({"config_args": ["seed=1", "seed=2"]}, "seed occurs twice"),
    ],
)
def test_every_option_that_snakemake_would_ignore_stops_the_run(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    traps.check(workflow(tmp_path), ["gpt2-small"])
    with pytest.raises(WorkflowError, match=said):
        traps.check(workflow(tmp_path, **change), ["gpt2-small"])
    child = workflow(tmp_path, **change)
    child.is_main_process = False
    traps.check(child, ["gpt2-small"])  # a job on a node: its main process has checked


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "a$b", "a;b", "a(b)"])
def test_a_python_with_special_characters_of_the_shell_is_refused_with_the_remedy(
    name: str,
) -> None:
    found = traps.refused_place(Path("/home/me/ghosttrack"), f"/home/me/{name}/bin/python")
    assert "make run VENV=" in found


def test_only_a_folder_with_braces_is_refused() -> None:
    assert "brace" in traps.refused_place(Path("/home/{me}/x"), "/usr/bin/python")
    assert traps.refused_place(Path("/home/o'brien/a b"), "/usr/bin/python") == ""
