"""Fetch models, corpora and data sets, and convert them to local files of one format."""
