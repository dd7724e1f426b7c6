"""Features followed across layers, and the metrics of their tracks."""
