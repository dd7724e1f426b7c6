"""The explorer: one page to inspect texts, their tokens, and the feature tracks of every token."""
