"""The parts of `make benchmarks`: what each measures, against what, and the command that does it."""

from pathlib import Path
from typing import NamedTuple

import measure

HOME = measure.ROOT / "benchmarks"
RESULTS = HOME / "results"
PEERS = HOME / ".venv"
RUN = "results/smollm2-135m"
# What a part may need beside this checkout, and how to get it.
NEEDS = {
    "run": f"the finished default run, {RUN}: `make run`",
    "peers": "the other projects in benchmarks/.venv: `make benchmarks` installs them",
    "chromium": "a headless Chromium",
    "slurm": "a Slurm installation",
}


class Figure(NamedTuple):
    """A bar for each row of a table, or a line if the labels are numbers."""

    table: str
    label: str
    value: str


class Part(NamedTuple):
    """One measurement: a script with arguments that can be run alone."""

    name: str
    about: str  # what is measured, against which reference
    command: tuple[str, ...]  # script and arguments
    tables: tuple[str, ...]  # stems of the csv files it writes
    minutes: float  # CPU-minutes on two slow cores, as expected
    needs: tuple[str, ...] = ()
    figure: Figure | None = None

    def with_peers(self) -> tuple[str, ...]:
        """The command, with the environment of the other projects if it needs them."""
        named = ("--peers", PEERS.relative_to(measure.ROOT).as_posix())
        return self.command + named if "peers" in self.needs else self.command


