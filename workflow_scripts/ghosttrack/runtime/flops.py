"""Floating-point operations of a training step, for estimates and for the log."""


def sae_step(batch: int, d_model: int, d_sae: int, l0: float, *, dense: bool) -> float:
    """Operations of one SAE training step: a multiplication and an addition count as two.

    Dense (GPU): five products of batch x d_model x d_sae. Sparse (CPU): one such product, and four
    that touch only the l0 active features of each row. AuxK is left out: its cost grows with the
    number of dead features, which is small.
    """
    features = 5 * d_sae if dense else d_sae + 4 * l0
    return 2 * batch * d_model * features
