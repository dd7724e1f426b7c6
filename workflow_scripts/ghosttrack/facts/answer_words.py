"""The words by which answers are compared: plain letters, numbers as digits, dates in one form."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

Words = tuple[str, ...]

# Letters that Unicode does not decompose into a base letter and an accent: l, d and h with stroke,
# eth, o with slash, dotless i, thorn, ligatures.
PLAIN_LETTERS = str.maketrans("\u0142\u0111\u0127\u00f0\u00f8\u0131", "ldhdoi") | {
    0xFE: "th",
    0xE6: "ae",
    0x153: "oe",
}
# Vowel signs and other marks that make another word, as in Hindi, Thai and Japanese.
MARKS = "".join(
    chr(code)
    for code in (*range(0x900, 0x1D00), *range(0xA800, 0xAC00), 0x3099, 0x309A)
    if unicodedata.category(chr(code))[0] == "M"
)
# Scripts without spaces between words, of which every letter is compared as a word: Han, Hiragana,
# Thai, Lao, Burmese, Khmer.
UNSPACED = (
    r"\u3005-\u3007\u3041-\u3096\u3400-\u9fff\U00020000-\U0003ffff"
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_LETTER = r"[^\W\d_]"
_TOKEN = re.compile(
    # A minus sign belongs to the number unless it is a hyphen: carbon-14.
    r"\d+(?:st|nd|rd|th)(?!\w)|(?:(?<![\w-])[-\u2212])?\d+(?:\.\d+)?"
    rf"|(?={_LETTER})[{UNSPACED}][{MARKS}]*"
    # + and # after a letter are part of the word: C++, C#, A+.
    rf"|{_LETTER}(?:(?![{UNSPACED}]){_LETTER}|[{MARKS}])*(?:[+#]+(?!\w))?"
)
# These apostrophes do not divide a word: N'Djamena, Ndjamena, Nuku\u02bbalofa.
APOSTROPHES = "'\u2018\u2019\u02bb\u02bc`\u00b4\u2032"
# Spaces that separate groups of digits: no-break, thin, narrow no-break.
DIGIT_SPACES = "\u00a0\u2009\u202f"
ARTICLES = frozenset(("the", "a", "an"))
# Dropped from answer and gold answer: Kuwait City matches Kuwait.
GENERIC_ENDINGS = frozenset(("city",))
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
SHORT_MONTHS = {month[:3]: month for month in MONTHS if month != "may"} | {"sept": "september"}
UNITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = {word: value for value, word in enumerate(UNITS)} | {
    word: 10 * digit for digit, word in enumerate(TENS, 2)
}
ORDINALS = {
    word: value
    for value, word in enumerate(
        (
            "first",
            "second",
            "third",
            "fourth",
            "fifth",
            "sixth",
            "seventh",
            "eighth",
            "ninth",
            "tenth",
            "eleventh",
            "twelfth",
            *(f"{unit}th" for unit in UNITS[13:]),
        ),
        1,
    )
} | {f"{word.removesuffix('y')}ieth": NUMBERS[word] for word in TENS}
# Roman numerals of two letters or more: World War II, Henry VIII. They become digits wherever they
# are, also in a name (Xi Jinping): a gold answer inside an answer has the same words as alone.
ROMAN = {
    tens + unit: str(10 * ten + value)
    for ten, tens in enumerate(("", "x", "xx", "xxx"))
    for value, unit in enumerate(("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"))
    if len(tens + unit) > 1
}
# Roman numerals after another word: an answer may say `the Second`, or 5 for V.
_REGNAL = re.compile(r"(?<=\w\s)[IVX]+(?![\w'\u2019])")
_SHORT_ROMAN = {"1": "i", "5": "v", "10": "x"}
NEGATIVE = ("minus", "negative")
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}


@functools.lru_cache(maxsize=65_536)
def normalise(text: str) -> Words:
    """The words by which answers are compared.

    They are in NFKC and lower case, without accents, punctuation and articles. Scripts without
    spaces between words, such as Chinese and Thai, are compared by letters. Numbers become
    digits (`two`, `II`), and ordinals digits with `th` (`second`, `2nd`), or without in a date
    (`July 4th` = `July 4`, `4th of July` = `4 July`). `Saint` becomes `st`, and `Dec` `december`.
    `percent` after a number, and `City` at the end of a longer name, are dropped (`Kuwait City` =
    `Kuwait`). `WWII` and `Second World War` become `world war 2`.
    """
    plain = tokens(text)
    # The last word is not an article: Vitamin A, Plan A, or the answer "A".
    words = [word for word in plain[:-1] if word not in ARTICLES] + list(plain[-1:])
    words = ["st" if word == "saint" else SHORT_MONTHS.get(word, word) for word in words]
    if len(words) > 1 and words[-1] in GENERIC_ENDINGS:
        words.pop()
    return tuple(_dates(_wars(_digits(_roman(_without_percent(words))))))


def tokens(text: str) -> Words:
    """The words of a text in plain lower-case letters, with articles; numbers as they are written."""
    plain = re.sub(rf"(?<=\d)[{DIGIT_SPACES}](?=\d{{3}}(?!\d))", "", text)  # 3 500
    plain = unicodedata.normalize("NFKC", plain).casefold()
    plain = "".join(char for char in unicodedata.normalize("NFKD", plain) if not _is_accent(char))
    plain = plain.translate(PLAIN_LETTERS)
    plain = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)  # 1,000 and 1,000km
    plain = re.sub(rf"(?<=[^\W\d_])[{APOSTROPHES}](?=[^\W\d_])", "", plain)
    plain = plain.translate(dict.fromkeys(map(ord, APOSTROPHES), " "))
    plain = re.sub(r"\b([a-z])\.(?=[a-z]\b)", r"\1", plain)  # u.s. -> us
    plain = plain.replace("&", " and ")
    return tuple(_canonical(word.replace("\u2212", "-")) for word in _TOKEN.findall(plain))


def _is_accent(char: str) -> bool:
    """Whether a mark leaves the word the same: accents, and the points of Hebrew and Arabic."""
    kind = unicodedata.combining(char)
    return kind in (1, 7) or 10 <= kind <= 36 or kind >= 200


def _canonical(word: str) -> str:
    """A number without redundant zeros: 22.0 -> 22, 007 -> 7; other words are unchanged."""
    match = re.fullmatch(r"(-?)0*(\d+)(?:\.(\d*?)0*)?", word)
    if not match:
        return word
    sign, whole, part = match.groups()
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def _without_percent(words: Sequence[str]) -> list[str]:
    """Drop `percent` and `per cent` after a number, as the sign % is dropped."""
    result: list[str] = []
    for word in words:
        if word == "cent" and result[-1:] == ["per"]:
            result.pop()
            word = "percent"
        if word == "percent" and result and _is_number(result[-1]):
            continue
        result.append(word)
    return result


def _is_number(word: str) -> bool:
    return word[-1].isdecimal() or word in NUMBERS or word in SCALES


def _roman(words: Sequence[str]) -> list[str]:
    """Replace Roman numerals by digits: `world war ii` -> `world war 2`."""
    return [
        "1" if word == "i" and words[max(at - 1, 0)] == "war" else ROMAN.get(word, word)
        for at, word in enumerate(words)
    ]


def _digits(words: Sequence[str]) -> list[str]:
    """Replace number words by digits: `one hundred and five` -> `105`, `minus six` -> `-6`.

    A scale multiplies the digits before it: `2.5 million` -> `2500000`. Ordinals get one ending:
    `twenty-first` and `21st` -> `21th`.
    """
    result: list[str] = []
    position = 0
    while position < len(words):
        end, value = _number(words, position)
        before = words[end - 1] if end > position else ""
        ordinal = ORDINALS.get(words[end], 0) if end < len(words) else 0
        if ordinal and (before in ("", "hundred", "and") or (before in TENS and ordinal < 10)):
            result.append(f"{value + ordinal}th")
            position = end + 1
        elif figure := re.fullmatch(r"(\d+)(?:st|nd|rd|th)", words[position]):
            result.append(f"{int(figure[1])}th")
            position += 1
        elif end > position:
            result.append(str(value))
            position = end
        elif re.fullmatch(r"-?\d+(\.\d+)?", words[position]):
            number = Decimal(words[position])
            while position + 1 < len(words) and words[position + 1] in SCALES:
                position += 1
                number *= SCALES[words[position]]
            result.append(_canonical(f"{number:f}"))
            position += 1
        else:
            result.append(words[position])
            position += 1
        if len(result) > 1 and result[-2] in NEGATIVE and result[-1].replace(".", "").isdecimal():
            result[-2:] = [f"-{result[-1]}"]
    return result


def _wars(words: Sequence[str]) -> list[str]:
    """Give the world wars one form: `wwii`, `ww 2` and `2th world war` -> `world war 2`."""
    text = re.sub(r"\bww ?(i{1,3})\b", lambda war: f"ww {len(war[1])}", " ".join(words))
    return re.sub(r"\b(?:ww ?([1-3])|([1-3])th world war)\b", r"world war \1\2", text).split()


def _dates(words: Sequence[str]) -> list[str]:
    """The words with dates in one form: `july 4th` -> `july 4`, `march of 1999` -> `march 1999`."""
    result: list[str] = []
    for at, word in enumerate(words):
        day = re.fullmatch(r"(\d+)th", word)
        if day and (any(before in MONTHS for before in result[-1:]) or _month_follows(words, at)):
            word = day[1]
        beside = [*result[-1:], *words[at + 1 : at + 2]]
        dated = any(near in MONTHS for near in beside) and any(map(str.isdecimal, beside))
        if word != "of" or not dated:
            result.append(word)
    return result


def _month_follows(words: Sequence[str], at: int) -> bool:
    after = at + 2 if list(words[at + 1 : at + 2]) == ["of"] else at + 1
    return any(word in MONTHS for word in words[after : after + 1])


def _number(words: Sequence[str], start: int) -> tuple[int, int]:
    """End and value of the number in words that begins at `start`.

    The end is `start` if there is none.
    """
    # `limit`: the next number word must be below it.
    total, current, position, limit = 0, 0, start, 100
    while position < len(words):
        word = words[position]
        if word in NUMBERS and NUMBERS[word] < limit:
            current += NUMBERS[word]
            # After twenty only a unit can follow; after a unit or a teen, only a scale.
            limit = 10 if NUMBERS[word] >= 20 else 0
        # `position == start`: "a hundred", whose article has been removed.
        elif word == "hundred" and (0 < current < 100 or position == start):
            current, limit = max(current, 1) * SCALES[word], 100
        elif word in SCALES and word != "hundred" and (current or position == start):
            total, current, limit = total + max(current, 1) * SCALES[word], 0, 100
        elif (
            word == "and"
            and limit == 100
            and position > start
            and position + 1 < len(words)
            and (words[position + 1] in NUMBERS or words[position + 1] in ORDINALS)
        ):
            pass
        else:
            break
        position += 1
    return position, total + current


@functools.lru_cache(maxsize=65_536)
def forms(name: str) -> frozenset[Words]:
    """The words of a gold answer, and of a date in the other order; none if it has no word.

    A lone ordinal is also the day of a date: `4th` is in `July 4th`, which is `july 4`. The number
    after a name is also an ordinal: `Elizabeth II` is `Elizabeth the Second`. A Roman numeral of one
    letter is also a number: `Article V` is `Article 5`.
    """
    words = normalise(name)
    found = {words} if words else set()
    if _REGNAL.search(name):
        found |= {normalise(_in_digits(name, ending)) for ending in ("", "th")}
    said = re.search(r"(?i)\w\s+the\s+\S+\s*$", name)
    if said and (last := re.fullmatch(r"(\d+)th", words[-1])):
        found |= {(*words[:-1], last[1]), (*words[:-1], _SHORT_ROMAN.get(last[1], last[1]))}
    months = [word in MONTHS for word in words]
    rest = [word for word, month in zip(words, months, strict=True) if not month]
    named = months[:2].count(True) == 1 and not any(months[2:])
    if len(words) in (2, 3) and named and all(map(str.isdecimal, rest)):
        found.add((words[1], words[0], *words[2:]))
    if len(words) == 1 and (day := re.fullmatch(r"(\d+)th", words[0])):
        found |= {(month, day[1]) for month in MONTHS} | {(day[1], month) for month in MONTHS}
    return frozenset(found)


def _in_digits(name: str, ending: str) -> str:
    numbers = {letter: number for number, letter in _SHORT_ROMAN.items()} | ROMAN

    def number(numeral: re.Match[str]) -> str:
        found = numbers.get(numeral[0].lower())
        return f"{found}{ending}" if found else numeral[0]

    return _REGNAL.sub(number, name)
