"""The sparse autoencoders, and the sweep over their k and seeds."""

import itertools
from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class SaeSettings(Section):
    """Where the sparse autoencoders come from, their architecture and training."""

    source: names.LayerPattern = Field(
        "train",
        min_length=1,
        description="`train`, or pretrained autoencoders in the form of SAELens or sparsify: a local folder with one folder a layer, or with `revision` a hub repository, perhaps with a folder inside. `{layer}` stands for a layer's number, `{next_layer}` for the one after it, where folders are named by the input of a block: `OWNER/NAME/blocks.{next_layer}.hook_resid_pre`. Dictionary size and sparsity are those of what is found.",
    )
    revision: names.Revision | None = Field(
        None,
        min_length=1,
        description="Commit of the hub repository that `source` names; null: `source` is a local folder.",
    )
    architecture: Literal["batchtopk", "topk", "jumprelu", "matryoshka"] = Field(
        "batchtopk",
        description="`batchtopk`: k active per token on average; `topk`: k on every token; `jumprelu`: a learned threshold per feature, k on average; `matryoshka`: batchtopk whose first features must reconstruct alone.",
    )
    d_sae: int = Field(
        2048,
        ge=2,
        description="Dictionary size; the field uses 4 to 32 times d_model. With `model_path` 4 times, unless it is set.",
    )
    dictionaries: Literal["independent", "shared_init", "warm_start", "shared"] = Field(
        "shared_init",
        description="What the layers' SAEs have in common. `independent`: nothing, each begins with random directions of its own; `shared_init`: they begin with the same random directions, and equal numbers often come to mean similar features; `warm_start`: they begin with the trained SAE of one layer, and equal numbers mostly go on to mean equal features; `shared`: one dictionary learns from all layers at once, and all have the same features.",
    )
    warm_start_layer: int | None = Field(
        None,
        ge=0,
        description="`warm_start`: the layer that the others begin with; null: the middle one of the analysed.",
    )
    warm_start_epochs: int | None = Field(
        None,
        ge=1,
        description="`warm_start`: passes over the training tokens of the warm-started layers, which need fewer; null: as many as `epochs`.",
    )
    k: int = Field(
        64,
        ge=1,
        description="Active features per token on average (L0). 50-100 is readable; lower is sparser and less faithful.",
    )
    batch: int = Field(
        4096, ge=1, description="Tokens per optimizer step. Science: it never changes by itself."
    )
    epochs: int = Field(20, ge=1, description="Passes over the training tokens.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Adam learning rate; null: 2e-4 / sqrt(d_sae / 16384) * sqrt(batch / 4096).",
    )
    warmup: float = Field(
        0.05, ge=0, le=0.5, description="Share of the steps with a rising learning rate."
    )
    decay: float = Field(
        0.2, ge=0, le=1, description="Share of the steps at the end with a falling learning rate."
    )
    aux_coefficient: float = Field(
        1 / 32, ge=0, description="Weight of the auxiliary loss that revives dead features."
    )
    dead_after: float = Field(
        0.05,
        gt=0,
        le=1,
        description="A feature is dead after this share of the run without firing (at most 10 M tokens).",
    )
    prefixes: list[float] = Field(
        [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0],
        min_length=1,
        description="`matryoshka`: the nested parts that each reconstruct, as ascending shares of d_sae up to 1.",
    )
    bandwidth: float = Field(
        0.05,
        gt=0,
        description="`jumprelu`: width around a threshold, in the scale of the codes, in which pre-activations teach it. Wider: steadier, less exact.",
    )
    l0_coefficient: float = Field(
        2.0,
        gt=0,
        description="`jumprelu`: price of (L0 / k - 1)^2. Higher: L0 nearer to k; raise it if L0 stays off.",
    )
    precision: Literal["tf32", "bf16", "fp32"] = Field(
        "tf32",
        description="Factors of matrix products on a GPU; weights, thresholds and sums are fp32 always. A CPU computes in fp32. Not measured on a GPU.",
    )

    @property
    def trained(self) -> bool:
        """Whether the autoencoders are trained here."""
        return self.source == "train"

    @property
    def shared(self) -> bool:
        """Whether one dictionary is trained for all layers; pretrained ones are what they are."""
        return self.trained and self.dictionaries == "shared"

    def place(self, layer: int) -> str:
        """`source` for one layer."""
        return self.source.format(layer=layer, next_layer=layer + 1)

    @model_validator(mode="after")
    def _found(self) -> Self:
        if self.revision:
            try:
                names.hub_folder(self.source)
            except names.InvalidNameError as error:
                raise ValueError(f"sae.source: {error}") from None
        return self

    @model_validator(mode="after")
    def _nested(self) -> Self:
        shares = self.prefixes
        if (
            shares[-1] != 1.0
            or shares[0] <= 0
            or any(a >= b for a, b in itertools.pairwise(shares))
        ):
            raise ValueError(
                f"prefixes: {shares} must ascend from above 0 to 1, the whole dictionary"
            )
        return self


class SweepSettings(Section):
    """Autoencoders of other k and other seeds beside the run's own; target `sae_sweep`, never part of a run."""

    layers: list[int] | None = Field(
        None, min_length=1, description="Analysed layers to sweep; null: the middle one."
    )
    k: list[int] = Field([16, 32, 64, 128], min_length=1, description="Values of `sae.k`.")
    seeds: list[int] = Field(
        [0, 1, 2],
        min_length=1,
        description="Seeds of the initial weights; with two or more, features are matched between them.",
    )
