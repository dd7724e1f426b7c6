"""The digest of a rule's code depends on its logic, not on its words."""

import os
from pathlib import Path

import pytest

from ghosttrack.settings import code_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package: script -> tracking -> kernel; runtime is left out."""
    home = tmp_path / "ghosttrack"
    for folder in (home / "runtime", tmp_path / "track"):
        folder.mkdir(parents=True)
    (tmp_path / "track" / "track.py").write_text(
        '"""Doc."""\nfrom ghosttrack import tracking\nfrom ghosttrack.runtime import job\ndef '
        "main(tracking):\n    return tracking.top_k\n"
    )
    (home / "tracking.py").write_text(
        "from ghosttrack.kernel import link\n\ndef run(x):\n    return link(x)\n"
    )
    (home / "kernel.py").write_text("def link(x):\n    return x + 1\n")
    (home / "runtime" / "job.py").write_text("FORMAT = 'a'\n")
    (home / "other.py").write_text("X = 1\n")
    monkeypatch.setattr(code_digest, "PACKAGE", home)
    monkeypatch.setattr(code_digest, "SCRIPTS", tmp_path)
    return home


def forget() -> None:
    """Clear the caches in memory, as in a new process."""
    for function in (
        code_digest.script_of,
        code_digest._closure,
        code_digest._imported_files,
        code_digest._source,
        code_digest._read_cache,
    ):
        function.cache_clear()


@pytest.fixture(autouse=True)
def _new_process() -> None:
    forget()


def digest() -> str:
    """The digest in a new process."""
    forget()
    return code_digest.source_digest("track")


@pytest.mark.usefixtures("package")
def test_parsed_sources_are_cached_by_size_inode_and_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = digest()
    code_digest.write_cache()
    with monkeypatch.context() as patch:
        patch.setattr(code_digest, "_parse", lambda path: pytest.fail(f"{path} was parsed again"))
        assert digest() == first
    (tmp_path / code_digest.CACHE).write_text("{damaged")
    assert digest() == first


@pytest.mark.parametrize("replaced", [True, False])
def test_an_edit_of_the_same_size_and_modification_time_changes_the_digest(
    package: Path, monkeypatch: pytest.MonkeyPatch, *, replaced: bool
) -> None:
    """As of an archive whose files all have one date, or of `cp -p`."""
    monkeypatch.chdir(package)
    kernel = package / "kernel.py"
    dates = kernel.stat()
    first = digest()
    code_digest.write_cache()
    text = kernel.read_text().replace("x + 1", "x + 2")
    if replaced:
        kernel.rename(package / "kernel.old")
    kernel.write_text(text)
    while kernel.stat().st_mtime_ns != dates.st_mtime_ns or (
        kernel.stat().st_ctime_ns == dates.st_ctime_ns  # within one tick of the clock
    ):
        os.utime(kernel, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert kernel.stat().st_size == dates.st_size
    assert digest() != first


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("def link(x):\n    return x + 1  # a comment\n", False),
        ("def link(x):\n    return x + 2\n", True),
        ("def link(x):\n    return (x\n", True),
        (None, True),
    ],
)
def test_an_edit_since_the_first_digest_is_found(
    package: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, *, edited: bool
) -> None:
    monkeypatch.chdir(package)
    monkeypatch.setattr(code_digest, "_first", {})
    first = digest()
    assert code_digest.edited_digests() == frozenset()
    if text is None:
        (package.parent / "track" / "track.py").unlink()
    else:
        (package / "kernel.py").write_text(text)
    assert code_digest.edited_digests() == (frozenset({first}) if edited else frozenset())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "kernel.py",
            '# a comment\ndef link(x):\n    """A docstring."""\n    return (x\n        + 1)\n',
        ),
        ("runtime/job.py", "FORMAT = 'b'\n"),
        ("other.py", "X = 2\n"),
    ],
)
def test_comments_runtime_and_modules_not_imported_leave_the_digest_unchanged(
    package: Path, name: str, text: str
) -> None:
    before = digest()
    (package / name).write_text(text)
    assert digest() == before


def test_an_edit_two_imports_away_changes_the_digest(package: Path) -> None:
    before = digest()
    (package / "kernel.py").write_text("def link(x):\n    return x + 2\n")
    assert digest() != before


@pytest.mark.usefixtures("package")
def test_a_setting_that_the_code_does_not_read_is_not_in_the_params() -> None:
    digest()
    assert code_digest.used_settings("track", {"top_k": 50, "brand_new": 1}) == {"top_k": 50}


def test_every_rule_has_a_different_digest() -> None:
    scripts = sorted(
        path.stem for path in code_digest.SCRIPTS.glob("*/*.py") if path.parent.name != "ghosttrack"
    )
    assert len({code_digest.source_digest(name) for name in scripts}) == len(scripts)


def test_modules_that_measure_speed_are_not_in_the_digest() -> None:
    names = {path.name for path in code_digest._closure("train_sae")}
    assert "engine.py" in names
    assert names.isdisjoint({"speed.py", "allocator.py"})
