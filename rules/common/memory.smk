# rules/common/memory.smk -- memory and time that jobs ask for, by the formulas of planning/memory.py
# and planning/forecast.py.
import time
from functools import lru_cache


def memory_for(estimate, *more, model=None):
    """Resource function: MB by a formula of `planning/memory.py`; grows with every attempt.

    `model`: for rules of one model, which have no wildcard for it.
    """

    def megabytes(wildcards, attempt):
        run = memory_run(model or wildcards.get("model", MODELS[0]))
        return attempt * memory.asked(estimate(run, *more), on_cluster(), run.gpu)

    return megabytes


def lasting(base, estimate, *more, model=None):
    """Resource function: four times the minutes of an estimate, at least `base`; grows like `scaled`.

    `estimate`: of `planning/forecast.py`, a minimum; `model`: as in `memory_for`.
    """

    def minutes(wildcards, attempt):
        expected = estimate(SETTINGS[model or wildcards.model], *more)
        return max(base, round(4 * expected)) * attempt

    return minutes


def on_cluster():
    """Whether Snakemake submits jobs: only then it has default resources."""
    return workflow.resource_settings.default_resources is not None


def memory_run(model):
    """What the memory of a model's jobs depends on, as known now: read at most once a second."""
    return memory_run_at(model, int(time.monotonic()))


@lru_cache(maxsize=len(MODELS))
def memory_run_at(model, _second):
    """The same, once in a second."""
    settings, results = SETTINGS[model], Path("results")
    texts = {
        name: data_sizes.known_texts(settings, name, DATASETS[name], results)
        for name in settings.datasets
    }
    known = data_sizes.model_numbers(settings, results)
    gpu = data_sizes.uses_gpu(settings, on_cluster())
    size = max(dictionary_size(model), data_sizes.fetched_width(settings, results))
    return memory.Run(settings, size, texts, *known, gpu)


@cache
def dictionary_size(model):
    """Features of one SAE: what local pretrained SAEs say, else sae.d_sae."""
    sizes = [sae.d_sae for sae in plan.pretrained_locally(SETTINGS[model]).values()]
    return max(sizes, default=SETTINGS[model].sae.d_sae)
