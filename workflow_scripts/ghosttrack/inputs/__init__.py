"""Models, corpora and data sets, brought into local files of one form."""
