"""Build the fact tables: facts that are correct, unambiguous and not revealed by their text."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ghosttrack.facts.answer_words import TENS, UNITS
from ghosttrack.facts.fact_sources import City, SourceData, TableRow, fact_row
from ghosttrack.facts.statements import fold, look_alike, without_article

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# 400 facts give 800 statements; more would hardly narrow the confidence intervals.
CITY_FACTS = 400
# Largest number of cities of one country and of one state, so that none dominates a set.
PER_COUNTRY, PER_STATE = 14, 16
# A place of the same name makes a city ambiguous if it has at least this fraction of its
# population.
NAMESAKE = 0.05
# The capitals of the most populous countries go to capitals, the others to capitals_hard.
LARGE_COUNTRIES = 110
# Distractors of a capital in capitals_hard: the nearest other capitals.
NEAREST = 12
TRANSLATIONS = ("fr", "de", "es", "it", "pt", "nl", "sv", "pl", "fi", "hu", "tr", "cs")
MONTHS_AND_DAYS = ("fr", "de", "es", "it", "nl", "sv", "fi", "hu")
PLAIN_NAME = re.compile(
    r"[A-ZÀ-ÞŁŚŠŻŽÇĆČ][A-Za-zÀ-ÿąćčęěğıłńňőřśşšťůűźżž' -]{2,20}[a-zÀ-ÿąćęěłńňőśšźżž]$"
)


def tables(sources: SourceData) -> dict[str, list[TableRow]]:
    """All fact tables by name."""
    capitals, capitals_hard = _capitals(sources)
    cities, remaining = _cities(sources)
    built = {
        "cities": cities,
        "capitals": capitals,
        "capitals_hard": capitals_hard,
        "continents": _continents(sources, remaining),
        "languages": _languages(sources),
        "borders_hard": _borders(sources),
        "us_cities": _us_cities(sources),
        "element_number": _elements(sources, "number"),
        "element_symbol": _elements(sources, "symbol"),
        "currencies": _currencies(sources, surface=False),
        "currencies_surface": _currencies(sources, surface=True),
        "translation": _translations(sources),
        "larger_than": _larger_than(),
    }
    return {
        name: [
            line for line in lines if line["role"] == "demonstration" or _strict_enough(name, line)
        ]
        for name, lines in built.items()
    }


def _strict_enough(table: str, line: TableRow) -> bool:
    checked = (
        "cities",
        "capitals",
        "capitals_hard",
        "continents",
        "languages",
        "us_cities",
        "borders_hard",
    )
    return table not in checked or not look_alike(line["subject"], line["answer"])


def _role(sources: SourceData, relation: str, subject: str) -> str:
    shown = sources.choices["demonstrations"].get(relation, [])
    return "demonstration" if subject in shown else "evaluated"


def _capitals(sources: SourceData) -> tuple[list[TableRow], list[TableRow]]:
    choices = sources.choices
    by_size = sorted(sources.countries.values(), key=lambda country: -country.raw["population"])
    places = {
        (fold(city.name), city.country): city.coordinates for city in reversed(sources.cities)
    }
    facts = []  # (country, capital, aliases)
    for country in by_size:
        if country.code not in choices["no_capital"]:
            capital = choices["capitals"].get(country.code, country.raw["capital"].strip())
            facts.append((country, capital, choices["capital_aliases"].get(country.code, [])))
    largest = choices["largest_city"]
    single = [
        (country, capital, aliases)
        for country, capital, aliases in facts
        if country.code not in largest
    ]
    easy: list[TableRow] = []
    small = []
    for country, capital, aliases in single:
        if look_alike(country.name, capital):
            continue
        line = fact_row(
            "capital",
            country.name,
            capital,
            aliases=aliases,
            role=_role(sources, "capital", country.name),
        )
        if len(easy) < LARGE_COUNTRIES or line["role"] == "demonstration":
            easy.append(line)
        else:
            small.append((country, capital, places.get((fold(capital), country.code))))
    hard: list[TableRow] = []
    located = [(country, capital, where) for country, capital, where in small if where is not None]
    for country, capital, where in located:
        others = sorted(
            (other for other in located if other[0] != country),
            key=lambda other: _distance(where, other[2]),
        )
        hard.append(
            fact_row(
                "capital",
                country.name,
                capital,
                distractors=[other[1] for other in others[:NEAREST]],
            )
        )
    for country, capital, aliases in facts:
        if (
            country.code in largest
            and not look_alike(country.name, capital)
            and not look_alike(country.name, largest[country.code])
        ):
            hard.append(
                fact_row(
                    "capital",
                    country.name,
                    capital,
                    aliases=aliases,
                    distractors=[largest[country.code]],
                )
            )
            hard.append(
                fact_row("largest_city", country.name, largest[country.code], distractors=[capital])
            )
    for regions in choices["regions"].values():
        for region, capital in regions.items():
            aliases = choices["region_capital_aliases"].get(capital, [])
            hard.append(
                fact_row(
                    "capital",
                    region,
                    capital,
                    aliases=aliases,
                    distractors=[other for other in regions.values() if other != capital],
                )
            )
    counts = Counter(line["answer"] for line in (*easy, *hard) if line["relation"] == "capital")
    shared = {answer for answer, count in counts.items() if count > 1}
    return [line for line in easy if line["answer"] not in shared], [
        line for line in hard if line["answer"] not in shared or line["relation"] != "capital"
    ]


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Great-circle distance in radians (haversine)."""
    (lat1, lon1), (lat2, lon2) = [(math.radians(a), math.radians(b)) for a, b in (one, other)]
    half = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * math.asin(math.sqrt(half))


