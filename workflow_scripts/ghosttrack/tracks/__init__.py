"""Tracks of features across layers, and metrics of the tracks."""
