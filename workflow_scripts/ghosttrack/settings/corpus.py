"""The text on which the SAEs are trained and measured."""

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class CorpusSettings(Section):
    """Text on which the SAEs are trained and measured."""

    source: names.LocalPath = Field(
        "openwebtext",
        min_length=1,
        description="`embedded`, `openwebtext` or `wikitext-103`; another hub data set as "
        "`OWNER/NAME`, with `:CONFIG` if it has several configurations and `@COMMIT` to pin it "
        "(its `train` split is read); or a local file: .txt with blank lines between documents "
        "(without blank lines, one document per line), .jsonl or .parquet with one document per "
        "row.",
    )
    text_column: str = Field(
        "text",
        min_length=1,
        description="Column with the text, for .jsonl, .parquet and hub data sets; `page.text` "
        "is the key `text` of the objects in the column `page`.",
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
        description="Tokens of other documents on which SAE quality is measured; never used in "
        "training.",
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
        description="Fraction of the embedded corpus that is statements about facts; none of these "
        "facts is used in evaluation.",
    )
