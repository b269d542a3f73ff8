"""Pretrained folders as transformers saves them, small enough to build in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SwinConfig, SwinModel
from transformers.utils import logging

from framework.testing.decoder import VOCABULARY

logging.disable_progress_bar()
LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
DINOV2: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
GPT2: dict[str, Any] = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
SPECIAL_TOKENS = ["<s>", "</s>"]


def save_swin(folder: Path) -> Path:
    """A colour Swin as it is published: without the norms that its backbone class adds."""
    torch.manual_seed(0)
    model = SwinModel(SwinConfig(**SWIN, image_size=32))
    with torch.no_grad():
        model.layernorm.weight.uniform_(0.5, 1.5)
        model.layernorm.bias.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    return folder


def save_llama(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    torch.manual_seed(0)
    words = len(tokenizer.get_vocab())
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "vocab_size": words}
    ends["pad_token_id"] = words - 1  # as published models have it: larger than the number of our words may be
    LlamaForCausalLM(LlamaConfig(**LLAMA, **ends, max_position_embeddings=256)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def of_words(words: Sequence[str] = VOCABULARY[4:]) -> PreTrainedTokenizerFast:
    """A tokenizer with other ids than ours for these words, and a special token among them."""
    known = {word: id for id, word in enumerate([*words[:3], "</s>", *words[3:]])}
    backend = Tokenizer(models.WordLevel(known, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def of_bytes(texts: Sequence[str], size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as of GPT-2 and Llama 3, which can encode every text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1])
