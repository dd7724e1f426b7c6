"""The RO-Crate of a finished run: its files, what they are, and what they were made from."""

import csv
import hashlib
import io
import json
import mimetypes
import platform
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

import ghosttrack
from ghosttrack.planning import run_state
from ghosttrack.runtime import files, records
from ghosttrack.settings import DatasetSettings, Settings

# The versions of the profiles that the archive follows; a newer one is a decision.
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.6": ("Process Run Crate", "0.6"),
    "https://w3id.org/ro/wfrun/workflow/0.6": ("Workflow Run Crate", "0.6"),
}
CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"
# Of a clone: what another person needs to run the workflow again.
WORKFLOW = (
    "Snakefile",
    "Makefile",
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CHANGELOG.md",
    "pyproject.toml",
    "config",
    "envs",
    "profiles",
    "rules",
    "workflow_scripts",
)
# Of the outputs of a run. Not here: activations and what is computed from them alone, the model, and
# the corpus, which are large and whose digests are in the records; `benchmarks`, whose times and
# hosts differ in every run.
PAGES = ("report.html", "explorer.html", "model/source.json", "model_check.json", "model_check.csv")
FOLDERS = ("datasets", "saes", "detection", "external", "evaluation", "figures")
WEIGHTS = "sae_weights.safetensors"
DATA = Path("workflow_scripts", "ghosttrack", "data")
# The licences of the table in data/README.md.
LICENCES = {
    "MIT": "https://spdx.org/licenses/MIT",
    "CC BY 4.0": "https://spdx.org/licenses/CC-BY-4.0",
    "Unicode License v3": "https://spdx.org/licenses/Unicode-3.0",
    "WordNet 3.0 license": "https://wordnet.princeton.edu/license-and-commercial-use",
    "public domain": "https://creativecommons.org/publicdomain/mark/1.0/",
}


class Run(NamedTuple):
    """A finished run."""

    home: Path  # results/MODEL
    settings: Settings
    datasets: Mapping[str, DatasetSettings]
    given: Sequence[str]  # KEY=VALUE settings beside config/config.yaml
    weights: bool  # whether the weights of the SAEs are in the archive


