# rules/common/detect.smk -- helpers of rules/detect.smk.
from ghosttrack.planning import external_sources

SCORE_TABLES = [entry.name for found in SETTINGS.values() for entry in found.external.tables]
DETECTOR_CLASSES = [entry.name for found in SETTINGS.values() for entry in found.external.classes]
# What a class reads from the activation stores.
ACTIVATION_PARTS = ("activations", "token_activations", "codes")


def closed_book(wildcards):
    """Input function: output on the statements without their remarks, of a conflict set."""
    folder = f"results/{wildcards.model}/examples/{wildcards.dataset}"
    return [f"{folder}/closed_book.parquet"] if wildcards.dataset in CONFLICT else []


def table_of(wildcards):
    """The settings of a score table."""
    entries = SETTINGS[wildcards.model].external.tables
    return next(entry for entry in entries if entry.name == wildcards.score_table)


def class_of(wildcards):
    """The settings of a detector class."""
    entries = SETTINGS[wildcards.model].external.classes
    return next(entry for entry in entries if entry.name == wildcards.detector_class)


def score_table(wildcards):
    """Input function: the user's file of scores."""
    return table_of(wildcards).path


def table_setting(name):
    """Param function: one value of a score table's settings."""
    return lambda wildcards: getattr(table_of(wildcards), name)


def class_file(wildcards):
    """Input function: the file of a class, so that a change of its content reruns the class."""
    return str(external_sources.find(class_of(wildcards)).file)


def class_imports(wildcards):
    """Input function: the Python files beside it that the file of a class imports."""
    return [
        str(path) for path in external_sources.imported(external_sources.find(class_of(wildcards)))
    ]


def class_module(wildcards):
    """Param function: the module to import for a class, or "" for a file."""
    return external_sources.find(class_of(wildcards)).module


def class_name(wildcards):
    """Param function: the name of a class in its file."""
    return external_sources.find(class_of(wildcards)).name


def class_setting(name):
    """Param function: one value of a class's settings."""
    return lambda wildcards: getattr(class_of(wildcards), name)


def class_reads(pattern, *parts):
    """Input function: files of all layers, if a class reads one of `parts`; else nothing."""
    every = per(pattern, "layer")

    def files(wildcards):
        chosen = class_of(wildcards).reads
        return list(dict.fromkeys(every(wildcards))) if set(parts) & set(chosen) else []

    return files


def without_context(wildcards):
    """Input function: output on the texts without their contexts, of a data set with contexts."""
    folder = f"results/{wildcards.model}/examples/{wildcards.dataset}"
    return [f"{folder}/without_context.parquet"] if wildcards.dataset in IN_CONTEXT else []


def per_spans(pattern):
    """Input function: `pattern` for the model's data sets with hallucinated spans."""
    return lambda wildcards: [
        pattern.format(model=wildcards.model, dataset=name)
        for name in SETTINGS[wildcards.model].datasets
        if name in WITH_SPANS
    ]


def if_spans(path):
    """Input function: `path` if the model has a data set with hallucinated spans; else nothing."""
    return lambda wildcards: per_spans(path)(wildcards)[:1]
