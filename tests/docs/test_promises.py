"""The pages that are made of benchmark tables quote nothing else."""

import page
import parts
import promises
import pytest


def test_the_page_of_benchmarks_is_what_the_tables_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "make docs"


def test_the_page_of_promises_is_what_its_source_gives() -> None:
    assert promises.PAGE.read_text(encoding="utf-8") == promises.text(), "make docs"


@pytest.mark.parametrize(
    "entry",
    [entry for section in promises.sections() for entry in section.entries],
    ids=lambda entry: entry.promise[:40],
)
def test_every_number_of_a_promise_is_in_its_tables_or_tests(entry: promises.Entry) -> None:
    assert promises.unproven(entry) == []
    assert entry.tables or entry.tests or entry.state == "not measured"


def entry(here: str, **more: object) -> promises.Entry:
    fields = {"promise": "", "original": "", "here": here, "state": "kept", "how": "tested"}
    return promises.Entry.model_validate({**fields, **more})


def test_a_number_without_a_source_is_found() -> None:
    made_up = entry("At most 6 of 100 seeds", tests=["test_a_number_without_a_source_is_found"])
    assert promises.unproven(made_up) == []  # both stand in this test
    assert promises.unproven(entry("A gain of 17.3, -.42 and .1")) == ["17.3", "-.42", ".1"]
    assert promises.unproven(entry("GPT-2, int8s and `k: 999` are names")) == []


def test_a_number_is_rounded_to_the_digits_that_are_stated(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    header = "case,x,machine,versions,code,date,command\n"
    (folder / "t.csv").write_text(f"{header}a,5.257,m,v,c,d,python b.py 77\n", encoding="utf-8")
    monkeypatch.setattr(page, "RESULTS", folder)
    stated = entry("5 times, 5.3 times, 5.26 times", tables=["t"])
    assert promises.unproven(stated) == []
    assert promises.unproven(entry("5.2 times of 77", tables=["t"])) == ["5.2", "77"]


def test_a_test_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="test_nothing_of_this_name, which is no test"):
        promises.unproven(entry("", tests=["test_nothing_of_this_name"]))


def test_every_part_has_a_script_and_every_kept_table_a_part() -> None:
    every = (*parts.PARTS, *parts.OTHERS)
    assert len({part.name for part in every}) == len(every)
    for part in every:
        assert (parts.HOME / part.command[0]).exists(), part.name
        assert set(part.needs) <= set(parts.NEEDS)
        assert part.figure is None or part.figure.table in part.tables
    known = {name for part in every for name in part.tables}
    assert {path.stem for path in parts.RESULTS.glob("*.csv")} <= known
