"""`python -m ghosttrack.cli.check_gpu`: a GPU against the CPU, and its speed, in one table and JSON."""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ghosttrack.cli.gpu import agreement, card, speed, tiny_run
from ghosttrack.cli.gpu.agreement import Check
from ghosttrack.cli.gpu.measurement import Measurement
from ghosttrack.errors import UserError
from ghosttrack.runtime import files

Result = Check | Measurement


def main(arguments: list[str]) -> int:
    """Run all parts; 0: the GPU agrees with the CPU, 1: it does not or a part failed, 2: no GPU."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.check_gpu",
        description="Compare a GPU with the CPU and measure its speed (about eight minutes).",
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; default benchmarks/gpu/NAME_OF_THE_CARD.json"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run every part with small sizes on this machine, also without a GPU",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=["agreement", "steps", "feeding", "extraction", "generation", "run"],
        help="leave out a part; may be repeated",
    )
    chosen = parser.parse_args(arguments)
    try:
        device = torch.device("cpu") if chosen.rehearse else card.require_gpu()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    about = card.about(device)
    sizes = speed.SMALL if chosen.rehearse else speed.FULL
    out = chosen.out or _default_file(str(about["name"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": about,
        "seconds": {},
        "checks": [],
        "measurements": [],
        "errors": {},
    }
    _say(f"{about['name']}; torch {about['torch']}, CUDA {about['cuda']}")
    for name, part in _parts(sizes, device):
        if name in chosen.without:
            continue
        began = time.perf_counter()
        try:
            for result in part():
                _say(result.line)
                key = "checks" if isinstance(result, Check) else "measurements"
                content[key].append(result._asdict())
        # A part that fails must not take the others' results with it: the GPU may be lent.
        except Exception as error:
            content["errors"][name] = f"{type(error).__name__}: {error}"
            _say(f"{name}: FAILED, {type(error).__name__}: {error}")
        content["seconds"][name] = round(time.perf_counter() - began, 1)
        files.write_json(out, content)
    _say(f"{out}: {json.dumps(content['seconds'])} seconds")
    differing = [check["name"] for check in content["checks"] if not Check(**check).holds]
    if differing:
        _say(
            f"error: GPU and CPU do not agree in: {', '.join(differing)}. Do not train on this GPU; "
            "train without it (CUDA_VISIBLE_DEVICES= ) and report this file"
        )
    if content["errors"]:
        _say(f"error: these parts failed: {', '.join(content['errors'])}; their errors are above")
    return 1 if differing or content["errors"] else 0


def _parts(
    sizes: speed.Sizes, device: torch.device
) -> Sequence[tuple[str, Callable[[], Iterator[Result]]]]:
    """Name and results of every part, in the order in which they run."""
    measured: list[card.Limits] = []

    def limits() -> Iterator[Result]:
        measured.append(card.limits(device, sizes.seconds / 3, small=sizes is speed.SMALL))
        yield from measured[0].measurements()

    return [
        ("agreement", lambda: agreement.all_checks(device)),
        ("limits", limits),
        ("steps", lambda: speed.step_speed(sizes, device, measured[0])),
        ("feeding", lambda: speed.feeding_speed(sizes, device, measured[0])),
        ("extraction", lambda: speed.extraction_speed(sizes, device, measured[0])),
        ("generation", lambda: speed.generation_speed(sizes, device)),
        ("run", lambda: _tiny_runs(device)),
    ]


def _tiny_runs(device: torch.device) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        runs = {}
        for where in ("cpu", device.type if device.type == "cuda" else "cpu again"):
            runs[where] = tiny_run.run(Path(name) / where.replace(" ", "_"), gpu=where == "cuda")
            yield Measurement("run", f"{tiny_run.MODEL} on the {where}", runs[where].seconds, "s")
        yield from tiny_run.compare(*(run.results for run in runs.values()))


def _default_file(name: str) -> Path:
    return Path("benchmarks/gpu") / (re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") + ".json")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
