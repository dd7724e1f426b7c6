"""Checks of a tokenizer before it is used.

Every later step relies on three properties. The stored tokenizer gives the token ids with which its
model was trained. Its character offsets are correct. Each id that a text can produce has a row in
the embedding. `check` compares a tokenizer with its source on a fixed set of probe strings.
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
    "\U0001d518\U0001d52b\U0001d526\U0001d520\U0001d52c\U0001d521\U0001d522 "
    "\U0001d7d9\U0001d7da\U0001d7db Ⅷ ㎏ ①",
    "▁ ▁a Ġ Ġa Ċ ##a @@ </w> <0x41>",
    "internationalisation antidisestablishmentarianism pneumonoultramicroscopic",
)
# Maximum numbers of special and of added tokens to probe; a vocabulary may have thousands.
_NAMES = 64
# Ids shown in an error.
_SHOWN = 8
# Vocabulary files from which transformers can build a tokenizer without tokenizer.json.
_VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",))


class _ProbeIds(NamedTuple):
    """The ids of every probe from one tokenizer; `raw`: tokenizer.json without transformers."""

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
    """Check that a tokenizer agrees with its source and fits its model.

    Args:
        stored: fast tokenizer, loaded from `directory`.
        directory: the fetched model; holds tokenizer.json.
        rows: rows of the model's embedding.
        name: the source, for errors.
        reference: tokenizer that transformers loads from the source; None: the source has no files.
        source: directory of the source; its tokenizer.json is also compared, if it exists.
    Raises:
        UserError: naming the probe or the token that fails, the result, and a remedy.
    """
    probes = [*PROBES, *_named_probes(stored)]
    raw = _raw_tokenizers(directory, source, name)
    remedy = _remedy(source)
    readings = _read_raw(raw, probes, name, remedy)
    coded = _encode(stored, probes, name, remedy)
    ids: list[list[int]] = coded["input_ids"]
    if reference is not None:
        reference_ids = _encode(reference, probes, name, remedy)["input_ids"]
        readings.insert(
            0, _ProbeIds(f"{type(reference).__name__} of transformers", reference_ids, raw=False)
        )
    stored_reading = _ProbeIds(f"the stored {type(stored).__name__}", ids, raw=False)
    _require_same_ids(
        probes, [stored_reading, *readings], _disputed(stored, raw.values()), name, remedy
    )
    for title, tokenizer in raw.items():
        _require_same_vocabulary(stored, title, tokenizer, name, remedy)
    _require_known_words(stored, ids[probes.index(_SENTENCE)], name)
    _require_within_embedding(stored, rows, name)
    _require_separator_once(stored, probes, ids, name)
    _require_offsets(stored, probes, coded["offset_mapping"], name)


def _encode(tokenizer: Any, probes: Sequence[str], name: str, remedy: str) -> Any:
    """Ids and offsets as in later jobs: no special token is added or recognised."""
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
            f"{name}: {type(tokenizer).__name__} of transformers cannot tokenize every text "
            f"({first_line(error)}), but tokenizer.json can; {remedy}"
        ) from error


def _read_raw(
    raw: Mapping[str, Any], probes: Sequence[str], name: str, remedy: str
) -> list[_ProbeIds]:
    """The ids of every probe from each tokenizer.json, that of the source first.

    transformers wrote the stored one, so a fault that the source does not have comes from
    transformers.
    """
    readings: list[_ProbeIds] = []
    for title, tokenizer in raw.items():
        advice = (
            remedy
            if readings
            else "set unk_token in the model part of tokenizer.json to a token of its vocabulary"
        )
        ids = _encode_raw(title, tokenizer, probes, name, advice)
        readings.append(_ProbeIds(title, ids, raw=True))
    return readings


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
    """The tokenizers in the tokenizer.json files, by their names in errors."""
    directories = {"the stored tokenizer.json": directory}
    if source and (source / "tokenizer.json").is_file():
        directories = {"its tokenizer.json": source, **directories}
    return {
        title: raw_tokenizer(folder / "tokenizer.json", name)
        for title, folder in directories.items()
    }


def raw_tokenizer(path: Path, name: str) -> Any:
    """The tokenizer in a tokenizer.json, loaded without transformers.

    Raises:
        UserError: the file cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise UserError(
            f"{name}: tokenizer.json cannot be read ({first_line(error)}); expected a file of the "
            "tokenizers library: download it again, or save the tokenizer again with "
            "save_pretrained"
        ) from error


