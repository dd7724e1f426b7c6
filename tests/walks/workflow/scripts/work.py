"""Every job of the walks' workflow: each output is a digest of its name, of the parameters and of all inputs."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.runtime import job


def content(name: str, params: dict[str, Any], inputs: list[bytes]) -> bytes:
    """What an output holds. `name` is its path below results."""
    total = hashlib.sha256(json.dumps([name, params], sort_keys=True).encode())
    for each in inputs:
        total.update(each)
    return total.hexdigest().encode() * 4


def main() -> None:
    """Write the outputs; fail, or be killed half-way, where WALK_FAULT says so."""
    given = globals()["snakemake"]
    fault, _, name = os.environ.get("WALK_FAULT", "").partition(" ")
    kept = {
        key: value
        for key, value in given.params.items()
        if key not in ("state", "dataset_settings")
    }
    waited = list(getattr(given.input, "earlier", []))
    inputs = [Path(path).read_bytes() for path in given.input if path not in waited]
    for place, path in enumerate(given.output):
        found = content(path, kept, inputs)
        if name == given.rule and place == len(given.output) - 1:
            if fault == "error":
                raise UserError("a fault that the walk asked for")
            if fault == "kill":
                Path(path).write_bytes(found[: len(found) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        Path(path).write_bytes(found)


if __name__ == "__main__":
    job.run(main, globals())
