"""Reads findings from reports, in English and Chinese, by a lexicon."""
