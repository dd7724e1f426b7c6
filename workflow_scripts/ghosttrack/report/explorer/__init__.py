"""The explorer: one page on which a person reads texts, their tokens, and the hypotheses that competed over them."""