def _special(tokenizer: Any) -> dict[str, int]:
    """Special tokens with their ids; bos, eos and other named tokens come first."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return {**named, **added}


def _unknown(tokenizer: Any) -> set[int]:
    """Ids of unknown text: unk_token of transformers, and of the model part of tokenizer.json."""
    backend = tokenizer.backend_tokenizer
    if type(backend.model).__name__ == "Unigram":  # has no attribute for it
        backend_id = json.loads(backend.to_str())["model"]["unk_id"]
    else:
        name = getattr(backend.model, "unk_token", None)
        backend_id = backend.token_to_id(name) if name else None
    return {number for number in (tokenizer.unk_token_id, backend_id) if number is not None}


def _named_probes(tokenizer: Any) -> Iterator[str]:
    """Texts that contain the name of a special or added token, alone and inside other text."""
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
    """Added tokens that are special in transformers but not in a tokenizer.json.

    tokenizer_config.json decides about them, so texts with their names are not compared with
    tokenizer.json.
    """
    special = _special(tokenizer)
    added = (token for one in raw for token in one.get_added_tokens_decoder().values())
    return {token.content for token in added if not token.special and token.content in special}


def _remedy(source: Path | None) -> str:
    config_file = "tokenizer_config.json" if source else "the tokenizer_config.json of a local copy"
    trusted = (
        'to use tokenizer.json unchanged, set "tokenizer_class": "PreTrainedTokenizerFast" in '
        f"{config_file}"
    )
    for names in _VOCABULARIES:
        if source and all((source / name).is_file() for name in names):
            return f"{trusted}; to use {' and '.join(names)}, delete tokenizer.json"
    return trusted


def _require_same_ids(
    probes: Sequence[str], readings: Sequence[_ProbeIds], disputed: set[str], name: str, remedy: str
) -> None:
    first, *others = readings
    for number, probe in enumerate(probes):
        unclear = any(token in probe for token in disputed)
        for other in others:
            if first.ids[number] != other.ids[number] and not (unclear and other.raw):
                raise UserError(
                    f"{name}: two forms of its tokenizer disagree on {probe!r}: {first.name} gives "
                    f"{_short(first.ids[number])}, {other.name} gives {_short(other.ids[number])}; "
                    f"{remedy}"
                )


def _short(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN]))
    return f"{len(ids)} ids [{shown}{', ...' if len(ids) > _SHOWN else ''}]"


def _require_same_vocabulary(stored: Any, title: str, raw: Any, name: str, remedy: str) -> None:
    """Check that every token of tokenizer.json has the same id in the stored tokenizer."""
    known = stored.get_vocab()
    for token, number in raw.get_vocab(with_added_tokens=True).items():
        if known.get(token) != number:
            found = f"id {known[token]}" if token in known else "no id"
            raise UserError(
                f"{name}: two forms of its tokenizer disagree on the token {token!r}: the stored "
                f"{type(stored).__name__} gives {found}, {title} gives id {number}; {remedy}"
            )


def _require_known_words(tokenizer: Any, ids: Sequence[int], name: str) -> None:
    """Check that the tokenizer knows a word: it may be empty, or belong to another model."""
    if set(ids) <= _unknown(tokenizer):
        raise UserError(
            f"{name}: its tokenizer knows no word of a simple sentence ({_SENTENCE!r} becomes "
            f"{_short(ids)}); put the correct tokenizer.json next to the weights"
        )


def _require_within_embedding(tokenizer: Any, rows: int, name: str) -> None:
    """Check that each id that a text or a separator can produce has a row in the embedding.

    No text produces a special token that is not in the model part of the tokenizer
    (split_special_tokens). It may lie beyond the embedding if it is not used otherwise.
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
            f"{name}: the token {token!r} has the id {refused[token]}, but the embedding has "
            f"{rows} rows (ids below {rows}){others}; call resize_token_embeddings and save the "
            "model again, or remove the token from tokenizer.json and tokenizer_config.json"
        )


def _require_separator_once(
    tokenizer: Any, probes: Sequence[str], ids: Sequence[Sequence[int]], name: str
) -> None:
    """Check that no text produces the separator or eos, and that no special token is added."""
    reserved = {separator(tokenizer), tokenizer.eos_token_id}
    unknown = _unknown(tokenizer)
    special = {
        number: token for token, number in _special(tokenizer).items() if number not in unknown
    }
    for probe, probe_ids in zip(probes, ids, strict=True):
        if inside := reserved.intersection(probe_ids):
            token = tokenizer.convert_ids_to_tokens(min(inside))
            raise UserError(
                f"{name}: the text {probe!r} gives the special token {token!r} (id {min(inside)}), "
                f"which must only separate texts; {_separator_remedy(tokenizer, token, probe)}"
            )
        for number in {*probe_ids[:1], *probe_ids[-1:]} & special.keys():
            if special[number] not in probe:
                raise UserError(
                    f"{name}: the tokenizer adds {special[number]!r} (id {number}) to {probe!r} "
                    "although special tokens are disabled; remove it from the normalizer and "
                    "pre_tokenizer of tokenizer.json"
                )


def _separator_remedy(tokenizer: Any, token: str, probe: str) -> str:
    if token not in probe:
        return "set another bos_token and eos_token in tokenizer_config.json, not the token of unknown text"
    if type(tokenizer.backend_tokenizer.model).__name__ == "Unigram":
        return (
            f"give {token!r} a score far below all others (-1000000) in the vocab of tokenizer.json"
        )
    return f"add a pre_tokenizer to tokenizer.json that splits {token!r}, such as Punctuation"


def _require_offsets(
    tokenizer: Any, probes: Sequence[str], offsets: Sequence[Any], name: str
) -> None:
    """Check that offsets lie inside the text, ascend, and cover all characters but white space."""
    normalized = tokenizer.backend_tokenizer.normalizer is not None
    for probe, ranges in zip(probes, offsets, strict=True):
        fault = _misplaced(probe, ranges) or _uncovered(probe, ranges, normalized)
        if fault:
            raise UserError(
                f"{name}: the character offsets of its tokenizer are wrong for the text {probe!r}: "
                f"{fault}; activations are located by offsets: correct normalizer, pre_tokenizer "
                "or unk_token in tokenizer.json, or use a model with another tokenizer"
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
    covered = {position for start, end in ranges for position in range(start, end)}
    for position, letter in enumerate(text):
        if (
            position not in covered
            and not letter.isspace()
            and not (normalized and _removable(letter))
        ):
            return f"no token covers the character {letter!r} at {position}"
    return None


def _removable(letter: str) -> bool:
    """Whether a normalizer may remove a character (combining mark, control, format)."""
    return unicodedata.category(letter)[0] in "MC" or letter == "\ufffd"
