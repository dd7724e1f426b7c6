"""Greedy answers with the log-probability of every token: ours against lm-polygraph.

    PYTHONPATH=workflow_scripts python benchmarks/lm_polygraph_answers.py RUN --peers benchmarks/.venv

Both continue the prompts of a run's question data set with its model in float32, in batches of the
same size, up to the end of the line, on one thread; they take turns. lm-polygraph keeps no
attention weights. The prompts of a data set begin with the same examples, which ours reads once.
"""

import argparse
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measure import Cost, cost, least, show

from ghosttrack.activations import limits
from ghosttrack.activations.decoding import complete
from ghosttrack.inputs import models
from ghosttrack.runtime.allocator import keep_freed_memory

PEER = "lm-polygraph"


class Peer:
    """lm-polygraph's calculator of greedy answers and their probabilities."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int) -> None:
        polygraph: Any = importlib.import_module("lm_polygraph")
        settings: Any = importlib.import_module("lm_polygraph.utils.generation_parameters")
        calculators: Any = importlib.import_module("lm_polygraph.stat_calculators.greedy_probs")
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._model = polygraph.WhiteboxModel(
            model,
            tokenizer,
            generation_parameters=settings.GenerationParameters(stop_strings=["\n"]),
        )
        self._calculator = calculators.GreedyProbsCalculator(output_attentions=False)
        self._max_new_tokens = max_new_tokens

    def answers(self, prompts: list[str], batch: int) -> list[str]:
        """Continue each prompt, up to the end of its line."""
        texts: list[str] = []
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            found = self._calculator({}, some, self._model, self._max_new_tokens)
            texts += [text.partition("\n")[0] for text in found["greedy_texts"]]
        return texts


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with a data set of questions")
    parser.add_argument("--dataset", default="questions")
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="prompts per batch")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="virtual environment with the other projects"
    )
    given = parser.parse_args()
    if given.peers:
        sys.path += map(str, sorted(given.peers.glob("lib/python*/site-packages")))
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")  # warnings of lm-polygraph
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the jobs, for both
    folder = given.run / "model"
    transformers: Any = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peer = Peer(plain, tokenizer, given.max_new_tokens)
    model, own_tokenizer = models.load_model(folder, "cpu"), models.load_tokenizer(folder)
    questions = pd.read_parquet(given.run / "datasets" / given.dataset / "questions.parquet")
    prompts = questions["prompt"].head(given.answers).tolist()
    # Ours puts this token before each text by itself.
    separator = own_tokenizer.decode([models.separator(own_tokenizer)])
    found: dict[str, list[str]] = {}

    def ours() -> None:
        made = complete(
            model,
            own_tokenizer,
            prompts,
            limits=limits.read(given.run / "model_check.json"),
            max_new_tokens=given.max_new_tokens,
            batch=given.batch,
            dataset=given.dataset,
        )
        found["ours"] = [each.text for each in made]

    def theirs() -> None:
        found[PEER] = peer.answers([separator + prompt for prompt in prompts], given.batch)

    calls = {"ours": ours, PEER: theirs}
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(given.repeats):
        for name, call in calls.items():
            costs[name].append(cost(call))
    reference = least(costs[PEER]).cpu
    same = [
        one.strip() == other.strip() for one, other in zip(found["ours"], found[PEER], strict=True)
    ]
    show(
        f"{given.run}: {len(prompts)} answers of at most {given.max_new_tokens} tokens, batches of "
        f"{given.batch}",
        ["", "CPU s", "wall s", "answers/CPU s", f"x {PEER}", "same text"],
        [
            [
                name,
                least(times).cpu,
                least(times).wall,
                len(prompts) / least(times).cpu,
                reference / least(times).cpu,
                sum(same) / len(same),
            ]
            for name, times in costs.items()
        ],
    )


if __name__ == "__main__":
    main()