PARTS = (
    Part(
        "extraction",
        "Writing the activations of all layers, in both storage modes and under disk budgets, "
        "against the bare forward pass. The shape is that of GPT-2 small, the weights are random.",
        ("extraction.py", "gpt2-small", "--tokens", "4096", "--batch", "4"),
        ("extraction",),
        3,
        figure=Figure("extraction", "what", "tokens/CPU s"),
    ),
    Part(
        "saelens_cache",
        "Storing one layer's activations and reading them in shuffled batches, against the cached "
        "activations of SAELens, an Arrow data set.",
        ("saelens_cache.py", RUN, "--tokens", "16384"),
        ("saelens_cache", "saelens_cache.reading"),
        4,
        ("run", "peers"),
        Figure("saelens_cache.reading", "what", "rows/CPU s"),
    ),
    Part(
        "lm_polygraph_answers",
        "Greedy answers with the log-probability of every token, against lm-polygraph.",
        ("lm_polygraph_answers.py", RUN),
        ("lm_polygraph_answers",),
        2,
        ("run", "peers"),
        Figure("lm_polygraph_answers", "what", "answers/CPU s"),
    ),
    Part(
        "writing",
        "Writing stores of ready blocks, to a file system in memory, against a plain write of the "
        "same bytes with checksums.",
        ("writing.py", "--memory"),
        ("writing.stores", "writing.encoder", "writing.device"),
        1,
        figure=Figure("writing.stores", "storage", "rows/s CPU"),
    ),
    Part(
        "reading",
        "Reading a store in shuffled order against a plain memory map, and the sampler against a "
        "training step.",
        ("store_reading.py", "--rows", "196608", "--repeats", "3"),
        ("store_reading", "store_reading.sampler"),
        2,
        figure=Figure("store_reading", "what", "fp16 MB/CPU s"),
    ),
    Part(
        "feeding",
        "Rows that the sampler hands to a GPU as stored, or decodes on a CPU, against a plain copy "
        "of the same bytes.",
        ("feeding.py", "--rows", "393216", "--epochs", "2"),
        ("feeding",),
        2,
        figure=Figure("feeding", "mode", "M rows per CPU s"),
    ),
    Part(
        "sae_step",
        "One SAE training step against plain autograd, SAELens, sparsify and dictionary_learning, "
        "and against the time of its matrix products.",
        (
            "sae_step.py",
            *("--batch", "256", "4096", "--rounds", "3", "--only"),
            *("ours batchtopk", "SAELens", "sparsify", "dictionary_learning"),
        ),
        ("sae_step",),
        5,
        ("peers",),
        Figure("sae_step", "what", "x SAELens"),
    ),
    Part(
        "sae_quality",
        "Held-out FVU, L0 and dead features of whole trainings, against the BatchTopK SAE of "
        "SAELens on the same rows.",
        ("sae_quality.py", RUN, "--layers", "16"),
        ("sae_quality",),
        15,
        ("run", "peers"),
        Figure("sae_quality", "what", "FVU"),
    ),
    Part(
        "sparse_probing",
        "Accuracy of a classifier on the 1 or 5 best features of an SAE: ours, that of SAELens, "
        "one with a frozen random decoder, and principal components.",
        ("sparse_probing.py", RUN, "--layers", "16"),
        ("sparse_probing",),
        20,
        ("run", "peers"),
        Figure("sparse_probing", "what", "accuracy, 1 feature"),
    ),
    Part(
        "storage_modes",
        "SAEs trained on int8s activations against SAEs trained on fp16 activations.",
        ("storage_modes.py", RUN, "--layers", "16"),
        ("storage_modes",),
        10,
        ("run",),
    ),
    Part(
        "planted_dictionary",
        "Recovered directions of a known dictionary, as noise grows.",
        ("planted_dictionary.py", "--rows", "200000", "--noise", "0", "0.2", "0.5"),
        ("planted_dictionary",),
        3,
    ),
    Part(
        "planted_identities",
        "Tracking of planted identities, which are known, as their copies differ more.",
        ("planted_identities.py",),
        ("planted_identities",),
        1,
        figure=Figure("planted_identities", "cosine", "IDF1"),
    ),
    Part(
        "tracking",
        "Tracks and metrics of one token against the algorithm of the original work.",
        ("tracking.py", "speed", RUN),
        ("tracking.speed",),
        3,
        ("run",),
        Figure("tracking.speed", "method", "texts/s"),
    ),
    Part(
        "tracking_growth",
        "Time of tracking as tokens and layers grow.",
        ("tracking.py", "growth", RUN),
        ("tracking.growth",),
        3,
        ("run",),
    ),
    Part(
        "tracking_memory",
        "Memory of the tracking job on synthetic data.",
        ("tracking.py", "memory", "--tokens", "20000"),
        ("tracking.memory",),
        2,
    ),
    Part(
        "detection",
        "Time of the jobs of the detection phase.",
        ("detection_cost.py", "phase", RUN),
        ("detection_cost.phase",),
        0.1,
        ("run",),
    ),
    Part(
        "detection_growth",
        "Time of one fold as a data set grows, against n log n.",
        ("detection_cost.py", "growth", RUN),
        ("detection_cost.growth", "detection_cost.exponents"),
        20,
        ("run",),
        Figure("detection_cost.growth", "texts", "all"),
    ),
    Part(
        "scoring",
        "Tokens per CPU second of `make score` against the bare forward pass, and how much the batch "
        "changes a score.",
        ("scoring.py", RUN, "--texts", "300"),
        ("scoring", "scoring.alone"),
        3,
        ("run",),
        Figure("scoring", "what", "tokens/CPU-s"),
    ),
    Part(
        "memory",
        "Memory that jobs ask for against their measured peaks.",
        ("memory.py", RUN),
        ("memory",),
        0.5,
        ("run",),
        Figure("memory", "rule", "asked / peak"),
    ),
    Part(
        "default_run",
        "Scores, claims, SAE quality, cost and time of the default run, from its own tables.",
        ("default_run.py", RUN),
        tuple(f"default_run.{name}" for name in ("scores", "claims", "saes", "cost", "time")),
        0.1,
        ("run",),
    ),
    Part(
        "startup",
        "CPU time of jobs before their own work: imports in a new process, and in a fork.",
        ("startup.py", RUN),
        ("startup",),
        8,
        ("run",),
    ),
    Part(
        "explorer",
        "Size of an explorer page and time to switch texts, against the promised limits.",
        ("explorer.py", f"{RUN}/explorer.html"),
        ("explorer",),
        1,
        ("run", "chromium"),
    ),
    Part(
        "explorer_long",
        "The same for a page of long made-up answers, as contexts and summaries have them.",
        ("explorer.py", "--made", "900", "400"),
        ("explorer.long",),
        3,
        ("chromium",),
    ),
    Part(
        "dry_runs",
        "CPU time of the plan and the dry run as models grow, up to 70 layers; no weights are "
        "needed.",
        ("dry_runs.py",),
        ("dry_runs", "dry_runs.plan"),
        3,
        figure=Figure("dry_runs", "jobs", "dry run, CPU s"),
    ),
)
# Measured by a target of their own, or only on request; the page shows them too.
OTHERS = (
    Part(
        "random_faults",
        "Whole runs of a tiny model with random kills, full quotas and lost files, against the "
        "same run without faults.",
        ("random_faults.py", "--faults", "10"),
        ("random_faults",),
        25,
    ),
    Part(
        "slurm_memory",
        "Memory of the jobs of a run with the shape of GPT-2 medium on a test Slurm.",
        ("slurm_memory.py",),
        ("slurm_memory",),
        60,
        ("slurm",),
    ),
    Part(
        "ragtruth_qa",
        "Answers over passages: a finished run with datasets=[ragtruth_qa] and detection={audit: "
        "report}, from its own tables.",
        ("real_texts.py", RUN, "ragtruth_qa", "--cost"),
        tuple(
            f"real_texts.ragtruth_qa.{name}"
            for name in ("scores", "claims", "tokens", "token_claims", "cost")
        ),
        0.1,
        ("run",),
    ),
    Part(
        "counterfact",
        "Statements of 42 relations: a finished run with datasets=[counterfact], from its own tables.",
        ("real_texts.py", RUN, "counterfact"),
        ("real_texts.counterfact.scores", "real_texts.counterfact.claims"),
        0.1,
        ("run",),
    ),
    Part(
        "mutants",
        "Small changes to the code that no unit test notices: `make mutants`.",
        ("mutants.py", "--sample", "60", "--seed", "0"),
        ("mutants",),
        20,
    ),
    Part(
        "fuzz",
        "Random and damaged inputs to every reader: `make fuzz`.",
        ("fuzz.py",),
        ("fuzz",),
        30,
    ),
)


def missing(part: Part) -> list[str]:
    """What the part needs and this machine lacks, as sentences with the remedy."""
    from shutil import which

    there = {
        "run": (measure.ROOT / RUN / "report.html").exists(),
        "peers": (PEERS / "bin" / "python").exists(),
        "chromium": any(map(which, ("chromium", "chromium-browser", "google-chrome"))),
        "slurm": which("slurmctld") is not None or Path("/usr/sbin/slurmctld").exists(),
    }
    return [NEEDS[need] for need in part.needs if not there[need]]
