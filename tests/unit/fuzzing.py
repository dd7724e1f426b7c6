"""Strategies of the fuzz tests, and how many examples each takes.

`GHOSTTRACK_FUZZ=10000` sets the number; `make fuzz` does so. A failure prints the line that replays
it (`@reproduce_failure`), and hypothesis keeps the smallest example.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ghosttrack.errors import UserError

EXAMPLES = int(os.environ.get("GHOSTTRACK_FUZZ", "200"))
common = settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Numbers at the ends of types, and texts that YAML, JSON or a file system read in their own way.
NUMBERS = st.sampled_from([0, 1, -1, 2, 64, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308])
TEXTS = st.sampled_from(["", " ", "all", "null", "true", "1", "1e3", "..", "/", "a\nb", "é", "a,b"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | TEXTS
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
# Edits of bytes: where (a share of the length), how many go, what comes.
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 6),
        st.binary(max_size=4) | st.sampled_from([b"\0", b"\xff" * 8, b'"', b"{", b"\n"]),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[float, int, bytes]], end: int | None = None) -> bytes:
    """The content after edits of its first `end` bytes."""
    for share, gone, put in edits:
        place = int(share * (len(content) if end is None else min(end, len(content))))
        content = content[:place] + put + content[place + gone :]
    return content


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value, each as keys and indices from the top."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return []
    return [
        place for key, each in items for place in [(*prefix, key), *paths(each, (*prefix, key))]
    ]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three places changed, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        if not (known := paths(value)):
            break
        *above, last = draw(st.sampled_from(known))
        parent = value
        for key in above:
            parent = parent[key]
        kind = draw(st.sampled_from(["change", "change", "remove", "rename"]))
        if kind == "change" or isinstance(parent, list):
            parent[last] = draw(VALUES)
        else:
            old = parent.pop(last)
            if kind == "rename":
                parent[draw(st.text(max_size=6))] = old
    return value


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, or the message with which it refuses its input.

    Any other exception passes through and fails the test.
    """
    try:
        return call(), ""
    except UserError as error:
        message = str(error)
        assert message.strip(), "an error without a message"
        return None, message