def known_cities(sources: SourceData) -> list[City]:
    """Cities outside the United States whose name is unambiguous, best known first."""
    skipped = {fold(name) for name in sources.choices["no_cities"]}
    skipped |= {fold(country.raw["capital"].strip()) for country in sources.countries.values()}
    skipped |= {fold(name) for name in sources.choices["capitals"].values()}
    skipped |= {
        fold(name)
        for names in sources.choices["capital_aliases"].values()
        for name in names
        if name != "Delhi"
    }
    excluded = {*sources.choices["ambiguous_countries"], "US", "CY", "IL"}
    chosen = []
    for city in sorted(sources.cities, key=lambda city: (-city.fame, -city.population, city.name)):
        country = sources.countries.get(city.country)
        if country is None or city.country in excluded or city.population < 100_000:
            continue
        if (
            fold(city.name) in skipped
            or not PLAIN_NAME.match(city.name)
            or look_alike(country.name, city.name)
        ):
            continue
        same = [
            other
            for other in sources.namesakes.get(fold(city.name), [])
            if other[0] != city.country
        ]
        if all(population < NAMESAKE * city.population for _, _, population in same):
            skipped.add(fold(city.name))
            chosen.append(city)
    return chosen


def _other_countries(sources: SourceData, city: City) -> list[str]:
    """Other countries with a place of the same name."""
    return sorted(
        {
            sources.countries[code].name
            for code, _, _ in sources.namesakes.get(fold(city.name), [])
            if code != city.country and code in sources.countries
        }
    )


def _cities(sources: SourceData) -> tuple[list[TableRow], list[City]]:
    lines: list[TableRow] = []
    remaining = []
    per_country: Counter[str] = Counter()
    for city in known_cities(sources):
        country = sources.countries[city.country]
        role = _role(sources, "city", city.name)
        if role == "evaluated" and (
            len(lines) >= CITY_FACTS + 5 or per_country[city.country] >= PER_COUNTRY
        ):
            remaining.append(city)
            continue
        per_country[city.country] += 1
        # Leeds is in England, not in Scotland.
        parts = sources.choices["parts_of_countries"].get(city.country, {})
        lines.append(
            fact_row(
                "city",
                city.name,
                country.name,
                aliases=[
                    *country.aliases,
                    *(name for code, name in parts.items() if code == city.state),
                ],
                excluded_distractors=_other_countries(sources, city),
                role=role,
            )
        )
    return lines, remaining