def write(run: Run, clone: Path, out: Path) -> list[str]:
    """Write the zip file `out`; return the data sets whose licence is not known.

    Args:
        clone: folder of the workflow.
    """
    archive = _Archive(run, clone)
    partial = out.with_name(f"{out.name}.partial")
    try:
        archive.crate.write_zip(partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return archive.unknown


def shipped_licences(clone: Path) -> dict[str, list[str]]:
    """Licences of every shipped data file, by its path below the folder of the data."""
    table = (clone / DATA / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4:
            continue
        for path in re.findall(r"`([^`]+)`", cells[0]):
            found[path] = [part.strip().removesuffix(", below") for part in cells[3].split(";")]
    return found


class Output(NamedTuple):
    """An output of the run, by its record."""

    path: str  # relative to the run's folder
    rule: str
    sha256: str


def outputs_of(home: Path, wanted: Iterable[str]) -> list[Output]:
    """All outputs of the jobs that made `wanted`, and of the jobs that made their inputs.

    A folder of results may also hold files of earlier settings, such as other data sets.

    Args:
        home: results/MODEL.
        wanted: paths relative to `home`.
    """
    folder = home / "records"
    found: dict[str, tuple[str, Output, list[str]]] = {}
    jobs: dict[str, list[str]] = {}
    for record in sorted(folder.rglob("*.json")):
        content = files.read_object(record)
        path = record.relative_to(folder).as_posix().removesuffix(".json")
        job = files.sha256_json([content["rule"], content["params"], content["inputs"]])
        inputs = [name.removeprefix(f"results/{home.name}/") for name in content["inputs"]]
        found[path] = job, Output(path, content["rule"], content["sha256"]), inputs
        jobs.setdefault(job, []).append(path)
    waiting, reached = list(wanted), set[str]()
    while waiting:
        if (path := waiting.pop()) in found and path not in reached:
            reached.add(path)
            job, _, inputs = found[path]
            waiting += [*jobs[job], *inputs]
    return [found[path][1] for path in sorted(reached)]


class _Archive:
    """The crate while it is filled."""

    def __init__(self, run: Run, clone: Path) -> None:
        from rocrate.rocrate import ROCrate

        self.run, self.clone, self.unknown = run, clone, list[str]()
        self.crate: Any = ROCrate()
        self.crate.metadata.extra_contexts.append(CONTEXT)
        wanted = run_state.outputs(run.settings, run.datasets)
        self.outputs = outputs_of(run.home, wanted)
        self.licences = shipped_licences(clone)
        self.files: dict[str, Any] = {}  # entities by the path of their file
        self.results = f"results/{run.home.name}"
        name = f"GhostTrack run of {run.home.name}"
        self.crate.name = name
        self.crate.description = (
            "A finished run: the workflow, its settings, the evaluated texts, tables, report and "
            "detectors. digests.csv has the digest of every result, also of those that are not in "
            "this archive."
        )
        workflow = self._workflow()
        results = list(self._results())
        read = [self._settings(), self._model(), *self._data()]
        action = self.crate.add_action(
            workflow,
            identifier="#run",
            object=read,
            result=[*results, *self._left_out()],
            properties={
                "name": name,
                "description": f"snakemake --config {shlex.join(run.given)}",
                "actionStatus": "http://schema.org/CompletedActionStatus",
            },
        )
        self.crate.root_dataset["mentions"] = [action]
        self._profiles()
        used = {licence for entity in read for licence in self._listed(entity.get("license"))}
        self.crate.license = sorted(
            used | {self._licence("MIT")}, key=lambda entity: str(entity.id)
        )

    # ---- files
    def _file(self, source: Path, name: str, **properties: Any) -> Any:
        described = {
            "name": name,
            "sha256": files.sha256_file(source),
            "contentSize": str(source.stat().st_size),
            **_encoding(name),
            **properties,
        }
        self.files[name] = self.crate.add_file(source, name, properties=described)
        return self.files[name]

    def _written(self, text: str, name: str, **properties: Any) -> Any:
        """A file that is not on the disk."""
        content = text.encode()
        described = {
            "name": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "contentSize": str(len(content)),
            **_encoding(name),
            **properties,
        }
        return self.crate.add_file(io.BytesIO(content), name, properties=described)

    def _workflow(self) -> Any:
        """The files of the workflow; the Snakefile is the crate's main entity."""
        versions = _libraries(self.run)
        main = self.clone / "Snakefile"
        entity = self.crate.add_workflow(
            main,
            "Snakefile",
            main=True,
            lang="snakemake",
            lang_version=versions.get("snakemake"),
            properties={
                "name": "GhostTrack",
                "version": ghosttrack.__version__,
                "sha256": files.sha256_file(main),
                "contentSize": str(main.stat().st_size),
            },
        )
        entity["license"] = self._licence("MIT")
        entity["author"] = self._authors()
        entity["softwareRequirements"] = [
            self._context(
                f"#{name}", "SoftwareApplication", name=name, softwareVersion=str(version)
            )
            for name, version in {"python": platform.python_version(), **versions}.items()
        ]
        for path in _below(self.clone, WORKFLOW):
            name = path.relative_to(self.clone).as_posix()
            if path == main:
                continue
            shipped = name.removeprefix(f"{DATA.as_posix()}/")
            known = self.licences.get(shipped, []) if name != shipped else []
            self._file(
                path, name, **({"license": list(map(self._licence, known))} if known else {})
            )
        return entity

    def _results(self) -> Iterator[Any]:
        """The outputs of the run that are archived, and the records of all outputs."""
        for output in self.outputs:
            if output.path in PAGES or output.path.split("/")[0] in FOLDERS:
                for path in _below(self.run.home, [output.path]):
                    if path.name != WEIGHTS or self.run.weights:
                        inside = path.relative_to(self.run.home).as_posix()
                        yield self._file(path, f"{self.results}/{inside}")
            # Relative, as a job knows it: a parent of the clone may be called results too.
            record = records.record_path(Path(self.results, output.path))
            yield self._file(self.run.home.parents[1] / record, record.as_posix())

    def _left_out(self) -> Iterator[Any]:
        """digests.csv, and the weights of the SAEs if they are not in the archive."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("path", "rule", "sha256", "in_archive"))
        for output in self.outputs:
            path = f"{self.results}/{output.path}"
            included = any(name == path or name.startswith(f"{path}/") for name in self.files)
            writer.writerow((path, output.rule, output.sha256, int(included)))
            if output.path.endswith(WEIGHTS) and not included:
                yield self._context(
                    f"#{path}",
                    "CreativeWork",
                    name=path,
                    sha256=output.sha256,
                    description="Weights of an SAE, not in this archive",
                )
        yield self._written(
            table.getvalue(),
            "digests.csv",
            description="Digest of every result. That of a folder is explained in "
            "workflow_scripts/ghosttrack/runtime/records.py",
        )

    # ---- what the run read
    def _settings(self) -> Any:
        text = json.dumps(self.run.settings.model_dump(mode="json"), indent=2, ensure_ascii=False)
        return self._written(
            f"{text}\n", "settings.json", description="Every setting of the run, also the defaults"
        )

    def _model(self) -> Any:
        source = files.read_object(self.run.home / "model" / "source.json")
        return self._context(
            "#model",
            "CreativeWork",
            name=self.run.home.name,
            identifier=f"{source.get('id')} {source.get('revision') or ''}".strip(),
            sha256=source["weights_sha256"],
            description="The language model, not in this archive; sha256 is of its weights",
        )

    def _data(self) -> Iterator[Any]:
        """The shipped data, which every run reads, and what does not ship with the workflow."""
        for path in self.licences:
            yield self.files[(DATA / path).as_posix()]
        if (source := self.run.settings.corpus.source) != "embedded":
            yield self._context(
                "#corpus",
                "CreativeWork",
                name=source,
                description="The text on which the SAEs were trained, not in this archive",
            )
        for name, settings in self.run.datasets.items():
            known = sorted({one for path in self._tables(settings) for one in self.licences[path]})
            for path, entity in self.files.items():
                if known and path.startswith(f"{self.results}/datasets/{name}/"):
                    entity["license"] = [self._licence(licence) for licence in known]
            if not known:
                self.unknown.append(name)
                yield self._context(
                    f"#dataset-{quote(name)}",
                    "CreativeWork",
                    name=name,
                    description=f"A data set that does not ship with the workflow: {settings.source}",
                )

    def _tables(self, settings: DatasetSettings) -> list[str]:
        """Shipped files of a data set; questions are asked about all fact tables."""
        if settings.source != "facts":
            return []
        facts = [path for path in self.licences if path.startswith("facts/")]
        return [f"facts/{settings.table}.csv"] if settings.table else facts

    # ---- things that are no files
    def _context(self, identifier: str, kind: str, /, **properties: Any) -> Any:
        from rocrate.model import ContextEntity

        known = self.crate.get(identifier)
        described = {"@type": kind, **properties}
        return known or self.crate.add(ContextEntity(self.crate, identifier, properties=described))

    def _licence(self, name: str) -> Any:
        return self._context(LICENCES[name], "CreativeWork", name=name)

    def _listed(self, value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value] if value else []

    def _authors(self) -> list[Any]:
        citation = yaml.safe_load((self.clone / "CITATION.cff").read_text(encoding="utf-8"))
        names = [
            author.get("name") or f"{author['given-names']} {author['family-names']}"
            for author in citation["authors"]
        ]
        return [
            self._context(f"#{name.replace(' ', '-')}", "Organization", name=name) for name in names
        ]

    def _profiles(self) -> None:
        for identifier, (name, version) in PROFILES.items():
            entity = self._context(identifier, "CreativeWork", name=name, version=version)
            self.crate.root_dataset.append_to("conformsTo", entity)


def _encoding(name: str) -> dict[str, str]:
    kind, _ = mimetypes.guess_type(name)
    return {"encodingFormat": kind} if kind else {}


def _below(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Every file among and below `names`, without caches and unfinished files."""
    for name in names:
        root = folder / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            inside = path.relative_to(folder).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside)
            if path.is_file() and not hidden and ".partial" not in path.name:
                yield path


def _libraries(run: Run) -> dict[str, str]:
    """Versions of the libraries with which the detector of the run was made."""
    libraries: dict[str, str] = files.read_object(run.home / "detection" / "detector.json")[
        "libraries"
    ]
    return libraries
