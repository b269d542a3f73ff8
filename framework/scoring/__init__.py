"""Scores of reports: the scorer, baselines and oracles, bootstrap intervals, the reward, the table."""