def _continents(sources: SourceData, remaining: Sequence[City]) -> list[TableRow]:
    lines = []
    for country in sources.countries.values():
        if country.code not in sources.choices["no_continent"]:
            answer = CONTINENTS[country.raw["continentcode"]]
            role = _role(sources, "continent", country.name)
            lines.append(fact_row("country_continent", country.name, answer, role=role))
    per_country: Counter[str] = Counter()
    for city in remaining:
        if city.country in sources.choices["no_continent"] or per_country[city.country] >= 8:
            continue
        per_country[city.country] += 1
        answer = CONTINENTS[sources.countries[city.country].raw["continentcode"]]
        continents = [
            CONTINENTS[sources.countries[code].raw["continentcode"]]
            for code, _, _ in sources.namesakes[fold(city.name)]
            if code in sources.countries
        ]
        lines.append(
            fact_row(
                "city_continent", city.name, answer, excluded_distractors=sorted(set(continents))
            )
        )
        if len(lines) >= CITY_FACTS:
            break
    return lines


def _languages(sources: SourceData) -> list[TableRow]:
    english = sources.locale("en").languages
    choices = sources.choices
    lines = []
    for country in sources.countries.values():
        listed = [
            english[code] for code in sources.official_languages(country.code) if code in english
        ]
        if country.code in choices["no_language"] or not listed:
            continue
        official = choices["official_languages"].get(country.code, listed)
        answer = choices["language_of"].get(country.code, official[0])
        other_names = choices["language_aliases"]
        accepted = [name for name in official if name != answer]
        accepted += [name for one in accepted for name in other_names.get(one, [])]
        aliases = [name for name in other_names.get(answer, []) if name not in accepted]
        spoken = [
            english.get(code.split("-")[0], "") for code in country.raw["languages"].split(",")
        ]
        lines.append(
            fact_row(
                "language",
                country.name,
                answer,
                aliases=aliases,
                accepted=accepted,
                excluded_distractors=[
                    name for name in (*listed, *spoken) if name not in (answer, *aliases, *accepted)
                ],
                role=_role(sources, "language", country.name),
            )
        )
    return lines


def _borders(sources: SourceData) -> list[TableRow]:
    countries = sources.countries
    disputed = {frozenset(pair) for pair in sources.choices["disputed_borders"]}
    neighbours: dict[str, set[str]] = {code: set() for code in countries}
    for code, country in countries.items():
        for other in country.raw["neighbours"].split(","):
            if other in countries:
                neighbours[code].add(other)
                neighbours[other].add(code)
    rng = random.Random("borders")  # decides which of the two countries is the subject
    lines = []
    for code in sorted(countries):
        for other in sorted(neighbours[code]):
            if code > other or frozenset((code, other)) in disputed:
                continue
            one, two = (code, other) if rng.random() < 0.5 else (other, code)
            excluded = neighbours[one] | {end for pair in disputed if one in pair for end in pair}
            # Neighbours of neighbours.
            distractors = {far for via in neighbours[one] for far in neighbours[via]}
            distractors -= excluded | {one}
            lines.append(
                fact_row(
                    "border",
                    countries[one].name,
                    countries[two].name,
                    aliases=countries[two].aliases,
                    excluded_distractors=sorted(
                        countries[end].name for end in excluded - {one, two}
                    ),
                    distractors=sorted(countries[far].name for far in distractors),
                )
            )
    return [line for line in lines if line["distractors"]]


def _us_cities(sources: SourceData) -> list[TableRow]:
    lines: list[TableRow] = []
    per_state: Counter[str] = Counter()
    names = {fold(name) for name in sources.states.values()} | {
        fold(name) for name in sources.choices["no_cities"]
    }
    for city in sorted(sources.cities, key=lambda city: (-city.fame, -city.population, city.name)):
        if (
            city.country != "US"
            or city.population < 30_000
            or city.name.split()[0] in ("North", "South", "East", "West", "City")
            or city.state not in sources.states
            or fold(city.name) in names
            or not PLAIN_NAME.match(city.name)
        ):
            continue
        state = sources.states[city.state]
        same = [
            other for other in sources.namesakes[fold(city.name)] if other[:2] != ("US", city.state)
        ]
        at_home = [other for other in same if other[0] == "US"]
        role = _role(sources, "us_city", city.name)
        if role != "demonstration" and (
            any(population >= NAMESAKE * city.population for _, _, population in at_home)
            or any(population > city.population for _, _, population in same)
        ):
            continue
        if look_alike(city.name, state) or (
            role != "demonstration" and per_state[city.state] >= PER_STATE
        ):
            continue
        names.add(fold(city.name))
        per_state[city.state] += 1
        lines.append(
            fact_row(
                "us_city",
                city.name,
                state,
                role=role,
                excluded_distractors=sorted(
                    {sources.states[code] for _, code, _ in at_home if code in sources.states}
                ),
            )
        )
        if len(lines) >= CITY_FACTS + 5:
            break
    return lines


