"""The claims that are tested: what is claimed of which score, and the controls it must beat."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ghosttrack import scores as registry
from ghosttrack.detection import controls

# Controls that are trained in the same folds as the detector. Only conflict sets have those with
# agreement.
TRAINED_CONTROLS = (
    registry.OUTPUT_REGRESSION,
    registry.WITHOUT_CANDIDATES,
    registry.OUTPUT_AND_WORDS,
    registry.EMBEDDING_PAIR,
    "raw_probe",
    "raw_probe_all",
    "difference_of_means",
    "sae_max_probe",
    registry.SAME_PASS,
    registry.OUTPUT_AND_AGREEMENT,
    registry.AGREEMENT,
)


class ClaimSpec(NamedTuple):
    """A claim: its sentence, our score, and the controls, of which it must beat the best."""

    sentence: str
    ours: str
    controls: tuple[str, ...]


# Everything about a text after a remark that its own forward pass gives away without activations.
SAME_PASS = (
    registry.SAME_PASS,
    registry.OUTPUT_AND_AGREEMENT,
    registry.OUTPUT_AND_WORDS,
    registry.OUTPUT_REGRESSION,
    registry.WITHOUT_CANDIDATES,
    registry.EMBEDDING_PAIR,
    registry.AGREEMENT,
    *controls.SINGLE,
)


def on_remarks() -> list[ClaimSpec]:
    """The claims that are tested only in scopes of texts after remarks."""
    return [
        ClaimSpec(registry.BEYOND_PASS, registry.DETECTOR, SAME_PASS),
        ClaimSpec(registry.ADDS_TO_PASS, registry.WITH_AGREEMENT, SAME_PASS),
        ClaimSpec(
            registry.BEYOND_CLOSED_BOOK,
            registry.WITH_CLOSED_BOOK,
            (registry.CLOSED_BOOK_AND_CONTEXT, registry.CLOSED_BOOK),
        ),
    ]


def claims(variants: Sequence[str]) -> list[ClaimSpec]:
    """The claims that are tested in every scope.

    `variants`: the tracker (default) and its nulls.
    """
    default = registry.DETECTOR
    result = [
        ClaimSpec(registry.HEADLINE, default, (*controls.SINGLE, *TRAINED_CONTROLS)),
        ClaimSpec("the detector beats its best single control", default, controls.SINGLE),
        ClaimSpec(
            "the detector beats a regression on all output features",
            default,
            (registry.OUTPUT_REGRESSION,),
        ),
        ClaimSpec(
            "the detector beats a regression on output features without candidate answers",
            default,
            (registry.WITHOUT_CANDIDATES,),
        ),
        ClaimSpec(
            "the detector beats a regression on output features and text pairs",
            default,
            (registry.OUTPUT_AND_WORDS,),
        ),
        ClaimSpec("the detector beats probes on raw activations", default, ("raw_probe_all",)),
        ClaimSpec("sparse autoencoders add to the detector", default, (registry.WITHOUT_SAE,)),
    ]
    if "default" in variants:
        nulls = [variant for variant in variants if variant != "default"]
        result += [
            ClaimSpec(registry.TRACKING, registry.WITH_METRICS, (default,)),
            *(
                ClaimSpec(
                    f"{registry.TRACKING}{registry.MORE_THAN} {variant} null",
                    registry.WITH_METRICS,
                    (f"{registry.WITH_METRICS}.{variant}",),
                )
                for variant in nulls
            ),
            *(
                ClaimSpec(
                    f"tracking metrics beat their {variant} null",
                    "metrics_forest",
                    (f"metrics_forest.{variant}",),
                )
                for variant in nulls
            ),
            ClaimSpec(
                "tracking metrics beat the text alone", "metrics_forest", (registry.TEXT_ONLY,)
            ),
        ]
    return result


def on_random_decoders() -> list[ClaimSpec]:
    """The claims that are tested in scopes with SAEs of random decoders: what learning adds."""
    return [
        ClaimSpec(
            "learned SAEs add more than random decoders",
            registry.DETECTOR,
            (registry.NULL_DETECTOR,),
        ),
        ClaimSpec("the SAE probe beats random decoders", "sae_probe", (registry.NULL_SAE_PROBE,)),
    ]


def on_candidates() -> list[ClaimSpec]:
    """The claims that are tested in scopes of texts with another candidate answer.

    Score and control both know the other candidate, and agreement with the remark where there is
    one.
    """
    gradients, features = registry.CANDIDATE_GRADIENTS, registry.CANDIDATE_FEATURES
    tracks, everything = registry.CANDIDATE_TRACKS, registry.CANDIDATE_ALL
    nulls = ("untracked", "random", "shuffled", "candidates", "decoders")
    with_gradients, with_all = registry.WITH_GRADIENTS, registry.WITH_CANDIDATES
    pairs = [
        ("candidate gradients beat the logit difference", gradients, registry.CANDIDATE_LOGIT),
        ("feature attribution adds to candidate gradients", features, gradients),
        *(
            (
                f"feature attribution adds more than {registry.NULLS[null]}",
                features,
                f"{features}.{null}",
            )
            for null in ("decoders", "candidates")
        ),
        ("candidate tracks add to feature attribution", everything, features),
        *(
            (
                f"candidate tracks add more than {registry.NULLS[null]}",
                everything,
                f"{everything}.{null}",
            )
            for null in nulls
        ),
        *(
            (f"candidate tracks beat {registry.NULLS[null]}", tracks, f"{tracks}.{null}")
            for null in nulls
        ),
        ("candidate tracks beat gradients and logit lens", tracks, gradients),
        (
            "gradients add to the detector with logit difference",
            with_gradients,
            registry.WITH_CANDIDATE_LOGIT,
        ),
        ("candidate tracks add to the detector with gradients", with_all, with_gradients),
        ("linked candidate tracks add more to the detector", with_all, f"{with_all}.untracked"),
    ]
    return [ClaimSpec(sentence, ours, (control,)) for sentence, ours, control in pairs]


def on_external(score_names: Iterable[str], misled: bool) -> list[ClaimSpec]:
    """The claims on scores from outside this project: the controls are those of the headline claim.

    `score_names`: the scores of the scope; `misled`: whether its texts follow remarks.
    """
    beaten = [
        ("its best control", (*controls.SINGLE, *TRAINED_CONTROLS)),
        ("its best single control", controls.SINGLE),
        *([("all output and text of the same pass", SAME_PASS)] if misled else []),
    ]
    return [
        ClaimSpec(f"{registry.get(name).label} beats {words}", name, names)
        for name in score_names
        if registry.is_external(name)
        for words, names in beaten
    ]
