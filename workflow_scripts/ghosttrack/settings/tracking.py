"""Tracks of features across layers."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class OriginalTrackingSettings(Section):
    """Association costs of the original GhostTrack, for `tracking.mode: original`."""

    semantic_weight: float = Field(
        0.6, ge=0, description="Weight of 1 - cosine of the decoder directions."
    )
    activation_weight: float = Field(
        0.2, ge=0, description="Weight of the relative activation change |a-b|/(a+b)."
    )
    position_weight: float = Field(
        0.2,
        ge=0,
        description="Weight of the position, whose cost is always 0 in the original and here, so "
        "it has no effect. It exists so that settings of the original can be used unchanged.",
    )
    association: float = Field(
        0.5, gt=0, description="Optimal links with this association cost or more are dropped."
    )
    birth: float = Field(
        0.5,
        ge=0,
        description="A detection without a link starts a track if its activation is above this "
        "value.",
    )


class TrackingSettings(Section):
    """How features are tracked across layers."""

    mode: Literal["gated", "original"] = Field(
        "gated",
        description="`gated`: optimal assignment of similarities above a gate, with coasting and a "
        "second association; `original`: the association of the original GhostTrack with the costs "
        "under `original`, for comparison.",
    )
    top_k: int = Field(
        50, ge=1, description="Strongest active features per token and layer that are tracked."
    )
    links: Literal["cosine", "correlation", "identity"] = Field(
        "cosine",
        description="Similarity between features of two layers. `cosine`: of decoder directions; "
        "`correlation`: of activations on held-out tokens; `identity`: only features of the same "
        "index whose decoder cosine is above the gate, for index-aligned dictionaries.",
    )
    neighbours: int = Field(
        32, ge=1, description="Nearest neighbours kept per feature and pair of layers."
    )
    gate_quantile: float = Field(
        0.999,
        gt=0.5,
        lt=1,
        description="The gate: a link needs a similarity above this quantile of the best-match "
        "similarities under the null (permuted decoders; for correlations, shifted tokens).",
    )
    coast: int = Field(
        1,
        ge=0,
        le=1,
        description="Layers without a detection that a track may skip before it ends.",
    )
    activation_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the relative activation change |a-b|/(a+b), subtracted from the "
        "similarity above the gate; 0.2 drops about a third of the links.",
    )
    second_association: int = Field(
        4,
        ge=1,
        description="Low-confidence second association, as in ByteTrack: detections down to rank "
        "top_k x second_association may continue a track but not start one. 1: none.",
    )
    cluster_resolution: float = Field(
        25.0,
        gt=0,
        description="Semantic clusters: modularity resolution per 10,000 features of all layers; "
        "a higher value gives more and smaller clusters (25: about 20 features each in the "
        "default run).",
    )
    cluster_coactivation: float = Field(
        0.5,
        ge=0,
        description="Semantic clusters: weight of coactivation on held-out tokens, relative to the "
        "similarity of decoder directions; 0: decoder directions alone.",
    )
    variants: list[Literal["default", "permuted", "random", "shuffled", "untracked"]] = Field(
        ["default", "untracked"],
        min_length=1,
        description="The tracker and its nulls. `permuted`: permuted decoders; `random`: as many "
        "random links; `shuffled`: layers in random order; `untracked`: no links, which shows "
        "what the links add.",
    )
    original: OriginalTrackingSettings = Field(
        OriginalTrackingSettings(), description="Association costs, for `mode: original`."
    )
