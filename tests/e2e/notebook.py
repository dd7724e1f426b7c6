"""Run the code cells of a notebook in order, in one namespace, and print what each would show. A warning is an error."""

import ast
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib


def run(path: Path) -> None:
    """Raises what a cell raises; the traceback names the cell."""
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        name = f"{path.name}, cell {number}"
        body = ast.parse("".join(cell["source"]), name).body
        last = body[-1]
        exec(compile(ast.Module(body[:-1], []), name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            print(eval(compile(ast.Expression(last.value), name, "eval"), namespace))
        else:
            exec(compile(ast.Module([last], []), name, "exec"), namespace)


if __name__ == "__main__":
    warnings.simplefilter("error")
    matplotlib.use("agg")
    run(Path(sys.argv[1]))
