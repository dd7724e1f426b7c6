"""Mistakes that Snakemake ignores silently or reports with a traceback.

`python -m ghosttrack.planning.traps ARGS` checks the arguments of a Snakemake command before it
starts; the Snakefile calls `check` after all rules are defined. The Makefile runs this module
before the environment is installed, so the imports at the top must be from the standard library.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Rules that exist once per model, with the model in their names, as in
# `extract_heldout_gpt2_medium`.
MODEL_RULES = (
    "extract_activations",
    "extract_heldout",
    "extract_examples",
    "track_features",
    "measure_signals",
    "train_shared_sae",
)
_SETTINGS_EXAMPLE = (
    "write KEY=VALUE without spaces around the equals sign, and a nested key as 'sae={k: 32}' with "
    "quotation marks"
)


# ---- the command line
def refused_arguments(arguments: Sequence[str]) -> str:
    """Why Snakemake would misread the words after --config, with the remedy; "" if it would not."""
    words: list[str] = []
    inside = False
    for argument in arguments:
        if argument.startswith("-"):
            option, equals, first = argument.partition("=")
            inside = option in ("--config", "-C")
            words += [first] if inside and equals else []
        elif inside:
            words.append(argument)
    return refused_settings(words)


def refused_settings(words: Iterable[str]) -> str:
    """The same for the words after --config only.

    A key may occur twice if both values are mappings, which Snakemake merges; it ignores the first
    of two plain values.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("=", "") or not key or re.fullmatch(r"[\w.-]*[\]}],?", word):
            return f"--config: {word!r} is not a setting: {_SETTINGS_EXAMPLE}"
        if not equals:
            return (
                f"--config: {word!r} is not KEY=VALUE. If it is a target, write it before "
                f"--config: {word} --config ...; if it is a setting, {_SETTINGS_EXAMPLE}"
            )
        if "." in key:
            return f"--config: {word!r}: a key may not contain dots; write {_nested(key, value)}"
        if key in given and not (value.startswith("{") and given[key].startswith("{")):
            return f"--config: {key} occurs twice, as {given[key]} and as {value}; remove one"
        given[key] = value
    return ""


def _nested(key: str, value: str) -> str:
    """`sae.k=32` in the form for Snakemake and the shell: 'sae={k: 32}' with quotation marks."""
    first, *rest = key.split(".")
    return f"'{first}={'{' + ': {'.join(rest)}: {value}{'}' * len(rest)}'"


# ---- the folder
def refused_place(folder: Path, python: str) -> str:
    """Why Snakemake cannot start jobs in a folder with a Python, and the remedy; "" if it can.

    Snakemake starts jobs by a shell command without quotation marks around the Python, and reads
    braces in the workflow's path as a variable.
    """
    if re.search(r"[{}]", str(folder)):
        return (
            f"the path of the folder {folder} contains a brace, which Snakemake reads as a variable: "
            "move or rename the folder"
        )
    if shlex.quote(python) != python:
        return (
            f"Snakemake cannot start jobs with the Python {python}: its path contains a space, a "
            "quotation mark or another special character of the shell. Move or rename the "
            "folder, or install the environment elsewhere: make run VENV=/path/to/an/environment"
        )
    return ""


# ---- the workflow
def check(workflow: Any, models: Sequence[str]) -> None:
    """Refuse options and settings that Snakemake would ignore, and an unusable folder.

    Args:
        workflow: Snakemake's workflow object, with all rules.
        models: the models of this run.
    Raises:
        WorkflowError: the first mistake, on one line.
    """
    from snakemake.exceptions import WorkflowError

    from ghosttrack.errors import UserError

    # Jobs need no second check, and a workflow that is used as a module does not know all rules.
    if not workflow.is_main_process or workflow.modifier.parent_modifier:
        return
    home = Path(str(workflow.current_basedir))
    try:
        reason = next(filter(None, _reasons(workflow, _known_models(home, models), home)), "")
    except UserError as error:
        reason = str(error)
    if reason:
        raise WorkflowError(reason)


def _reasons(workflow: Any, models: Sequence[str], home: Path) -> Iterator[str]:
    """Why the workflow cannot run, one reason per check, "" if it passes.

    Raises:
        UserError: a settings file cannot be read.
    """
    from ghosttrack.planning import configuration

    yield refused_place(home, sys.executable)
    yield refused_settings(workflow.config_settings.config_args or ())
    for path in dict.fromkeys([*workflow.configfiles, *workflow.config_settings.configfiles]):
        configuration.read_yaml(Path(path))
    rules = [rule.name for rule in workflow.rules]
    for option, name in _named_rules(workflow):
        reason = refused_rule(name, rules, models)
        yield f"{option}: {reason}" if reason else ""


def _known_models(home: Path, models: Sequence[str]) -> list[str]:
    """Names, as in rule names, of the models of this run, in config/models and in results."""
    from ghosttrack.planning import plan

    configured = [path.stem for path in home.glob("config/models/*.yaml")]
    finished = [path.name for path in Path("results").glob("*") if path.is_dir()]
    known = dict.fromkeys([*configured, *finished])
    return [
        *plan.rule_names(models).values(),
        *(plan.rule_names([model])[model] for model in known),
    ]


def _named_rules(workflow: Any) -> Iterator[tuple[str, str]]:
    """Option and rule name, for options that Snakemake ignores if there is no such rule.

    --groups and --omit-from are not included: Snakemake sets them after it reads the Snakefile.
    """
    for option, names in (
        ("--set-resources", workflow.resource_settings.overwrite_resources),
        ("--set-threads", workflow.resource_settings.overwrite_threads),
        ("--consider-ancient", workflow.workflow_settings.consider_ancient),
    ):
        yield from ((option, str(name)) for name in names)


def refused_rule(name: str, rules: Sequence[str], models: Sequence[str]) -> str:
    """Why an option for the rule `name` has no effect, and similar names; "" if it exists.

    A profile is for several runs, so rules of any model in `models` and of any wave are accepted.
    """
    stem = next((rule for rule in MODEL_RULES if name == rule or name.startswith(f"{rule}_")), "")
    wave = r"_wave_\d+" if stem == "extract_activations" else ""
    if name in rules or (
        stem and any(re.fullmatch(rf"{stem}_{re.escape(model)}{wave}", name) for model in models)
    ):
        return ""
    similar = [rule for rule in rules if stem and rule.startswith(f"{stem}_")]
    similar = similar or difflib.get_close_matches(name, rules, n=3)
    hint = (
        f"; did you mean {', '.join(similar[:3])}?"
        if similar
        else "; a dry run prints the names of all rules"
    )
    return f"there is no rule {name}, so Snakemake would ignore it{hint}"


def main(arguments: Sequence[str]) -> int:
    """Check a command; print the reason and return 2 if it cannot work, else return 0.

    `--folder PYTHON` checks a Python that will be installed, instead of arguments.
    """
    if arguments[:1] == ["--folder"]:
        reason = refused_place(Path.cwd(), str(Path(arguments[1]).absolute()))
    else:
        reason = refused_arguments(arguments)
    if reason:
        sys.stderr.write(f"error: {reason}\n")
    return 2 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
