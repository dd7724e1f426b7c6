"""The pages agree with the project: links, paths, settings, commands and Python imports."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import BaseModel

import ghosttrack
from ghosttrack import scores
from ghosttrack.cli import manual, status
from ghosttrack.planning.configuration import RENAMED
from ghosttrack.settings import DatasetSettings, Settings, TrackingSettings, section_type
from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Folders of the repository; a code span that begins with one names a path.
FOLDERS = ("workflow_scripts", "tests", "benchmarks", "config", "docs", "envs", "profiles", "rules")
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
MAKE_TARGETS = re.findall(
    r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
)
WORKFLOW_TARGETS = {name for name, _ in manual.workflow_targets()}


class Block(NamedTuple):
    """A fenced block: its page, language and text."""

    page: Path
    language: str
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list[Block]:
    return [
        Block(page, language, text)
        for page in PAGES
        for _, language, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


def block_id(value: Any) -> str:
    if not isinstance(value, Block):
        return ""
    return (
        f"{name_of(value.page)}:{re.sub(r'^#.*$', '', value.text, flags=re.MULTILINE).split()[0]}"
    )


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        found.add(f"{slug}-{sum(one.startswith(slug) for one in found)}" if slug in found else slug)
    return found


# ---- links, paths and lines
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in (link or picture for link, picture in LINK.findall(prose(page))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        if ROOT / "docs" in page.parents:
            assert ROOT / "docs" in goal.parents, f"{target} is not part of the site"
        if anchor:
            assert anchor in anchors(goal), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_the_text_exist(page: Path) -> None:
    if name_of(page) == "docs/reference/outputs.md":  # its paths are below results/
        return
    for span in spans(page):
        first, slash, rest = span.partition("/")
        if first in FOLDERS and slash and not re.search(r"[A-Z]{3,}|[ {]", rest):
            assert list(ROOT.glob(span.rstrip("/"))), span


def test_pages_named_in_the_code_exist() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix not in {".py", ".smk", ".yaml", ".toml"} or not path.is_file():
            continue
        for page in re.findall(r"docs/[a-z_/]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{name} names {page}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_of_prose_are_at_most_100_characters(page: Path) -> None:
    if page == ROOT / "config" / "README.md":
        return
    for line in prose(page).splitlines():
        assert len(line) <= 100 or line.lstrip().startswith("|"), line


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert (site / "explanation" / "index.html").exists()


def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\s\">]+)", text)
        for tag in re.findall(r"<link\s[^>]*>", text):
            if not re.search(r"rel=\"?(canonical|next|prev)", tag):
                loaded += re.findall(r"\shref=\"?([^\s\">]+)", tag)
        assert loaded
        assert [link for link in loaded if re.match(r"(https?:)?//", link)] == [], page
        # The theme's script fetches programs for these from the network.
        assert not re.search(r"class=\"?(mermaid|arithmatex)\b", text), page


# ---- settings
def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if (inner := section_type(field.annotation)) is not None:
            yield from keys(inner, f"{prefix}{name}.")


KEYS = set(keys(Settings))
# Last parts of file and function names, which look like keys.
NO_KEYS = ("html", "json", "parquet", "csv", "npz", "py", "smk", "load")
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_in_the_text_exist(page: Path) -> None:
    for span in spans(page):
        named = re.fullmatch(r"([a-z_]+)((?:\.[a-z0-9_]+)+)(: .*)?", span)
        if not named or named[1] not in SECTIONS or span.rpartition(".")[2] in NO_KEYS:
            continue
        key = named[1] + named[2]
        assert key in KEYS or (name_of(page) == "CHANGELOG.md" and key in RENAMED), span


# ---- shell blocks
def config_words(words: list[str]) -> list[str]:
    """KEY=VALUE words after --config, up to the next option."""
    if "--config" not in words:
        return []
    given = words[words.index("--config") + 1 :]
    end = next((at for at, word in enumerate(given) if word.startswith("-")), len(given))
    return given[:end]


def check_config(words: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "config.yaml"
    empty.write_text("{}", encoding="utf-8")
    named = list(leaves(status.read_config(empty, config_words(words))))
    assert all(key in KEYS for key in named), named


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


def check_run(words: list[str], tmp_path: Path) -> None:
    """Targets, options and settings of `make run` and `snakemake`."""
    check_config(words, tmp_path)
    options = [at for at, word in enumerate(words) if word.startswith("-")]
    for target in words[: options[0]] if options else words:
        assert target in WORKFLOW_TARGETS, target


def check_command(words: list[str], tmp_path: Path) -> None:
    program, given = words[0], words[1:]
    if program == "make":
        target = given[0]
        assert target in MAKE_TARGETS, target
        variables = dict(word.split("=", 1) for word in given[1:])
        assert set(variables) <= {"ARGS", "PYTHON", "VENV"}
        inner = shlex.split(variables.get("ARGS", ""))
        if target in ("run", "dry-run"):
            check_run(inner, tmp_path)
        elif target in manual.COMMANDS:
            module = ROOT / manual.PACKAGE / manual.COMMANDS[target]
            known = {name for names, _ in manual.arguments_of(module) for name in names}
            assert {word for word in inner if word.startswith("-")} <= known
            check_config(inner, tmp_path)
    elif program == "snakemake":
        assert given[:2] in (["--profile", "slurm"], ["--profile", "profiles/local"])
        assert (ROOT / given[1]).is_dir()
        check_run(given[2:], tmp_path)
    elif program == "python" and given[0].startswith("benchmarks/"):
        source = (ROOT / given[0]).read_text(encoding="utf-8")
        assert all(word in source for word in given if word.startswith("--"))
    elif program == ".venv/bin/python" and given[:4] == ["-m", "pip", "install", "-r"]:
        assert all((ROOT / name).is_file() for name in given[4:])
    elif program in ("docker", "apptainer"):
        assert all((ROOT / word).exists() for word in given if word.startswith("envs"))
        if given[0] == "run":
            image = "ghosttrack" if program == "docker" else "ghosttrack.sif"
            inner = given[given.index(image) + 1 :]
            assert inner[:2] == ["--profile", "profiles/local"]
            check_run(inner[2:], tmp_path)
    elif program == "cp":
        assert (ROOT / given[0]).exists()
    else:
        assert program in KNOWN_PROGRAMS or program.startswith(("VENV/", "lock/")), program


KNOWN_PROGRAMS = ("source", "printf", "export", "python3", "curl", "pip", "tensorboard")


@pytest.mark.parametrize("block", blocks("sh"), ids=block_id)
def test_commands_fit_the_makefile_and_the_parsers(block: Block, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for line in block.text.replace("\\\n", " ").splitlines():
        for command in re.split(r" && | > ", line)[: 1 if " > " in line else None]:
            if words := shlex.split(command, comments=True):
                check_command(words, tmp_path)


def test_every_block_has_a_language_that_a_test_knows() -> None:
    known = {"sh", "python", "yaml", "text"}
    for page in PAGES:
        languages = {language for _, language, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
        allowed = known | {""} if name_of(page) in ("config/README.md",) else known
        assert languages <= allowed, page


@pytest.fixture(scope="session")
def furnished(house: Path) -> Path:
    """The house with the files that the pages call the user's own."""
    (house / "mine.csv").write_text("text,answer\nParis is in France.,France\n", encoding="utf-8")
    (house / "demonstrations.txt").write_text("Munich is a city in Germany.\n", encoding="utf-8")
    template = house / "config" / "datasets" / "my_texts.yaml.example"
    (house / "config" / "datasets" / "mine.yaml").write_bytes(template.read_bytes())
    (house / "data").mkdir()
    (house / "data" / "my_texts.csv").write_text("text,label\na,0\nb,1\n", encoding="utf-8")
    model = house / "path" / "to" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(
        '{"model_type": "gpt2", "n_layer": 24, "n_embd": 128, "n_head": 2, "n_positions": 512}',
        encoding="utf-8",
    )
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_bytes(b"")
    return house


