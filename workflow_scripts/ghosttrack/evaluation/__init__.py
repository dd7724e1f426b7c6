"""Metrics with intervals, the claim ledger, and checks of the finished tables."""
