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
        0.2,
        ge=0,
        description="Weight of the relative activation change, abs(a - b) / (a + b), where a and "
        "b are the activations of the two features.",
    )
    position_weight: float = Field(
        0.2,
        ge=0,
        description="Weight of the position cost. This cost is always 0, in the original and "
        "here, so the weight has no effect. The key exists so that settings of the original can "
        "be used unchanged.",
    )
    association: float = Field(
        0.5,
        gt=0,
        description="Links of the optimal assignment whose association cost is this value or more "
        "are dropped.",
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
        description="`gated`: optimal assignment of features whose similarity is above a gate "
        "(the threshold for links), with coasting and a second association; `original`: the "
        "association of the original GhostTrack, with the costs under `original`, for comparison.",
    )
    top_k: int = Field(
        50,
        ge=1,
        description="Number of detections per token and layer: the strongest active features. "
        "Only these can start a track.",
    )
    links: Literal["cosine", "correlation", "identity"] = Field(
        "cosine",
        description="Similarity between features of two layers. `cosine`: cosine of their decoder "
        "directions; `correlation`: Pearson correlation of their activations on held-out tokens; "
        "`identity`: as `cosine`, but only features of the same index can be linked. `identity` "
        "is meant for index-aligned dictionaries (`sae.dictionaries: warm_start` or `shared`). It "
        "also runs with `shared_init`, and is an error with `independent`.",
    )
    neighbours: int = Field(
        32,
        ge=1,
        description="Number of most similar features of the other layer that are stored for each "
        "feature and pair of layers. Only stored pairs can be linked.",
    )
    gate_quantile: float = Field(
        0.999,
        gt=0.5,
        lt=1,
        description="A link needs a similarity above the gate of its pair of layers. The gate "
        "comes from a null, which permutes the coordinates of one layer's decoder directions or, "
        "with `links: correlation`, shifts the tokens of one layer against those of the other. "
        "In the null, the highest similarity of each feature to a feature of the other layer is "
        "computed. The gate is this quantile of these similarities.",
    )
    coast: int = Field(
        1,
        ge=0,
        le=1,
        description="Number of layers, 0 or 1, that a track may skip without a detection before "
        "it ends.",
    )
    activation_weight: float = Field(
        0.0,
        ge=0,
        description="w in the weight of a link, similarity - gate - w * abs(a - b) / (a + b), "
        "where a and b are the activations of the two features. The assignment maximises the sum "
        "of these weights, and a link needs a weight above 0. With w = 0.2, about a third of the "
        "links are dropped.",
    )
    second_association: int = Field(
        4,
        ge=1,
        description="Second association of weak detections, as in the multi-object tracker "
        "ByteTrack (Zhang et al. 2022). Active features down to rank top_k x second_association "
        "may continue a track but not start one. 1: no second association.",
    )
    cluster_resolution: float = Field(
        25.0,
        gt=0,
        description="Semantic clusters are the communities of largest modularity in a graph of "
        "features. The resolution of the modularity is this value times the number of features of "
        "all layers / 10,000. A higher value gives more and smaller clusters; 25 gives about 20 "
        "features per cluster in the default run.",
    )
    cluster_coactivation: float = Field(
        0.5,
        ge=0,
        description="In the graph behind semantic clusters, an edge joins two features that are "
        "linked (`tracking.links`) or fire together on held-out tokens. The weights of the second "
        "kind are multiplied by this factor, those of the first kind by 1. 0: only edges between "
        "linked features.",
    )
    variants: list[Literal["default", "permuted", "random", "shuffled", "untracked"]] = Field(
        ["default", "untracked"],
        min_length=1,
        description="The tracker and its nulls. `default`: the tracker; `permuted`: links between "
        "permuted decoders; `random`: as many links, drawn at random; `shuffled`: layers in "
        "random order; `untracked`: no links. The comparison with `untracked` shows what the "
        "links add.",
    )
    compare_candidates: Literal["none", "conflict", "all"] = Field(
        "none",
        description="Data sets in which the two candidate answers of each prompt are compared "
        "inside the model: `none`, those with `conflict`, or `all`. Texts need another candidate "
        "(column `other`). One backward pass per prompt attributes the difference of the "
        "candidates' logits to SAE features, and the features that promote a candidate are "
        "followed through the layers. The nulls are those of the links, permuted candidates, and "
        "SAEs with a random decoder, which are fitted for this comparison. These SAEs are also a "
        "null of the detector and of the SAE probe.",
    )
    original: OriginalTrackingSettings = Field(
        OriginalTrackingSettings(), description="Association costs, for `tracking.mode: original`."
    )

    def compares(self, conflict: bool) -> bool:
        """Whether candidates are compared in a data set; `conflict`: it is a conflict set."""
        return self.compare_candidates == "all" or (
            self.compare_candidates == "conflict" and conflict
        )
