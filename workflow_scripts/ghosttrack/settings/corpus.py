"""The text on which the SAEs are trained and measured."""

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class CorpusSettings(Section):
    """Text on which the SAEs are trained and measured."""

    source: names.LocalPath = Field(
        "openwebtext",
        min_length=1,
        description="Where the text comes from. `embedded`: glosses of WordNet and statements "
        "about facts, which ship with the workflow; `openwebtext`, `wikitext-103`: these hub data "
        "sets; `OWNER/NAME`: the `train` split of another hub data set, with `:CONFIG` if it has "
        "several configurations and `@COMMIT` to pin it; a path: a local file. A .txt file has "
        "blank lines between documents or, without any blank line, one document per line. A "
        ".jsonl or .parquet file has one document per row.",
    )
    text_column: str = Field(
        "text",
        min_length=1,
        description="Column with the text, for .jsonl, .parquet and hub data sets. `page.text` is "
        "the key `text` of the objects in the column `page`.",
    )
    tokens: int = Field(
        10_000_000,
        ge=1,
        description="Training tokens per layer, rounded up to whole contexts. More tokens give "
        "better SAEs; disk space and time grow in proportion.",
    )
    heldout_tokens: int = Field(
        100_000,
        ge=1,
        description="Tokens on which SAE quality is measured. They come from documents that are "
        "never used in training.",
    )
    context: int = Field(
        512,
        ge=8,
        description="Tokens per packed context; at most the model's maximum input length.",
    )
    statement_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="`source: embedded`: fraction of the corpus that is statements about facts. "
        "Half of these statements are true. None of these facts is used in evaluation.",
    )
