"""The sparse autoencoders, and the sweep over their k and seeds."""

import itertools
from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class SaeSettings(Section):
    """The sparse autoencoders: their source, architecture and training."""

    source: names.LayerPattern = Field(
        "train",
        min_length=1,
        description="`train`, or the location of pretrained SAEs in the format of SAELens or "
        "sparsify. The location is a local folder with one folder per layer or, if `revision` is "
        "set, a hub repository, optionally followed by a folder in it. `{layer}` stands for the "
        "number of the layer. `{next_layer}` stands for this number plus 1. It is needed where "
        "folders are named after the input of a block, because the output of layer 7 is the input "
        "of block 8: `OWNER/NAME/blocks.{next_layer}.hook_resid_pre`. "
        "`saelens:RELEASE/SAE_ID` is an SAE by its name in the SAELens library, an optional "
        "package: `saelens:gemma-scope-2b-pt-res-canonical/layer_{layer}/width_16k/canonical`. "
        "Pretrained SAEs determine the dictionary size and the sparsity.",
    )
    revision: names.Revision | None = Field(
        None,
        min_length=1,
        description="Commit of the hub repository in `source`. null: `source` is a local folder. "
        "With `saelens:`, the commit of the release's repository; null: its newest commit.",
    )
    architecture: Literal["batchtopk", "topk", "jumprelu", "matryoshka"] = Field(
        "batchtopk",
        description="`batchtopk`: k active features per token on average; `topk`: k active "
        "features on every token; `jumprelu`: a learned threshold per feature, and k active "
        "features per token on average; `matryoshka`: batchtopk in which each prefix of the "
        "dictionary must also reconstruct the activation.",
    )
    d_sae: int = Field(
        2048,
        ge=2,
        description="Dictionary size (number of features), usually 4 to 32 times d_model. With "
        "`model_path` the default is 4 times d_model.",
    )
    dictionaries: Literal["independent", "shared_init", "warm_start", "shared"] = Field(
        "shared_init",
        description="How the SAEs of the layers are related. `independent`: each has a different "
        "random initialisation; `shared_init`: all have the same random initialisation, and "
        "features of the same index often become similar; `warm_start`: all start from the "
        "trained SAE of one layer, and features of the same index mostly stay similar; `shared`: "
        "one SAE is trained on all layers at once, so all layers have the same features.",
    )
    warm_start_layer: int | None = Field(
        None,
        ge=0,
        description="`dictionaries: warm_start`: the layer whose trained SAE initialises the "
        "others. null: the middle one of the analysed layers.",
    )
    warm_start_epochs: int | None = Field(
        None,
        ge=1,
        description="`dictionaries: warm_start`: epochs of the layers that start from another "
        "layer's SAE. These layers need fewer epochs. null: as many as `epochs`.",
    )
    k: int = Field(
        64,
        ge=1,
        description="Active features per token, on average (L0). With 50 to 100, features are "
        "interpretable. A lower k gives sparser codes and a worse reconstruction.",
    )
    batch: int = Field(
        4096,
        ge=1,
        description="Tokens per optimizer step. Results depend on it, so it is never adapted to "
        "the machine.",
    )
    epochs: int = Field(20, ge=1, description="Passes over the training tokens.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Adam learning rate; null: 2e-4 / sqrt(d_sae / 16384) * sqrt(batch / 4096).",
    )
    warmup: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Fraction of the steps, at the beginning, in which the learning rate rises "
        "linearly.",
    )
    decay: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Fraction of the steps, at the end, in which the learning rate falls linearly.",
    )
    aux_coefficient: float = Field(
        1 / 32, ge=0, description="Weight of the auxiliary loss that revives dead features."
    )
    dead_after: float = Field(
        0.05,
        gt=0,
        le=1,
        description="A feature is dead once it has not fired for this fraction of the training "
        "tokens, or for 10 million tokens if that is less.",
    )
    prefixes: list[float] = Field(
        [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0],
        min_length=1,
        description="`architecture: matryoshka`: sizes of the prefixes, as ascending fractions of "
        "d_sae up to 1. Each prefix of the dictionary must reconstruct the activation.",
    )
    bandwidth: float = Field(
        0.05,
        gt=0,
        description="`architecture: jumprelu`: width of the interval around a feature's "
        "threshold, in the scale of the feature activations. Only pre-activations in this "
        "interval contribute to the gradient of the threshold. A wider interval gives steadier "
        "training and a less exact gradient.",
    )
    l0_coefficient: float = Field(
        2.0,
        gt=0,
        description="`architecture: jumprelu`: weight of the L0 penalty, (L0 / k - 1)^2. Raise it "
        "if L0 stays away from k.",
    )
    precision: Literal["tf32", "bf16", "fp32"] = Field(
        "tf32",
        description="Input precision of matrix multiplications on a GPU. Weights, thresholds and "
        "sums are always fp32. A CPU always uses fp32. The effect of this setting on a GPU has "
        "not been measured.",
    )

    @property
    def trained(self) -> bool:
        """Whether the SAEs are trained in the run, not pretrained."""
        return self.source == "train"

    @property
    def shared(self) -> bool:
        """Whether one SAE is trained for all layers."""
        return self.trained and self.dictionaries == "shared"

    @property
    def from_library(self) -> bool:
        """Whether `source` is a name of the SAELens library."""
        return self.source.startswith(names.SAELENS)

    @property
    def local(self) -> bool:
        """Whether the SAEs are pretrained and in a local folder."""
        return not (self.trained or self.revision or self.from_library)

    def source_of(self, layer: int) -> str:
        """Folder, hub path or library name of the pretrained SAE of one layer."""
        return self.source.format(layer=layer, next_layer=layer + 1)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        try:
            if self.from_library:
                names.library_name(self.source)
            elif self.revision:
                names.hub_folder(self.source)
        except names.InvalidNameError as error:
            raise ValueError(f"sae.source: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_prefixes(self) -> Self:
        sizes = self.prefixes
        if sizes[-1] != 1.0 or sizes[0] <= 0 or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ValueError(
                f"sae.prefixes: {sizes} must be above 0, ascending, and end with 1, the whole "
                "dictionary"
            )
        return self


class SweepSettings(Section):
    """SAEs of other k and other seeds: the target `sae_sweep`, never part of a run."""

    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="Layers to sweep, among the analysed ones. null: the middle one of the "
        "analysed layers.",
    )
    k: list[int] = Field([16, 32, 64, 128], min_length=1, description="Values of `sae.k`.")
    seeds: list[int] = Field(
        [0, 1, 2],
        min_length=1,
        description="Seeds of the random initialisation. For each k, the features of SAEs with "
        "different seeds are paired one to one.",
    )
