"""Tracks of features across layers."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class OriginalTrackingSettings(Section):
    """Prices of the original GhostTrack's association, for `tracking.mode: original`."""

    semantic_weight: float = Field(
        0.6, ge=0, description="Weight of 1 - cosine of the decoder directions."
    )
    activation_weight: float = Field(
        0.2, ge=0, description="Weight of the relative activation change |a-b|/(a+b)."
    )
    position_weight: float = Field(
        0.2,
        ge=0,
        description="Weight of the position, whose price was a constant 0: changes nothing, here as there. Kept so that the original's settings can be given as they were.",
    )
    association: float = Field(
        0.5, gt=0, description="Links at this price or above are dropped after the optimum."
    )
    birth: float = Field(
        0.5,
        ge=0,
        description="A detection without a link starts a track if its activation is above this.",
    )


class TrackingSettings(Section):
    """How features are followed across layers."""

    mode: Literal["gated", "original"] = Field(
        "gated",
        description="`gated`: an optimum in which only similarities above the gate count, with coasting and rescue; `original`: the original GhostTrack's association with the prices below, for comparison.",
    )
    top_k: int = Field(
        50, ge=1, description="Strongest active features per token and layer that are followed."
    )
    links: Literal["cosine", "correlation", "identity"] = Field(
        "cosine",
        description="What makes features of two layers alike. `cosine`: decoder directions; `correlation`: activations on held-out tokens; `identity`: the same number and a decoder cosine above the gate, for dictionaries that share an identity.",
    )
    neighbours: int = Field(32, ge=1, description="Neighbours kept per feature and layer pair.")
    gate_quantile: float = Field(
        0.999,
        gt=0.5,
        lt=1,
        description="A link must beat this quantile of the best-match similarities under the null: permuted decoders, for correlations shifted tokens.",
    )
    coast: int = Field(1, ge=0, le=1, description="Layers a track may stay silent before it dies.")
    activation_weight: float = Field(
        0.0,
        ge=0,
        description="Penalty per unit of relative activation change |a-b|/(a+b), taken off the similarity's surplus; 0.2 drops about a third of the links.",
    )
    second_association: int = Field(
        4,
        ge=1,
        description="Detections down to rank top_k x second_association may continue a track but not start one.",
    )
    cluster_resolution: float = Field(
        25.0,
        gt=0,
        description="Semantic clusters: resolution of modularity per 10,000 features of all layers; higher gives more and smaller clusters (25: about 20 features each in the default).",
    )
    cluster_coactivation: float = Field(
        0.5,
        ge=0,
        description="Semantic clusters: weight of firing on the same held-out tokens beside the similarity of decoder rows; 0: decoders alone.",
    )
    variants: list[Literal["default", "permuted", "random", "shuffled", "untracked"]] = Field(
        ["default", "untracked"],
        min_length=1,
        description="The tracker and its nulls: permuted decoders, random links of equal number, shuffled layers, no links (untracked: what do links add?).",
    )
    original: OriginalTrackingSettings = Field(
        OriginalTrackingSettings(),
        description="Prices of the original's association, for `mode: original`.",
    )
