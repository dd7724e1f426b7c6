"""Statements and questions from the embedded fact tables, and the marking of answers."""
