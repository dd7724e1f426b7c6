"""Mistakes that Snakemake itself takes without a word, or answers with a traceback.

`python -m ghosttrack.planning.traps ARGS` looks at the arguments of a Snakemake command before it starts; the Snakefile calls
`check` once all rules are known. The Makefile runs this module before there is an environment: only the standard
library at the top.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Rules of which each model has its own: their names go on with the model's, as in `extract_heldout_gpt2_medium`.
MODEL_RULES = (
    "extract_activations",
    "extract_heldout",
    "extract_examples",
    "track_features",
    "measure_signals",
    "train_shared_sae",
)
_SETTINGS_EXAMPLE = "write KEY=VALUE without spaces around the equals sign, and a nested key as 'sae={k: 32}' with its quotation marks"


# ---- the command line
def refused_arguments(arguments: Sequence[str]) -> str:
    """Why Snakemake could not read the words after --config as they were meant, with the remedy; "" if it can."""
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
    """The same for the words after --config alone.

    A key may be given twice if both values are mappings, which are merged; of two plain values the first would be lost.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("=", "") or not key or re.fullmatch(r"[\w.-]*[\]}],?", word):
            return f"--config: {word!r} is no setting: {_SETTINGS_EXAMPLE}"
        if not equals:
            return (
                f"--config: {word!r} stands behind --config and is no KEY=VALUE. If it is a target, put it in front: "
                f"{word} --config ...; if it is a setting, {_SETTINGS_EXAMPLE}"
            )
        if "." in key:
            return f"--config: {word!r}: dots do not nest; write {_nested(key, value)}"
        if key in given and not (value.startswith("{") and given[key].startswith("{")):
            return f"--config: {key} is given twice, as {given[key]} and as {value}; keep one"
        given[key] = value
    return ""


def _nested(key: str, value: str) -> str:
    """`sae.k=32` as Snakemake reads it: 'sae={k: 32}', with quotation marks for the shell."""
    first, *rest = key.split(".")
    return f"'{first}={'{' + ': {'.join(rest)}: {value}{'}' * len(rest)}'"


# ---- the folder
def refused_place(folder: Path, python: str) -> str:
    """Why Snakemake cannot start a job from a folder with this Python, with the remedy; "" if it can.

    Snakemake starts jobs by a shell command in which the Python stands without quotation marks, and takes braces in the
    workflow's path for a variable.
    """
    if re.search(r"[{}]", str(folder)):
        return f"the folder {folder} has a brace in its path, which Snakemake takes for a variable: move or rename the folder"
    if shlex.quote(python) != python:
        return (
            f"Snakemake cannot start jobs with the Python {python}: its path holds a space, a quotation mark or another "
            "character that a shell reads. Move or rename the folder, or keep the environment elsewhere: "
            "make run VENV=/path/to/an/environment"
        )
    return ""


# ---- the workflow
def check(workflow: Any, models: Sequence[str]) -> None:
    """Refuse options and settings that Snakemake would ignore, and a folder in which it cannot start jobs.

    Args:
        workflow: Snakemake's, with all rules.
        models: the models of this run.
    Raises:
        WorkflowError: with the first mistake, on one line.
    """
    from snakemake.exceptions import WorkflowError

    from ghosttrack.errors import UserError

    # The main process has checked for its jobs; a module sees its own rules alone.
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
    """Why the workflow cannot run as it is asked to; "" for what is in order. A settings file raises a UserError."""
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
    """How rule names call the models of this run, those of config/models, and those with results."""
    from ghosttrack.planning import plan

    described = [path.stem for path in home.glob("config/models/*.yaml")]
    finished = [path.name for path in Path("results").glob("*") if path.is_dir()]
    known = dict.fromkeys([*described, *finished])
    return [
        *plan.rule_names(models).values(),
        *(plan.rule_names([model])[model] for model in known),
    ]


def _named_rules(workflow: Any) -> Iterator[tuple[str, str]]:
    """Option and rule name, for the options that Snakemake ignores where no rule has that name.

    --groups and --omit-from are missing: Snakemake sets them after the Snakefile.
    """
    for option, names in (
        ("--set-resources", workflow.resource_settings.overwrite_resources),
        ("--set-threads", workflow.resource_settings.overwrite_threads),
        ("--consider-ancient", workflow.workflow_settings.consider_ancient),
    ):
        yield from ((option, str(name)) for name in names)


def refused_rule(name: str, rules: Sequence[str], models: Sequence[str]) -> str:
    """Why an option for the rule `name` would do nothing, with names that exist; "" if the rule exists.

    A profile serves several runs, so the rules of any model in `models` are accepted, whatever its number of waves.
    """
    stem = next((each for each in MODEL_RULES if name == each or name.startswith(f"{each}_")), "")
    wave = r"_wave_\d+" if stem == "extract_activations" else ""
    if name in rules or (
        stem and any(re.fullmatch(rf"{stem}_{re.escape(each)}{wave}", name) for each in models)
    ):
        return ""
    near = [each for each in rules if stem and each.startswith(f"{stem}_")]
    near = near or difflib.get_close_matches(name, rules, n=3)
    meant = (
        f"; did you mean {', '.join(near[:3])}?"
        if near
        else "; a dry run prints the names of all rules"
    )
    return f"no rule is called {name}, and Snakemake would ignore it{meant}"


def main(arguments: Sequence[str]) -> int:
    """Print why a command cannot work, and return 2; 0 if nothing is known against it.

    `--folder PYTHON` asks about a Python that is still to be installed, instead of about arguments.
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
