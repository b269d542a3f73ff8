"""A BERT of two small layers with random weights, saved like a pretrained sentence encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Whole words, and subwords of the others: `hypoechoic` is three.
SUBWORDS = ["oval", "mass", "left", "right", "no", "seen", "cyst", ".", "hypo", "##echo", "##ic", "##an", "结", "节"]


def save_tiny_bert(
    folder: Path,
    *,
    width: int = 16,
    subwords: Sequence[str] = SUBWORDS,
    positions: int = 40,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Writes config.json, model.safetensors and a WordPiece tokenizer; returns the folder.

    Args:
        settings: JSON files to write beside them, by their path in the folder.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [*SPECIAL_TOKENS, *subwords]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=positions,
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=positions,
        initializer_range=0.5,  # of so few dimensions, or all texts would lie close together
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    for path, content in (settings or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content), encoding="utf-8")
    return folder
