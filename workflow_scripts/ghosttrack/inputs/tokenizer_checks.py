"""Checks of a tokenizer before anything is extracted with it.

Every later step takes three things for granted. The stored tokenizer gives the token ids that its model was
trained on. Its character offsets point at the text. Each id that a text can produce has a row in the
embedding. `check` compares a tokenizer with its source on a fixed set of probing strings.
"""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.models import first_line, separator

_SENTENCE = "The capital of France is Paris."
PROBES: tuple[str, ...] = (
    "",
    "a",
    _SENTENCE,
    "Ångström, naïve café, Straße, ŁÓDŹ, İstanbul, ﬁnal ﬂow",
    "Съешь же ещё этих мягких французских булок",
    "Ἡ ταχεῖα ἀλώπηξ, η γρήγορη αλεπού",
    "نص حكيم له سر قاطع وذو شأن عظيم ١٢٣",
    "דג סקרן שט בים מאוכזב, שָׁלוֹם",
    "सभी मनुष्यों को गौरव और अधिकार १२३",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "人人生而自由,在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由、ﾊﾝｶｸ",
    "모든 인간은 태어날 때부터 자유로우며",
    "0 7 42 365 1024 65535 1234567890 3.14159 1,000,000 -5e-10 ½ ²",
    "99999999999999999999999999999999",
    "a b  c   d    e        f                g",
    "\tone\t\ttwo\t\t\tthree",
    "one\ntwo\n\nthree\n\n\n\nfour\r\nfive",
    " leading",
    "trailing ",
    "  both  ",
    " ",
    "    ",
    "\n",
    "no\u00a0break\u2003em\u3000wide",
    "cafe\u0301 nai\u0308ve e\u0301\u0323",
    "👩🏽\u200d🔬 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇫🇷 👍🏿 ☺️",
    'def f(x):\n    return {\'a\': x[0] != 1, "b": f"{x:>8}"}  # why?\n',
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; } // done\n\n}\n",
    "https://example.org/a_b?c=d&e=%20#f user@example.org C:\\tmp\\x",
    "!?.,;:'\"()[]{}<>@#$%^&*-_=+|\\/~`… — \u2013 “quoted” \u2018it\u2019s\u2019 «oui» ¿qué?",
    "don't I'll we've THEY'RE DON'T O'Neil",
    "SHOUTING CamelCaseWords snake_case_words kebab-case x1y2z3",
    "¡ÿþ \u0080\u009f \u007f",
    "\u200b\ufeff\u2060 \ufffd",
    "\U0001d518\U0001d52b\U0001d526\U0001d520\U0001d52c\U0001d521\U0001d522 \U0001d7d9\U0001d7da\U0001d7db Ⅷ ㎏ ①",
    "▁ ▁a Ġ Ġa Ċ ##a @@ </w> <0x41>",
    "internationalisation antidisestablishmentarianism pneumonoultramicroscopic",
)
# Special and added tokens whose names are probed; a vocabulary may reserve thousands that differ by a number only.
_NAMES = 64
# Ids shown in an error.
_SHOWN = 8
# Files other than tokenizer.json from which a class of transformers builds its tokenizer.
_VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",))


class _Reading(NamedTuple):
    """The ids that one tokenizer gives for each probe; `raw`: read from tokenizer.json without transformers."""

    name: str
    ids: list[list[int]]
    raw: bool


def check(
    stored: Any,
    directory: Path,
    *,
    rows: int,
    name: str,
    reference: Any = None,
    source: Path | None = None,
) -> None:
    """Refuse a tokenizer that differs from its source or that does not fit its model.

    Args:
        stored: fast tokenizer, loaded from `directory`.
        directory: the fetched model; holds tokenizer.json.
        rows: rows of the model's embedding.
        name: the source, as errors name it.
        reference: tokenizer that transformers loads from the source; None: the source has no files of its own.
        source: directory of the source; its tokenizer.json, if there is one, is compared too.
    Raises:
        UserError: naming the probing string or the token that fails, what was found, and a remedy.
    """
    probes = [*PROBES, *_named_probes(stored)]
    raw = _raw_tokenizers(directory, source, name)
    remedy = _remedy(source)
    read = _read_raw(raw, probes, name, remedy)
    coded = _encode(stored, probes, name, remedy)
    ids: list[list[int]] = coded["input_ids"]
    if reference is not None:
        found = _encode(reference, probes, name, remedy)["input_ids"]
        read.insert(0, _Reading(f"{type(reference).__name__} of transformers", found, raw=False))
    stored_reading = _Reading(f"the stored {type(stored).__name__}", ids, raw=False)
    _require_same_ids(
        probes, [stored_reading, *read], _disputed(stored, raw.values()), name, remedy
    )
    for title, tokenizer in raw.items():
        _require_same_vocabulary(stored, title, tokenizer, name, remedy)
    _require_known_words(stored, ids[probes.index(_SENTENCE)], name)
    _require_within_embedding(stored, rows, name)
    _require_separator_once(stored, probes, ids, name)
    _require_offsets(stored, probes, coded["offset_mapping"], name)


