"""Scores of a split, the report of one exam, and the choice of the models that generate them."""
