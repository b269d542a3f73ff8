"""Names and formats of earlier versions: recipes that use them are refused, with what to write instead."""

from __future__ import annotations

from typing import Any

FORMAT = 2  # of saved recipes (`format: 2`); raise it with every change that an older version cannot read
WRITTEN_BY: dict[Any, str] = {None: "Sonoscribe 0.5 or earlier", 1: "Sonoscribe 0.5 or earlier", 2: "Sonoscribe 0.6"}

RENAMED = {
    "data.workers": "data.num_workers",
    "data.cache": "data.cache_dir",
    "data.broken": "data.on_broken",
    "optimizer.lrs": "optimizer.group_lrs",
    "train.micro_batch": "train.micro_batch_size",
    "train.clip": "train.max_grad_norm",
    "train.early_stop": "train.early_stopping_patience",
    "train.ema": "train.ema_decay",
    "evaluate.beam": "evaluate.num_beams",
    "evaluate.val_beam": "evaluate.val_num_beams",
    "evaluate.no_repeat": "evaluate.no_repeat_ngram_size",
    "evaluate.max_tokens": "evaluate.max_length",
    "evaluate.resamples": "evaluate.bootstrap_samples",
    "init_skip": "init_exclude",
    "resume_despite": "resume_ignore",
}