def _encode(tokenizer: Any, probes: Sequence[str], name: str, remedy: str) -> Any:
    """Ids and offsets as every later job asks for them: no special token added, none recognised in the text."""
    try:
        return tokenizer(
            list(probes),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
    except Exception as error:  # `tokenizers` raises a plain Exception
        raise UserError(
            f"{name}: {type(tokenizer).__name__} of transformers cannot tokenize every text ({first_line(error)}), "
            f"but tokenizer.json can; {remedy}"
        ) from error


def _read_raw(
    raw: Mapping[str, Any], probes: Sequence[str], name: str, remedy: str
) -> list[_Reading]:
    """What each tokenizer.json gives for the probes, that of the source first.

    A class of transformers made the stored one; a fault that the source does not have is that of the class.
    """
    read: list[_Reading] = []
    for title, tokenizer in raw.items():
        advice = (
            remedy
            if read
            else "set unk_token in the model part of tokenizer.json to a token of its vocabulary"
        )
        read.append(_Reading(title, _encode_raw(title, tokenizer, probes, name, advice), raw=True))
    return read


def _encode_raw(
    title: str, tokenizer: Any, probes: Sequence[str], name: str, remedy: str
) -> list[list[int]]:
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        return [one.ids for one in tokenizer.encode_batch(list(probes), add_special_tokens=False)]
    except Exception as error:  # e.g. a vocabulary without an unknown token
        raise UserError(
            f"{name}: {title} cannot tokenize every text ({first_line(error)}); {remedy}"
        ) from error


def _raw_tokenizers(directory: Path, source: Path | None, name: str) -> dict[str, Any]:
    """The tokenizer.json of the source and the stored one, by their titles in errors."""
    places = {"the stored tokenizer.json": directory}
    if source and (source / "tokenizer.json").is_file():
        places = {"its tokenizer.json": source, **places}
    return {title: raw_tokenizer(place / "tokenizer.json", name) for title, place in places.items()}


def raw_tokenizer(path: Path, name: str) -> Any:
    """The tokenizer of a tokenizer.json, without transformers.

    Raises:
        UserError: the file cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise UserError(
            f"{name}: tokenizer.json cannot be read ({first_line(error)}); expected a file of the tokenizers library: "
            "get it anew, or save the tokenizer again with save_pretrained"
        ) from error


def _special(tokenizer: Any) -> dict[str, int]:
    """Special tokens with their ids, those that a text may need (bos, eos) first."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return {**named, **added}


def _unknown(tokenizer: Any) -> set[int]:
    """Ids that stand for unknown text: of the unk_token of transformers and of the model part of tokenizer.json."""
    backend = tokenizer.backend_tokenizer
    if type(backend.model).__name__ == "Unigram":  # has no attribute for it
        own = json.loads(backend.to_str())["model"]["unk_id"]
    else:
        name = getattr(backend.model, "unk_token", None)
        own = backend.token_to_id(name) if name else None
    return {number for number in (tokenizer.unk_token_id, own) if number is not None}


def _named_probes(tokenizer: Any) -> Iterator[str]:
    """Texts that contain the name of a special or an added token, alone and inside other text."""
    special = _special(tokenizer)
    added = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content not in special
    ]
    for token in [*list(special)[:_NAMES], *added[:_NAMES]]:
        yield token
        yield f"a{token}b"
        yield f"one {token} two"


def _disputed(tokenizer: Any, raw: Iterable[Any]) -> set[str]:
    """Added tokens that transformers treats as special and a tokenizer.json does not.

    tokenizer_config.json decides there, so texts with their names are not compared with tokenizer.json.
    """
    special = _special(tokenizer)
    added = (token for one in raw for token in one.get_added_tokens_decoder().values())
    return {token.content for token in added if not token.special and token.content in special}


def _remedy(source: Path | None) -> str:
    place = "tokenizer_config.json" if source else "the tokenizer_config.json of a local copy"
    trusted = f'to use tokenizer.json as it is, set "tokenizer_class": "PreTrainedTokenizerFast" in {place}'
    for names in _VOCABULARIES:
        if source and all((source / name).is_file() for name in names):
            return f"{trusted}; to use {' and '.join(names)}, delete tokenizer.json"
    return trusted


def _require_same_ids(
    probes: Sequence[str], readings: Sequence[_Reading], disputed: set[str], name: str, remedy: str
) -> None:
    first, *others = readings
    for number, probe in enumerate(probes):
        unclear = any(token in probe for token in disputed)
        for other in others:
            if first.ids[number] != other.ids[number] and not (unclear and other.raw):
                raise UserError(
                    f"{name}: two forms of its tokenizer disagree on {probe!r}: {first.name} gives "
                    f"{_short(first.ids[number])}, {other.name} gives {_short(other.ids[number])}; {remedy}"
                )


def _short(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN]))
    return f"{len(ids)} ids [{shown}{', ...' if len(ids) > _SHOWN else ''}]"