def runs() -> list[str]:
    """Arguments of every `make run` in the README and the pages for a first run."""
    pages = ("README.md", "docs/get_started.md", "docs/tutorial.md", "docs/howto/own_model.md")
    lines = [
        line
        for block in blocks("sh")
        if name_of(block.page) in pages
        for line in block.text.splitlines()
        if line.startswith("make run ARGS=")
    ]
    return sorted({line.partition("ARGS=")[2].strip('"') for line in lines})


@pytest.mark.dag
@pytest.mark.parametrize("arguments", runs())
def test_runs_of_the_first_pages_can_be_planned(furnished: Path, arguments: str) -> None:
    planned = subprocess.run(
        ["make", "dry-run", f"VENV={sys.prefix}", "READY=", f"ARGS={arguments} -q rules"],
        cwd=furnished,
        capture_output=True,
        text=True,
        check=False,
    )
    assert planned.returncode == 0, planned.stdout + planned.stderr


# ---- python and yaml blocks
@pytest.mark.parametrize("block", blocks("python"), ids=block_id)
def test_python_blocks_compile_and_import_what_exists(block: Block) -> None:
    """tests/e2e/test_pages.py runs the blocks that read results."""
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(
                    f"{node.module}.{name.name}"
                )
        elif isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)


@pytest.mark.parametrize("block", blocks("yaml"), ids=block_id)
def test_yaml_blocks_hold_known_keys(block: Block) -> None:
    content = yaml.safe_load(block.text)
    data_set = set(DatasetSettings.model_fields)
    assert set(content) <= data_set or set(leaves(content)) <= KEYS


# ---- facts that a page repeats
def test_rooms_stand_in_the_order_of_the_import_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    text = " ".join((ROOT / "docs" / "developing.md").read_text(encoding="utf-8").split())
    assert " < ".join(reversed(layers)) in text


def test_the_rules_files_are_all_named() -> None:
    text = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    sentence = " ".join(text[text.index("Rules files of a run") :].split())
    named = re.findall(r"[a-z]+", sentence.partition("develop.")[0])
    files = {path.stem for path in (ROOT / "rules").glob("*.smk")} - {"common"}
    assert files <= {*named, "develop"}


def test_the_glossary_defines_verdicts_and_nulls() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for verdict in (scores.ESTABLISHED, scores.NOT_ESTABLISHED, scores.ARTEFACT):
        assert f"## {verdict.capitalize()}\n" in page
    variants = typing.get_type_hints(TrackingSettings)["variants"]
    for variant in typing.get_args(typing.get_args(variants)[0]):
        assert variant == "default" or f"(`{variant}`)" in page


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project.get("version", ghosttrack.__version__) == ghosttrack.__version__
    assert str(citation["version"]) == ghosttrack.__version__
    assert citation["license"] == project["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changes, re.MULTILINE)
    unreleased = changes.partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert unreleased
    assert ghosttrack.__version__ in ([*released][:1] or unreleased)


def test_the_hosted_checks_call_the_targets_of_the_local_one() -> None:
    local = set(re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    hosted = {
        target
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        for target in re.findall(r"\bmake (\w+)", step.get("run", ""))
    }
    assert local <= hosted <= set(MAKE_TARGETS)


def test_the_templates_are_forms() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
    assert (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8").strip()
