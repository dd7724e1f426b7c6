"""Rebuild the shipped training text: WordNet's glosses, and attributes of held-out subjects."""

import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ghosttrack.errors import UserError
from ghosttrack.facts.fact_sources import SourceData, TableRow
from ghosttrack.facts.fact_tables import PLAIN_NAME, known_cities
from ghosttrack.facts.fact_text import PairFinder
from ghosttrack.facts.statements import fold
from ghosttrack.runtime.files import atomic_write

PARTS = ("noun", "verb", "adj", "adv")
PLACES, COUNTIES, KINDS = 1600, 1100, 3000
PLACES_PER_COUNTRY = 60
# WordNet's lexicographer files with concrete nouns: animals, artefacts, body parts, food, plants
# and substances.
CONCRETE = {"05", "06", "08", "13", "20", "27"}
STATEMENT_COLUMNS = {
    "places": ("name", "country", "population", "timezone"),
    "us_counties": ("name", "state"),
    "kinds": ("name", "kind"),
    "countries": ("name", "area", "population", "phone", "domain", "code"),
    "elements": ("name", "mass"),
}


def attributes(
    sources: SourceData, wordnet: Path, evaluated: set[str]
) -> dict[str, list[TableRow]]:
    """Tables of subjects that no data set evaluates, and of attributes that no data set asks for.

    Args:
        sources: the content of the source packages.
        wordnet: directory with WordNet 3.0's data files.
        evaluated: subjects of the fact tables, as `statements.fold` returns them.
    """
    return {
        "places": _places(sources, evaluated),
        "us_counties": _counties(sources),
        "kinds": _kinds(wordnet),
        "countries": [
            {
                "name": country.name,
                "area": f"{round(country.raw['areakm2']):,}",
                "population": _rounded(country.raw["population"]),
                "phone": f"+{country.raw['phone'].lstrip('+').split(' and ')[0]}",
                "domain": country.raw["tld"],
                "code": country.code,
            }
            for country in sources.countries.values()
        ],
        "elements": [
            {"name": name, "mass": f"{mass:.2f}"} for _, name, _, mass in sources.elements
        ],
    }


def _rounded(number: int) -> str:
    """Two significant digits, with commas between thousands."""
    digits = len(str(number)) - 2
    return f"{round(number, -digits) if digits > 0 else number:,}"


def _places(sources: SourceData, evaluated: set[str]) -> list[TableRow]:
    lines: list[TableRow] = []
    per_country: Counter[str] = Counter()
    for city in known_cities(sources):
        if (
            fold(city.name) in evaluated
            or per_country[city.country] >= PLACES_PER_COUNTRY
            or len(lines) >= PLACES
        ):
            continue
        per_country[city.country] += 1
        lines.append(
            {
                "name": city.name,
                "country": sources.countries[city.country].name,
                "population": _rounded(city.population),
                "timezone": city.timezone,
            }
        )
    return lines


def _counties(sources: SourceData) -> list[TableRow]:
    counts = Counter(name for name, _ in sources.counties)
    lines = [
        {"name": name, "state": sources.states[state]}
        for name, state in sources.counties
        if counts[name] == 1 and state in sources.states and PLAIN_NAME.match(name)
    ]
    return lines[:: max(1, len(lines) // COUNTIES)]


def _kinds(wordnet: Path) -> list[TableRow]:
    """Simple nouns with their hypernyms, at even intervals from the files of concrete nouns."""
    entries = {entry.offset: entry for entry in synsets(wordnet, "noun")}
    lines = []
    seen = set()
    for entry in entries.values():
        hypernym = entries.get(entry.hypernym)
        if hypernym is None or entry.file not in CONCRETE or entry.word in seen:
            continue
        if re.fullmatch(r"[a-z]{3,14}", entry.word) and re.fullmatch(
            r"[a-z]{3,12}( [a-z]{3,12})?", hypernym.word
        ):
            seen.add(entry.word)
            lines.append({"name": entry.word, "kind": hypernym.word})
    return lines[:: max(1, len(lines) // KINDS)]


class Synset:
    """One line of a WordNet data file: first word, offset of the hypernym, gloss."""

    def __init__(self, line: str) -> None:
        data, self.gloss = (part.strip() for part in line.split(" | ", 1))
        fields = data.split(" ")
        self.offset, self.file = fields[0], fields[1]
        self.word = re.sub(r"\((a|p|ip)\)$", "", fields[4]).replace("_", " ")
        self.hypernym = next(
            (fields[at + 1] for at, field in enumerate(fields) if field == "@" and at > 4), ""
        )


def synsets(wordnet: Path, part: str) -> Iterator[Synset]:
    """Entries of one part of speech, in file order.

    Raises:
        UserError: the file is missing.
    """
    path = wordnet / f"data.{part}"
    if not path.exists():
        raise UserError(
            f"{path} is missing: set wordnet to the directory with WordNet 3.0's data files "
            "(Debian: package wordnet-base, /usr/share/wordnet)"
        )
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if not line.startswith("  "):  # the licence at the top is indented
                yield Synset(line)


def gloss_documents(wordnet: Path, finder: PairFinder) -> Iterator[str]:
    """`word: definition. Example. Example.`, without repeats and without evaluated pairs."""
    seen = set()
    for part in PARTS:
        for entry in synsets(wordnet, part):
            pieces = [
                piece.strip() for piece in re.split(r';\s*(?=")', entry.gloss) if piece.strip()
            ]
            sentences = [_sentence(piece.strip('" ')) for piece in pieces[1:]]
            document = " ".join([f"{entry.word}: {_with_end_mark(pieces[0].strip())}", *sentences])
            if document not in seen and finder.find(document) is None:
                seen.add(document)
                yield document


def _sentence(text: str) -> str:
    return _with_end_mark(text[:1].upper() + text[1:])


def _with_end_mark(text: str) -> str:
    text = text.rstrip(" ;,:")
    return text if text.endswith((".", "!", "?", '"')) else f"{text}."


def write_corpus(path: Path, documents: Iterable[str]) -> None:
    """Write one document per line, compressed with xz; the same documents give the same bytes."""
    text = "".join(f"{document}\n" for document in documents)
    with atomic_write(path, "wb") as stream:
        stream.write(
            lzma.compress(text.encode(), format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
        )
