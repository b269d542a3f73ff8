"""A small recipe without mistakes, made of plugins that are read and never imported."""

from harness import TOYS

GOOD = f"""plugins: [{TOYS}]
data:
  dataset: {{name: toy_exams, organ: liver}}
distiller: {{name: toy_sorter}}
model:
  encoder: {{name: toy_eyes}}
  decoder: {{name: toy_pen}}
losses:
  toy_words: {{weight: 1.0}}
evaluate: {{metrics: [toy_score], monitor: val/toy_1}}
"""