def _elements(sources: SourceData, relation: str) -> list[TableRow]:
    # periodictable uses the American spellings.
    spelling = {"aluminum": "aluminium", "cesium": "caesium"}
    return [
        fact_row(
            relation,
            spelling.get(name, name),
            str(number) if relation == "number" else symbol,
            role=_role(sources, relation, name),
        )
        for number, name, symbol, _ in sources.elements
    ]


def _currencies(sources: SourceData, *, surface: bool) -> list[TableRow]:
    names = sources.locale("en").currencies
    choices = sources.choices
    lines = []
    for country in sources.countries.values():
        words = names.get(country.raw["currencycode"], "").replace("&", "and").split()
        if (
            country.code in choices["no_currency"]
            or len(words) < 2
            or country.raw["currencycode"] in ("EUR", "XOF", "XAF", "XCD")
            or "Convertible" in words
        ):
            continue
        # "Danish Krone" -> "Danish krone". Many countries share a unit.
        full, unit = " ".join([*words[:-1], words[-1].lower()]), words[-1].lower()
        alike = look_alike(country.name, full)
        if surface and alike:
            lines.append(fact_row("currency", country.name, full, aliases=[unit]))
        elif not surface and not look_alike(country.name, unit):
            alike_units = [
                other for names in choices["alike_currencies"] if unit in names for other in names
            ]
            excluded = choices["currency_excluded_distractors"].get(country.code, [])
            lines.append(
                fact_row(
                    "currency",
                    country.name,
                    unit,
                    aliases=[full],
                    excluded_distractors=[*excluded, *alike_units],
                )
            )
    return lines


def _translations(sources: SourceData) -> list[TableRow]:
    english = sources.locale("en")
    lines = []
    for code in TRANSLATIONS:
        other = sources.locale(code)
        language = english.languages[code]
        known = sorted(sources.countries.values(), key=lambda country: -country.raw["population"])
        for country in known[:70]:
            name = other.territories[country.code]
            if (
                fold(name) != fold(english.territories[country.code])
                and PLAIN_NAME.match(_capital(name))
                and not country.name.startswith("the ")
            ):
                lines.append(fact_row(language, country.name, name))
        if code in MONTHS_AND_DAYS:
            for kind in ("months", "days"):
                for number, name in sorted(getattr(english, kind)["stand-alone"]["wide"].items()):
                    word = getattr(other, kind)["stand-alone"]["wide"][number]
                    if fold(word) != fold(name):
                        lines.append(fact_row(language, name, word))
    rng = random.Random("translation")
    return sorted(
        rng.sample(lines, CITY_FACTS), key=lambda line: (line["relation"], line["subject"])
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _larger_than() -> list[TableRow]:
    rng = random.Random("larger_than")
    pairs = rng.sample(
        [(high, low) for high in range(2, 100) for low in range(1, high)], CITY_FACTS
    )
    return [fact_row("larger", number_words(high), number_words(low)) for high, low in pairs]


def number_words(number: int) -> str:
    """A number from 0 to 99 in English words."""
    if number < 20:
        return UNITS[number]
    return TENS[number // 10 - 2] + (f"-{UNITS[number % 10]}" if number % 10 else "")


def pairs(built: dict[str, list[TableRow]]) -> Iterator[tuple[str, str]]:
    """Every subject with every correct answer, as `statements.known_pairs`, of new tables."""
    for lines in built.values():
        for line in lines:
            for key in ("answer", "aliases", "accepted"):
                yield from (
                    (without_article(line["subject"]), without_article(name))
                    for name in line[key].split("|")
                    if name
                )
