"""The text that activations are collected from."""

from pydantic import Field

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class CorpusSettings(Section):
    """Text that the SAEs are trained and measured on."""

    source: names.LocalPath = Field(
        "openwebtext",
        min_length=1,
        description="`embedded`, `openwebtext`, `wikitext-103`; another hub data set, `OWNER/NAME`, with `:CONFIG` if it has several and `@COMMIT` to pin it, of which the `train` split is read; or a local file: .txt with documents between blank lines (without any, one a line), .jsonl or .parquet with one a row.",
    )
    text_column: str = Field(
        "text",
        min_length=1,
        description="Column with the text, for jsonl, parquet and hub data sets; `page.text` names the key `text` of objects in the column `page`.",
    )
    tokens: int = Field(
        10_000_000,
        ge=1,
        description="Training tokens per layer, rounded up to whole contexts. More tokens, better SAEs; disk and time grow in proportion.",
    )
    heldout_tokens: int = Field(
        100_000, ge=1, description="Tokens of other documents, for SAE quality. Never trained on."
    )
    context: int = Field(
        512, ge=8, description="Tokens per packed context; at most what the model takes."
    )
    statement_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of the embedded corpus that is statement-like text about facts that are never evaluated.",
    )
