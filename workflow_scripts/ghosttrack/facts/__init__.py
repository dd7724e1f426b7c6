"""Statements and questions from the shipped fact tables, and the labelling of answers."""
