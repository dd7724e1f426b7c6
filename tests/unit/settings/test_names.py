"""Names and paths in the settings: accepted unchanged, or refused with the key on one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus_sources
from ghosttrack.planning import plan
from ghosttrack.planning.configuration import load, load_dataset
from ghosttrack.settings import SaeSettings, Settings

TINY = "source: {SOURCE}\ndimensions: {n_layers: 2, d_model: 8}\ndatasets: [d]\n"


def config(
    root: Path, model: str = "m", source: str = "kind: random", datasets: tuple[str, ...] = ("d",)
) -> Path:
    """A config folder with one model and some data sets."""
    for folder in ("models", "datasets", "presets"):
        (root / folder).mkdir()
    (root / "models" / f"{model}.yaml").write_text(TINY.replace("SOURCE", source))
    for name in datasets:
        (root / "datasets" / f"{name}.yaml").write_text("{source: facts, table: cities}")
    return root


def one(root: Path, **given: Any) -> Settings:
    (found,) = load({"model": "m", **given}, root).values()
    return found


def refusal(root: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        one(root, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "requirement",
    [
        "-r evil.txt==1",
        "--index-url=http://x==1",
        "x @ file:///x==1",
        "x@http://x/x.whl==1",
        "../x==1",
        "./x.whl",
        "x",
        "x==",
        "==1",
        "x>=1",
        "x==1,<2",
        "x==1.*",
        "x===1",
        "x[extra]==1",
        "x==1; python_version>'3'",
        "x ==1",
        "x== 1",
        "x==1 ",
        "x==1\n--pre",
        "x==1 --pre",
        "http://x/x==1",
        "x==file:///x",
    ],
)
def test_a_wheel_that_is_not_name_and_version_is_refused(tmp_path: Path, requirement: str) -> None:
    root = config(tmp_path)
    said = refusal(root, source={"kind": "wheel", "id": requirement})
    assert said.startswith("source.id: ")
    assert "NAME==VERSION" in said


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/abs",
        "a/b/c",
        "./x",
        "-x/y",
        "a/-b",
        "a/..",
        "https://x/y",
        "a b/c",
        "a/b?x",
        "a/b\n",
        "a" * 97,
        "a--b/c",
    ],
)
def test_an_invalid_hub_repository_is_refused(tmp_path: Path, name: str) -> None:
    said = refusal(config(tmp_path), source={"kind": "hub", "id": name})
    assert said.startswith("source.id: ")
    assert "OWNER/NAME" in said


@pytest.mark.parametrize(
    "name",
    ["gpt2", "EleutherAI/pythia-70m", "meta-llama/Llama-3.1-8B", "HuggingFaceTB/SmolLM2_135M"],
)
def test_repository_names_of_the_hub_are_accepted(tmp_path: Path, name: str) -> None:
    assert (
        one(config(tmp_path), source={"kind": "hub", "id": name, "revision": "refs/pr/1"}).source.id
        == name
    )


@pytest.mark.parametrize(
    "name", ["-x", "../x", "a/../b", "a b", "a//b", "/a", "a;b", "a\n", "x" * 300]
)
def test_an_invalid_revision_is_refused(tmp_path: Path, name: str) -> None:
    root = config(tmp_path)
    assert refusal(root, source={"kind": "hub", "id": "gpt2", "revision": name}).startswith(
        "source.revision: "
    )
    assert refusal(root, sae={"source": "owner/name", "revision": name}).startswith(
        "sae.revision: "
    )


@pytest.mark.parametrize(
    "source",
    [
        "owner",
        "/owner/name",
        "../owner/name",
        "owner/name/../../x",
        "owner/name//x",
        "-o/n",
        "owner/n\\x",
    ],
)
def test_a_folder_outside_a_hub_repository_is_refused(tmp_path: Path, source: str) -> None:
    assert refusal(config(tmp_path), sae={"source": source, "revision": "abc"}).startswith(
        "sae.source: "
    )


@pytest.mark.parametrize(
    "source",
    [
        "a/{x}",
        "a/{layer.__class__}",
        "a/{layer:999999999d}",
        "a/{layer!r}",
        "a/{0}",
        "a/{",
        "a/{{x}}",
        "a/{}",
    ],
)
def test_only_layer_placeholders_are_allowed_in_the_source_of_saes(
    tmp_path: Path, source: str
) -> None:
    assert "only {layer} and {next_layer} may be in braces" in refusal(
        config(tmp_path), sae={"source": source}
    )


def test_a_layer_may_be_written_with_two_digits() -> None:
    assert SaeSettings(source="a/{layer:02d}/{next_layer}").source_of(7) == "a/07/8"


@pytest.mark.parametrize(
    "source", ["../mine", "-x/y", "a/-b", "a/b:../c", "a/b@-x", "a/b@../x", "./a/b"]
)
def test_an_invalid_hub_data_set_is_refused_as_corpus(source: str) -> None:
    assert "is neither a file nor a hub data set" in corpus_sources.refusal(source)


@pytest.mark.parametrize("value", ["-p x", "gpu; rm x", "$(x)", "a b", "'", ""])
def test_an_invalid_name_of_a_partition_or_a_gpu_type_is_refused(
    tmp_path: Path, value: str
) -> None:
    root = config(tmp_path)
    for key in ("gpu_partition", "gpu_model"):
        assert refusal(root, plan={key: value}).startswith(f"plan.{key}: ")


NAMES = (
    "c++",
    "facts (v2)",
    "NA",
    "true",
    "2024",
    "null",
    "v1.2",
    "naïve_set",
    "None",
    "a.b.c",
    "1e3",
)


def test_data_sets_have_the_names_of_their_files(tmp_path: Path) -> None:
    root = config(tmp_path, datasets=NAMES)
    assert one(root, datasets=list(NAMES)).datasets == list(NAMES)


@pytest.mark.parametrize(
    "name",
    [
        "../d",
        "a/b",
        "/abs",
        "..",
        ".hidden",
        "-x",
        " x",
        "x ",
        "x.",
        "a{b}",
        "a*",
        "a?",
        "a[b]",
        "a'b",
        'a"b',
        "a$b",
        "a`b",
        "a;b",
        "a,b",
        "a=b",
        "a:b",
        "a\\b",
        "a\nb",
        "a\tb",
        "a\x00b",
        "a%b",
        "=1",
        "+1",
        "@x",
        "",
        "x" * 101,
        "scores.parquet",
        "x.CSV",
        "a.gpu",
    ],
)
def test_a_data_set_name_that_cannot_be_a_file_name_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(config(tmp_path), datasets=[name]).startswith("datasets: ")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "..",
        ".run",
        "-x",
        "x.",
        "a b",
        "a+b",
        "a{b}",
        "a'b",
        "a\nb",
        "x" * 101,
        "comparison",
        "README.md",
        "Logs",
    ],
)
def test_a_model_name_that_cannot_be_a_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    root = config(tmp_path)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text('{"n_layer": 2, "n_embd": 8}')
    (tmp_path / "w" / "model.safetensors").touch()
    said = refusal(root, model=name, model_path=str(tmp_path / "w"))
    assert said.startswith("model: ")


@pytest.mark.parametrize("value", [2024, True, 1.5, None])
def test_a_name_that_yaml_does_not_read_as_text_is_refused_with_the_remedy(
    tmp_path: Path, value: Any
) -> None:
    root = config(tmp_path)
    said = refusal(root, datasets=[value])
    assert said.startswith(f"datasets: {value!r} is read as ")
    assert "quotation marks" in said
    if value is not None:
        assert refusal(root, model=value).startswith(f"model: {value!r} is read as ")
        assert refusal(root, preset=value).startswith(f"preset: {value!r} is read as ")


def test_a_value_of_another_kind_is_shown_as_it_must_be_written(tmp_path: Path) -> None:
    root = config(tmp_path)
    assert "write square brackets, as in [d]" in refusal(root, datasets="d")
    assert "datasets: holds nothing; give a list" in refusal(root, datasets=None)
    range_of_layers = refusal(root, activations={"layers": "1-3"})
    assert "write square brackets, as in [1, 2, 3]" in range_of_layers
    assert "as in [1, 2, 3]" in refusal(root, activations={"layers": "1 2 3"})
    assert "as in 'sae={KEY: VALUE}' on the command line" in refusal(root, sae="k=32")
    assert "sae: holds nothing; write its keys" in (empty := refusal(root, sae=None))
    assert empty.endswith("or leave it out")
    table = refusal(root, external={"tables": ["scores.csv"]})
    assert "external.tables.0: 'scores.csv' is no section" in table
    assert "as in {KEY: VALUE}, or on indented lines" in table


def test_data_sets_that_differ_only_in_capital_letters_are_refused(tmp_path: Path) -> None:
    assert "differ only in capital letters" in refusal(
        config(tmp_path, datasets=("d", "D")), datasets=["d", "D"]
    )


def test_text_settings_take_numbers_and_yaml_words_from_the_command_line_unchanged(
    tmp_path: Path,
) -> None:
    root = config(tmp_path)
    assert one(root, plan={"gpu_partition": "2024", "gpu_model": "no"}).plan.gpu_partition == "2024"
    assert one(root, plan={"gpu_model": "no"}).plan.gpu_model == "no"
    assert one(root, score={"texts": "2024"}).score.texts == "2024"
    assert one(root, plan={"gpu_model": "null"}).plan.gpu_model is None
    assert one(root, score={"texts": "~"}).score.texts is None


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text("text,label\nx,1\n")
    (tmp_path / "config").mkdir()
    root = config(tmp_path / "config")
    (root / "datasets" / "d.yaml").write_text("{source: file, path: ~/mine.csv}")
    assert load_dataset("d", root).path == str(tmp_path / "mine.csv")
    found = one(
        root,
        corpus={"source": "~/c.txt"},
        sae={"source": "~/saes/{layer}"},
        score={"texts": "~/t.csv", "context": "~/c.txt"},
    )
    assert found.corpus.source == f"{tmp_path}/c.txt"
    assert found.sae.source_of(1) == f"{tmp_path}/saes/1"
    assert (found.score.texts, found.score.context) == (f"{tmp_path}/t.csv", f"{tmp_path}/c.txt")
    assert one(root, source={"kind": "directory", "id": "~/w"}).source.id == f"{tmp_path}/w"
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text('{"n_layer": 2, "n_embd": 32}')
    (tmp_path / "w" / "model.safetensors").touch()
    assert one(root, model="mine", model_path="~/w", datasets=["d"]).source.id == f"{tmp_path}/w"


@pytest.mark.parametrize(
    "path", ["a/{x}.txt", "a}.txt", "a\n.txt", "a\x00.txt", "~nobody-of-this-name/x.txt"]
)
def test_a_path_that_snakemake_cannot_use_is_refused_with_its_key(
    tmp_path: Path, path: str
) -> None:
    root = config(tmp_path)
    (root / "datasets" / "d.yaml").write_text("{source: facts, table: cities}")
    assert refusal(root, corpus={"source": path}).startswith("corpus.source: ")
    assert refusal(root, score={"texts": path}).startswith("score.texts: ")
    assert refusal(root, score={"context": path}).startswith("score.context: ")
    assert refusal(root, source={"kind": "directory", "id": path}).startswith("source.id: ")
    (root / "datasets" / "d.yaml").write_text(yaml.safe_dump({"source": "file", "path": path}))
    with pytest.raises(UserError, match=r"d\.yaml: path: "):
        load_dataset("d", root)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sae.k": "32"}, "'sae={k: VALUE}'"),
        ({"tracking.original.birth": "1"}, "'tracking={original: {birth: VALUE}}'"),
        ({"sae": {"k:32": None}}, "is a space missing after a colon"),
        ({"sae": "{k: 1, k: 2}"}, "the key k occurs twice"),
    ],
)
def test_a_key_with_a_dot_or_without_a_space_is_refused_with_the_remedy(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    assert said in refusal(config(tmp_path), **given)


@pytest.mark.parametrize("folder", ["models", "datasets", "presets"])
def test_a_key_that_occurs_twice_in_a_settings_file_is_refused_with_its_line(
    tmp_path: Path, folder: str
) -> None:
    root = config(tmp_path)
    path = root / folder / {"models": "m.yaml", "datasets": "d.yaml", "presets": "p.yaml"}[folder]
    path.write_text("sae:\n  k: 1\n  k: 2\n")
    assert (
        f"{path}: not valid YAML: the key k occurs twice; remove one (line 3, column 3)"
        in refusal(root, preset="p" if folder == "presets" else None)
    )


@pytest.mark.parametrize(
    "models",
    [["Llama-3.1-8B"], ["a-b", "a_b", "a.b"], ["gpt2-small", "gpt2-medium"], ["7B"], ["a", "a_"]],
)
def test_rule_names_are_identifiers_and_differ(models: list[str]) -> None:
    found = plan.rule_names(models)
    assert len(set(found.values())) == len(models)
    assert all(f"extract_heldout_{name}".isidentifier() for name in found.values())


def test_a_directory_with_a_gguf_file_alone_is_sent_to_a_file_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "weights.gguf").touch()
    said = refusal(config(tmp_path), model="mine", model_path=str(folder))
    assert "holds a GGUF file and no config.json" in said
    assert f"source: {{kind: directory, id: {folder}}}" in said
