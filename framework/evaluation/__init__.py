"""Scores of a split, the report of one exam, and which models write them."""
