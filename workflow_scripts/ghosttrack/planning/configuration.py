"""Settings from config files and the command line; errors name the key and the possible values.

Precedence: defaults < preset < config/models/NAME.yaml < config/config.yaml and the command line.
"""

import contextlib
import difflib
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ghosttrack.errors import UserError
from ghosttrack.facts import statements
from ghosttrack.inputs import file_kinds, model_sizes, rows, user_texts
from ghosttrack.runtime import files
from ghosttrack.settings import DatasetSettings, Settings, names, section_type

# Renamed settings, and renamed values of settings with a fixed set of values: old -> new.
RENAMED = {
    "sae.anchor": "sae.warm_start_layer",
    "sae.anchored_epochs": "sae.warm_start_epochs",
    "detection.other_prompts": "detection.pmi_prompts",
    "tracking.rescue": "tracking.second_association",
    "tuning.rescue": "tuning.second_association",
}
RENAMED_VALUES = {
    ("sae.dictionaries", "common"): "shared_init",
    ("sae.dictionaries", "anchored"): "warm_start",
}

# `model=both` compares the two models of the original work.
MODEL_GROUPS = {"both": ["gpt2-small", "gpt2-medium"]}


def load(config: Mapping[str, Any], root: Path) -> dict[str, Settings]:
    """Settings of every model in `config`, in order.

    Args:
        config: config.yaml merged with the command line, as Snakemake provides it.
        root: the folder of `models/`, `presets/` and `datasets/`.
    Raises:
        UserError: with the key, its value, and the possible values.
    """
    given = {key: _lenient(key, value) for key, value in config.items()}
    for key in ("model", "preset"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise UserError(
                f"{key}: {names.quotes_needed(given[key])}, as in --config '{key}=\"NAME\"'"
            )
    name = given.get("model") or Settings.model_fields["model"].default
    models = MODEL_GROUPS.get(name, [name])
    if given.get("model_path") and len(models) > 1:
        raise UserError(
            f"model_path: needs one model, found model={name}; choose a name for the model in the "
            "directory, as in model=NAME"
        )
    return {model: _resolve({**given, "model": model}, root) for model in models}


def _resolve(given: dict[str, Any], root: Path) -> Settings:
    known = list(Settings.model_fields)
    for key in given:
        if key not in known:
            raise UserError(_unknown(key, known))
    merged: dict[str, Any] = {}
    layers: list[tuple[str, dict[str, Any]]] = []
    if preset := given.get("preset"):
        origin, values = _read_choice(root / "presets", str(preset), "preset")
        models = [file.stem for file in (root / "models").glob("*.yaml")]
        own = _for_model(values, given["model"], origin, models)
        layers += [(origin, values), (origin, own)]
    name = given["model"]
    if given.get("model_path") and (root / "models" / f"{name}.yaml").exists():
        raise UserError(
            f"model_path: {name} already is a model in config/models; choose another name for the "
            "model in the directory, as in model=NAME"
        )
    if not isinstance(name, str) or not (
        (root / "models" / f"{name}.yaml").exists() or given.get("model_path")
    ):
        _read_choice(root / "models", str(name), "model", also=[*MODEL_GROUPS])
    if (root / "models" / f"{name}.yaml").exists() and not given.get("model_path"):
        layers.append(_read_choice(root / "models", name, "model"))
    layers.append(("config", given))
    if path := given.get("model_path"):
        layers.insert(-1, ("model_path", _describe_directory(path)))
    for origin, values in layers:
        if unknown := _unknown_in(values, Settings, ""):
            raise UserError(unknown if origin == "config" else f"{origin}: {unknown}")
        if origin not in ("config", "model_path"):
            _refuse_choices(values, name, origin)
        _merge(merged, values)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise UserError(_readable(error)) from None
    for dataset in settings.datasets:
        load_dataset(dataset, root)
    return settings


def _for_model(
    preset: dict[str, Any], model: str, origin: str, models: Collection[str]
) -> dict[str, Any]:
    """Remove `per_model` from a preset and return the settings in it for `model`.

    Args:
        preset: what the file `origin` holds; changed in place.
        model: name of the model of the run. models: names of the files in config/models.
    Raises:
        UserError: no settings by model; a misspelt name; an unknown key for any model.
    """
    for_models = preset.pop("per_model", None) or {}
    known = sorted({*models, model})
    if not isinstance(for_models, dict) or not all(
        isinstance(values or {}, dict) for values in for_models.values()
    ):
        raise UserError(
            f"{origin}: per_model: expected settings by model, as in per_model: {{{model}: "
            "{seed: 1}}"
        )
    for name, values in for_models.items():
        # Another name may be that of a model in a directory, which other runs name.
        if name not in known and (hint := difflib.get_close_matches(str(name), known, n=1)):
            raise UserError(
                f"{origin}: per_model: {name} is no model of config/models (did you mean "
                f"{hint[0]}?); correct or remove this name"
            )
        if unknown := _unknown_in(values or {}, Settings, ""):
            raise UserError(f"{origin}: per_model: {name}: {unknown}")
    return for_models.get(model) or {}


def _refuse_choices(values: Mapping[str, Any], model: str, origin: str) -> None:
    """Refuse a choice of files in the file of a model or a preset: only the run's own is read.

    Raises:
        UserError: with the key and the remedy.
    """
    for key in ("model", "preset", "model_path"):
        if values.get(key) not in (None, model if key == "model" else None):
            raise UserError(
                f"{origin}: {key}: has no effect in this file; write it in config/config.yaml or "
                f"after --config, as in {key}={values[key]}"
            )


def load_dataset(name: str, root: Path) -> DatasetSettings:
    """Settings of the data set in `root`/datasets/NAME.yaml.

    Raises:
        UserError: with the names of all data sets, or with the wrong key.
    """
    origin, values = _read_choice(root / "datasets", name, "datasets")
    try:
        settings = DatasetSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {_readable(error, DatasetSettings)}") from None
    if settings.table and settings.table not in (tables := statements.list_tables()):
        raise UserError(
            f"{origin}: table: {settings.table!r} is not a fact table; choose one of "
            f"{', '.join(tables)}"
        )
    with reachable(f"{origin}: path"):
        if settings.path and (reason := rows.refusal(Path(settings.path))):
            raise UserError(f"{origin}: path: {reason}")
    try:
        user_texts.check_columns(settings)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return settings


@contextlib.contextmanager
def reachable(key: str) -> Iterator[None]:
    """Turn an OSError about a path in the settings into a UserError.

    Python's `exists`, `is_file` and `is_dir` raise OSError if the path is too long or a folder
    cannot be read.

    Args:
        key: the settings key of the path.
    Raises:
        UserError: with the key, the path and the reason.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{key}: {names.short(str(error.filename))} cannot be looked up ({error.strerror}); "
            "correct the path or the permissions of its folders"
        ) from None


def _read_choice(
    folder: Path, name: str, key: str, also: list[str] | None = None
) -> tuple[str, dict[str, Any]]:
    path = folder / f"{name}.yaml"
    choices = sorted([file.stem for file in folder.glob("*.yaml")] + (also or []))
    if name not in choices or not path.exists():
        hint = difflib.get_close_matches(name, choices, n=1)
        meant = f" (did you mean {hint[0]!r}?)" if hint else ""
        more = ", or set model_path=DIRECTORY" if key == "model" else ""
        raise UserError(
            f"{key}: {name!r} is not known{meant}. Choices: {', '.join(choices)}; or add the file "
            f"config/{path.parent.name}/{name}.yaml{more}"
        )
    return str(path), read_yaml(path)


# Whole numbers that YAML 1.1 reads to the base 8 or 60: 010 is 8, and 1:30 is 90.
_NOT_DECIMAL = re.compile(r"[-+]?(0[0-7_]+|[0-9_.]+:[0-9_.:]*)")


class _StrictLoader(yaml.SafeLoader):
    """Refuses what PyYAML reads silently: a key that occurs twice, and numbers to the base 8 or 60."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and _NOT_DECIMAL.fullmatch(node.value):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{node.value} is not a decimal number; write 0 only before a point, and text in "
                "quotation marks",
                node.start_mark,
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_node
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} occurs twice; remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content of YAML text; a key that occurs twice, or a number like 010, raises YAMLError."""
    return yaml.load(text, Loader=_StrictLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A settings file; {} if it is empty.

    Raises:
        UserError: not UTF-8, not YAML, a key that occurs twice, or not `key: value` lines.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except NOT_YAML as error:
        raise UserError(f"{path}: not valid YAML: {described(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


# Errors of PyYAML. It raises ValueError for a number with too many digits and for an invalid date.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def described(error: Exception) -> str:
    """An error in YAML text with its position, on one line."""
    if isinstance(error, RecursionError):
        return "lists or keys nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def _describe_directory(given: Any) -> dict[str, Any]:
    """Settings from the config.json in the directory of `model_path`."""
    if not isinstance(given, str):
        raise UserError(f"model_path: {names.quotes_needed(given)}")
    try:
        path = Path(names.local_path(given))
    except names.InvalidNameError as error:
        raise UserError(f"model_path: {error}") from None
    with reachable("model_path"):
        return _described_model(path)


def _described_model(path: Path) -> dict[str, Any]:
    if reason := file_kinds.not_a_folder(path):
        raise UserError(
            f"model_path: {reason}; expected a directory with config.json, weights and a tokenizer"
        )
    if not (path / "config.json").exists() and any(path.glob("*.gguf")):
        raise UserError(
            f"model_path: {path} holds a GGUF file and no config.json, so the model's size is not "
            "known; describe it in a file config/models/NAME.yaml, with "
            f"source: {{kind: directory, id: {path}}} and dimensions: {{n_layers: LAYERS, d_model: "
            "WIDTH, vocab_size: TOKENS}, and run with model=NAME without model_path"
        )
    weights = files.weight_files(path)
    if not (path / "config.json").exists() or not weights:
        missing = (
            "config.json" if not (path / "config.json").exists() else "weights (*.safetensors)"
        )
        raise UserError(
            f"model_path: {path} has no {missing}; expected a transformers model as written by "
            "save_pretrained"
        )
    sizes = model_sizes.read_sizes(path / "config.json", "model_path")
    return {
        "source": {"kind": "directory", "id": str(path)},
        "dimensions": {
            "n_layers": sizes.n_layers,
            "d_model": sizes.d_model,
            "vocab_size": sizes.vocab_size,
        },
        "sae": {"d_sae": 4 * sizes.d_model},
    }


# Words for null on the command line.
_NULL = ("null", "Null", "NULL", "None", "~")


def _lenient(key: str, value: Any) -> Any:
    """Parse text from the command line as YAML, except for text keys: `no` may be a name."""
    if isinstance(value, Mapping):
        return {name: _lenient(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, str) and _is_text(key):
        return None if value in _NULL else value
    if isinstance(value, list) and _has_numbers(key):
        return [_lenient(key, item) for item in value]
    if isinstance(value, str):
        try:
            return parse_yaml(value)
        except NOT_YAML as error:
            raise UserError(
                f"{key}: {names.short(value)} is not valid YAML ({described(error)}); "
                "write e.g. --config 'sae={k: 32}'"
            ) from None
    return value


def _is_text(key: str) -> bool:
    """Whether the value of a settings key, such as `corpus.source`, is text."""
    annotation = _annotation(key)
    if annotation is None or typing.get_origin(annotation) is list:
        return False
    kinds = [annotation, *typing.get_args(annotation)]
    return any(
        kind is str or (typing.get_origin(kind) is typing.Annotated and kind.__origin__ is str)
        for kind in kinds
    )


def _has_numbers(key: str) -> bool:
    """Whether the value of a settings key, such as `sweep.k`, is or may be a list of numbers."""
    annotation = _annotation(key)
    lists = [
        kind
        for kind in (annotation, *typing.get_args(annotation))
        if typing.get_origin(kind) is list
    ]
    items = [item for kind in lists for item in typing.get_args(kind)]
    values = [value for item in items for value in typing.get_args(item) or [item]]
    return any(value in (int, float) or isinstance(value, int) for value in values)


def _annotation(key: str) -> Any:
    """The type of the value of a settings key; None for an unknown key."""
    *sections, name = key.split(".")
    section: type[BaseModel] | None = Settings
    for part in sections:
        field = section.model_fields.get(part) if section else None
        section = section_type(field.annotation) if field else None
    field = section.model_fields.get(name) if section else None
    return field.annotation if field else None


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _unknown_in(values: Mapping[str, Any], section: type[BaseModel], prefix: str) -> str:
    """Error message for the first unknown key at any depth; "" if there is none."""
    for key, value in values.items():
        if key not in section.model_fields:
            hint = " (is a space missing after a colon?)" if ":" in str(key) else ""
            return _unknown(str(key), list(section.model_fields), prefix) + hint
        inner = section_type(section.model_fields[key].annotation)
        if (
            inner is not None
            and isinstance(value, Mapping)
            and (message := _unknown_in(value, inner, f"{prefix}{key}."))
        ):
            return message
    return ""


def _unknown(key: str, known: list[str], section: str = "") -> str:
    if new := RENAMED.get(f"{section}{key}"):
        return f"unknown key {section}{key}: now {new}"
    hint = difflib.get_close_matches(key, known, n=1)
    meant = f" (did you mean {section}{hint[0]}?)" if hint else ""
    head, dot, rest = key.partition(".")
    if dot and head in known:
        nested = rest.replace(".", ": {") + ": VALUE" + "}" * rest.count(".")
        meant = (
            f" (a key may not contain dots: write '{head}={{{nested}}}' on the command line; in a "
            f"file, write {rest} on an indented line below {head}:)"
        )
    return f"unknown key {section}{key}{meant}. Known keys: {', '.join(known)}"


def _readable(error: ValidationError, top: type[BaseModel] = Settings) -> str:
    lines = []
    for item in error.errors(include_url=False):
        path = [
            str(part) for part in item["loc"] if not str(part).startswith(("literal[", "list["))
        ]
        key = ".".join(path)
        # For an item of a list, the key of the list, without the index.
        listed = key.removesuffix(f".{path[-1]}") if path and path[-1].isdigit() else key
        value = item["input"]
        if isinstance(value, str) and (new := RENAMED_VALUES.get((listed, value))):
            lines.append(f"{listed}: {value!r} is now {new!r}")
        elif item["type"] == "extra_forbidden":
            section = _section_at(path[:-1], top)
            lines.append(_unknown(path[-1], list(section.model_fields), ".".join([*path[:-1], ""])))
        elif item["type"] == "value_error":
            reason = item["ctx"]["error"]
            lines.append(
                f"{listed}: {reason}" if isinstance(reason, names.InvalidNameError) else str(reason)
            )
        elif item["type"] == "string_type":
            lines.append(f"{listed}: {names.quotes_needed(value)}")
        elif item["type"] == "list_type":
            lines.append(f"{key}: {_not_a_list(value)}")
        elif item["type"] == "model_type":
            is_top = len(path) == 1 and top is Settings
            example = f"'{key}={{KEY: VALUE}}' on the command line" if is_top else "{KEY: VALUE}"
            found, more = f"{names.short(value)} is no section of settings", ""
            if value is None:
                found, more = "holds nothing", ", or leave it out"
            lines.append(
                f"{key}: {found}; write its keys in braces, as in {example}, or on indented lines "
                f"of a file{more}"
            )
        else:
            lines.append(
                f"{key}: {names.short(value)} is not valid: "
                f"{item['msg'][0].lower()}{item['msg'][1:]}"
            )
    return "; ".join(dict.fromkeys(lines))


def _not_a_list(value: Any) -> str:
    """What is wrong with a value that is no list, with the list that was probably meant."""
    if value is None:
        return "holds nothing; give a list in square brackets, or leave the key out"
    meant = str(value)[:120]
    if span := re.fullmatch(r"\s*(\d{1,3})\s*(?:-|:|\.\.|to)\s*(\d{1,3})\s*", meant):
        first, last = int(span[1]), int(span[2])
        meant = ", ".join(map(str, range(first, last + 1))) or meant
    elif re.fullmatch(r"[\d\s]+", meant):
        meant = ", ".join(meant.split())
    return f"{names.short(value)} is not a list; write square brackets, as in [{meant}]"


def _section_at(path: list[str], top: type[BaseModel]) -> type[BaseModel]:
    section = top
    for part in path:
        if not part.isdigit():  # an item of a list of sections
            section = section_type(section.model_fields[part].annotation) or section
    return section