def _require_same_vocabulary(stored: Any, title: str, raw: Any, name: str, remedy: str) -> None:
    """Every token of tokenizer.json has the same id in the stored tokenizer, which may know more special tokens."""
    known = stored.get_vocab()
    for token, number in raw.get_vocab(with_added_tokens=True).items():
        if known.get(token) != number:
            found = f"id {known[token]}" if token in known else "no id"
            raise UserError(
                f"{name}: two forms of its tokenizer disagree on the token {token!r}: the stored "
                f"{type(stored).__name__} gives {found}, {title} gives id {number}; {remedy}"
            )


def _require_known_words(tokenizer: Any, ids: Sequence[int], name: str) -> None:
    """Some loaders make an empty tokenizer out of a missing file; some models come with somebody else's."""
    if set(ids) <= _unknown(tokenizer):
        raise UserError(
            f"{name}: its tokenizer does not know one word of a plain sentence ({_SENTENCE!r} becomes {_short(ids)}); "
            "put the right tokenizer.json beside the weights"
        )


def _require_within_embedding(tokenizer: Any, rows: int, name: str) -> None:
    """Each id that a text or a separator can produce has a row in the embedding.

    A special token that is not in the model part of the tokenizer is never produced from text
    (split_special_tokens), so that it may lie beyond the embedding if nothing else uses it.
    """
    model_part = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, *_unknown(tokenizer)}
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = _special(tokenizer)
    refused = {
        token: number
        for token, number in beyond.items()
        if token not in special or token in model_part or number in used
    }
    if refused:
        token = min(refused, key=refused.__getitem__)
        others = f" ({len(refused)} such tokens)" if len(refused) > 1 else ""
        raise UserError(
            f"{name}: the token {token!r} has the id {refused[token]}, but the embedding has {rows} rows (ids below "
            f"{rows}){others}; call resize_token_embeddings and save the model again, or remove the token from "
            "tokenizer.json and tokenizer_config.json"
        )


def _require_separator_once(
    tokenizer: Any, probes: Sequence[str], ids: Sequence[Sequence[int]], name: str
) -> None:
    """No text produces the separator or eos, and the tokenizer puts no special token around a text by itself."""
    reserved = {separator(tokenizer), tokenizer.eos_token_id}
    unknown = _unknown(tokenizer)
    special = {
        number: token for token, number in _special(tokenizer).items() if number not in unknown
    }
    for probe, found in zip(probes, ids, strict=True):
        if inside := reserved.intersection(found):
            token = tokenizer.convert_ids_to_tokens(min(inside))
            raise UserError(
                f"{name}: the text {probe!r} gives the special token {token!r} (id {min(inside)}), which must only "
                f"separate texts; {_separator_remedy(tokenizer, token, probe)}"
            )
        for number in {*found[:1], *found[-1:]} & special.keys():
            if special[number] not in probe:
                raise UserError(
                    f"{name}: the tokenizer puts {special[number]!r} (id {number}) around {probe!r} although no special "
                    "tokens were asked for; remove it from the normalizer and pre_tokenizer of tokenizer.json"
                )


def _separator_remedy(tokenizer: Any, token: str, probe: str) -> str:
    if token not in probe:
        return "name another bos_token and eos_token in tokenizer_config.json, not one that stands for unknown text"
    if type(tokenizer.backend_tokenizer.model).__name__ == "Unigram":
        return (
            f"give {token!r} a score far below all others (-1000000) in the vocab of tokenizer.json"
        )
    return f"add a pre_tokenizer to tokenizer.json that splits {token!r}, such as Punctuation"


def _require_offsets(
    tokenizer: Any, probes: Sequence[str], offsets: Sequence[Any], name: str
) -> None:
    """Offsets lie inside the text, never go back, and cover every character that is not white space."""
    normalized = tokenizer.backend_tokenizer.normalizer is not None
    for probe, ranges in zip(probes, offsets, strict=True):
        fault = _misplaced(probe, ranges) or _uncovered(probe, ranges, normalized)
        if fault:
            raise UserError(
                f"{name}: the character offsets of its tokenizer do not point at the text {probe!r}: {fault}; activations "
                "are located by offsets: correct normalizer, pre_tokenizer or unk_token in tokenizer.json, or use a model "
                "with another tokenizer"
            )


def _misplaced(text: str, ranges: Sequence[tuple[int, int]]) -> str | None:
    before = (0, 0)
    for number, (start, end) in enumerate(ranges):
        if not 0 <= start <= end <= len(text):
            return (
                f"token {number} has the range {start}..{end} in a text of {len(text)} characters"
            )
        if start < before[0] or end < before[1]:
            return f"token {number} has the range {start}..{end} after {before[0]}..{before[1]}"
        before = (start, end)
    return None


def _uncovered(text: str, ranges: Sequence[tuple[int, int]], normalized: bool) -> str | None:
    covered = {place for start, end in ranges for place in range(start, end)}
    for place, letter in enumerate(text):
        if (
            place not in covered
            and not letter.isspace()
            and not (normalized and _removable(letter))
        ):
            return f"no token covers the character {letter!r} at {place}"
    return None


def _removable(letter: str) -> bool:
    """Whether a normalizer may take a character out: combining marks (joined or stripped), control and format characters."""
    return unicodedata.category(letter)[0] in "MC" or letter == "\ufffd"
