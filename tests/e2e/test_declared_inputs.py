"""Jobs read what their rules name and nothing else: what is not an input is not in a record, and its change goes unseen."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.e2e import traces
from tests.e2e.tiny_runs import MODEL

pytestmark = pytest.mark.e2e

# What no result depends on: progress, logs, times, and the records themselves.
ASIDE = re.compile(rf"^results/{MODEL}/(logs|state|benchmarks|records)/|\.partial|/\.")
# Files of the model's folder that a tokenizer may bring; source.json has their digests, and loading checks them.
BROUGHT = re.compile(rf"^results/{MODEL}/model/\w+\.json$")


@pytest.mark.skipif(traces.TRACER is None, reason="strace is not installed")
def test_jobs_read_no_result_that_their_rule_does_not_name(finished: Path) -> None:
    named: dict[str, set[str]] = defaultdict(set)
    for path in (finished / "results" / MODEL / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        output = (
            path.relative_to(finished).as_posix().replace("/records/", "/").removesuffix(".json")
        )
        named[record["rule"]] |= {*record["inputs"], output}
    opened = traces.opened_by_script(finished.parent / "trace", finished)
    assert {
        "train_sae",
        "extract_examples",
        "write_report",
        "save_detector",
        "check_explanations",
    } <= set(opened)
    for script, paths in opened.items():
        allowed = {
            path for rule, paths in named.items() if rule.startswith(script) for path in paths
        }
        strange = sorted(
            path
            for path in paths
            if (finished / path).is_file()
            and not ASIDE.search(path)
            and not BROUGHT.match(path)
            and not any(path == each or path.startswith(f"{each}/") for each in allowed)
        )
        assert strange == [], f"{script} reads what its rule does not name"
        assert paths & allowed or script.startswith("fetch"), f"nothing was seen of {script}"
