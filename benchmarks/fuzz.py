"""Random and damaged inputs to every reader: the fuzz tests with many examples.

    PYTHONPATH=workflow_scripts python benchmarks/fuzz.py --examples 10000

`make test` takes 200 examples of each strategy. A failure prints the line that replays it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from measure import ROOT, show

TESTS = "tests/unit/test_fuzz.py"


def main() -> None:
    """Run the tests, and print a table of strategies, examples and results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=10_000, help="of each strategy")
    parser.add_argument("--only", default="", help="expression of pytest's -k")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", TESTS, "-q", f"--junitxml={file}"]
        code = subprocess.run(
            [*command, "-k", given.only] if given.only else command,
            cwd=ROOT,
            env={**os.environ, "GHOSTTRACK_FUZZ": str(given.examples)},
            check=False,
        ).returncode
        cases = list(ElementTree.parse(file).iter("testcase"))
    rows = [
        [
            case.attrib["name"].removeprefix("test_").replace("_", " "),
            given.examples,
            "failed" if len(case) else "passed",
            float(case.attrib["time"]),
        ]
        for case in cases
    ]
    show("strategies", ["strategy", "examples", "result", "wall s"], rows)
    sys.exit(code)


if __name__ == "__main__":
    main()
