# GhostTrack. Each file in rules/ is one phase; the files are included in the order of the data.
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
    sys.stderr.writelines(f"Report: {path}\n" for path in reports_of_run())


onerror:
    sys.stderr.write(
        "Finished results stay. Fix the errors above, then run the same command again\n"
    )


# Keep the digests of the rules' code for the next process that reads this file.
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
    """The whole run: a report per model, its SAEs and tables, and a comparison of several models."""
    default_target: True
    input:
        reports,
        collect(rules.write_explorer.output.explorer, model=MODELS),
        collect(rules.summarise_costs.output.page, model=MODELS),
        all_tracks,
        strict_checks,
        collect(rules.evaluate_detectors.output, model=MODELS),
        collect(rules.save_detector.output, model=MODELS),
        collect(rules.save_statement_detector.output, model=MODELS),
        collect(rules.draw_figures.output.figures, model=MODELS),
        sae_files("sae_weights.safetensors", "cfg.json", "quality.json"),
        all_histories,
        all_features,
        comparison,
    message:
        "Gathering the reports, tables and SAEs of every model"


rule activations:
    """Phase 1: activations of every analysed layer."""
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
    """Not part of `all`: SAEs with other k and seeds (sweep.layers, sweep.k, sweep.seeds)."""
    input:
        all_sweeps,
    message:
        "Gathering the swept SAEs"


rule features:
    """Phases 1 and 2, and a description of every feature."""
    input:
        all_features,
    message:
        "Gathering the feature dictionaries"


rule tracks:
    """Phases 1 to 3: features tracked across layers, for every data set and null."""
    input:
        all_tracks,
    message:
        "Gathering the tracks"


rule metrics:
    """Phases 1 to 5: the metric tables and the claim ledger, without figures and pages.

    Phase 4 fits the detectors, phase 5 evaluates them.
    """
    input:
        collect("results/{model}/evaluation/metrics.csv", model=MODELS),
    message:
        "Gathering the metric tables"


rule paper:
    """LaTeX tables, pdf figures and the citation for a paper, per model."""
    input:
        collect("results/{model}/paper", model=MODELS),
    message:
        "Gathering the papers"


rule scores:
    """The user's texts (score.texts), scored by the detector of every model."""
    input:
        collect("results/{model}/scores/texts.jsonl", model=MODELS),
    message:
        "Gathering the scored texts"


rule reproduce_leak:
    """AUROC of noise and of the text alone under a random split of pairs and under a grouped split.

    Needs no model.
    """
    input:
        all_leaks,
    message:
        "Gathering what noise reaches"


rule transfer:
    """Detectors on relations, data sets and wordings that they were not trained on."""
    input:
        all_transfer,
    message:
        "Gathering what transfers"


rule seed_variance:
    """AUROC of the default detector with other fold seeds (detection.fold_seeds).

    Also with other SAE seeds, if sweep.layers names every analysed layer.
    """
    input:
        collect("results/{model}/evaluation/seed_variance.csv", model=MODELS),
    message:
        "Gathering what seeds change"


rule ablations:
    """Not part of `all`: detectors on parts of the track metrics, and with random or no links.

    The section `ablations` of the settings chooses them.
    """
    input:
        collect("results/{model}/ablations/ablations.html", model=MODELS),
    message:
        "Gathering the ablations"


rule tuning:
    """Not part of `all`: detectors on tracks with other tracking settings (section `tuning`).

    The best setting is chosen in the training folds.
    """
    input:
        collect("results/{model}/ablations/tuning.html", model=MODELS),
    message:
        "Gathering the tuning"


# Last, when all rules are known: refuse options and settings that Snakemake would ignore.
from ghosttrack.planning import traps

traps.check(workflow, MODELS)
