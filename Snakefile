# GhostTrack: the pipeline's table of contents. Each file in rules/ is one phase; the order below is the order of the data.
configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/fetch.smk"
include: "rules/extract.smk"
include: "rules/sae.smk"
include: "rules/track.smk"
include: "rules/detect.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
# Aside from a run: each has a target of its own.
include: "rules/score.smk"
include: "rules/sweep.smk"
include: "rules/ablate.smk"
include: "rules/transfer.smk"
include: "rules/seeds.smk"
include: "rules/leak.smk"
include: "rules/develop.smk"
include: "rules/common/targets.smk"


onstart:
    refuse_orphans()


onsuccess:
    refuse_disagreement()
    sys.stderr.writelines(f"Report: {path}\n" for path in reports(None) if Path(path).exists())


onerror:
    sys.stderr.write(
        "Finished work stays: mend what the errors above name, then run the same command again\n"
    )


# The digests of the rules' code, for the next process that reads this file.
code_digest.write_cache()


localrules:
    all,
    activations,
    saes,
    sae_sweep,
    features,
    tracks,
    metrics,
    paper,
    scores,
    reproduce_leak,
    transfer,
    seed_variance,
    ablations,
    tuning,


rule all:
    """Everything: one checked report per model, every SAE in its own right, and the comparison of several models."""
    default_target: True
    input:
        reports,
        collect(rules.write_explorer.output.explorer, model=MODELS),
        collect(rules.summarise_costs.output.page, model=MODELS),
        all_tracks,
        strict_checks,
        collect(rules.evaluate_detectors.output, model=MODELS),
        collect(rules.save_detector.output, model=MODELS),
        collect(rules.draw_figures.output.figures, model=MODELS),
        sae_files("sae_weights.safetensors", "cfg.json", "quality.json"),
        all_histories,
        all_features,
        comparison,
    message:
        "Gathering the reports, tables and SAEs of every model"


rule activations:
    """Phase 1 alone: activations of every analysed layer."""
    input:
        all_activations,
    message:
        "Gathering the activations"


rule saes:
    """Phases 1 and 2: one sparse autoencoder per layer, with its quality on held-out text."""
    input:
        sae_files("sae_weights.safetensors", "cfg.json", "quality.json"),
    message:
        "Gathering the SAEs"


rule sae_sweep:
    """Aside from a run: SAEs of other k and other seeds on a few layers (sweep.layers, sweep.k, sweep.seeds)."""
    input:
        all_sweeps,
    message:
        "Gathering the swept SAEs"


rule features:
    """Phases 1 and 2, and the feature dictionary of every layer."""
    input:
        all_features,
    message:
        "Gathering the feature dictionaries"


rule tracks:
    """Phases 1 to 3: features followed across layers, for every data set and null."""
    input:
        all_tracks,
    message:
        "Gathering the tracks"


rule metrics:
    """Phases 1 to 5 without figures and pages: the metric tables and the claim ledger."""
    input:
        collect("results/{model}/evaluation/metrics.csv", model=MODELS),
    message:
        "Gathering the metric tables"


rule paper:
    """LaTeX tables, pdf figures and citation of every model, on top of what they are made from."""
    input:
        collect("results/{model}/paper", model=MODELS),
    message:
        "Gathering the papers"


rule scores:
    """One's own texts (score.texts), scored by the detector of every model."""
    input:
        collect("results/{model}/scores/texts.jsonl", model=MODELS),
    message:
        "Gathering the scored texts"


rule reproduce_leak:
    """What noise and the text alone reach under a random split of pairs, and under a grouped one. Needs no model."""
    input:
        collect("results/{model}/evaluation/leak_reproduction.csv", model=MODELS),
    message:
        "Gathering what noise reaches"


rule transfer:
    """Detectors on relations that they were not trained on: left out one by one, and from each data set to each other."""
    input:
        collect(rules.draw_transfer.output.figures, model=MODELS),
    message:
        "Gathering what transfers"


rule seed_variance:
    """The default detector under other fold seeds; and under other SAE seeds, if the sweep is of every analysed layer."""
    input:
        collect("results/{model}/evaluation/seed_variance.csv", model=MODELS),
    message:
        "Gathering what seeds change"


rule ablations:
    """Aside from a run: the metrics of tracks without each of their parts, and with links that mean less (ablations)."""
    input:
        collect("results/{model}/ablations/ablations.html", model=MODELS),
    message:
        "Gathering the ablations"


rule tuning:
    """Aside from a run: other tracking settings, chosen inside the training folds and scored outside (tuning)."""
    input:
        collect("results/{model}/ablations/tuning.html", model=MODELS),
    message:
        "Gathering the tuning"


# Last, when all rules are known: refuse options and settings that Snakemake would ignore.
from ghosttrack.planning import traps

traps.check(workflow, MODELS)
