"""Generates reports of the published size beside transformers and beside a decoder without a cache.

`python -m benchmarks.decoding [--threads 1] [--out FILE]`. All of them write reports of the same lengths: 150 tokens
each, or lengths like those of breast reports (mean 58).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.rounds import compare, parser, start, write
from framework.exam import BOS, EOS, PAD, Features
from framework.models.generation import generate
from plugins.decoder.transformer import Transformer

WORDS, WIDTH, PATCHES, LONGEST = 1000, 512, 98, 150
SIZES: dict[str, Any] = {"layers": 3, "encoder_layers": 3, "width": WIDTH, "heads": 8, "feedforward": 512}


class WithLengths(nn.Module):
    """A decoder whose reports end after a given number of tokens."""

    def __init__(self, decoder: Any, lengths_B: Tensor) -> None:
        super().__init__()
        self.decoder, self.lengths_B = decoder, lengths_B

    def init_cache(self, features: Features) -> dict[str, Any]:
        return {"length": self.lengths_B, "written": 0, "own": self.decoder.init_cache(features)}

    def step(self, tokens_R: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        logits_RW, own = self.decoder.step(tokens_R, cache["own"])
        written = cache["written"] + 1
        return end_at(logits_RW, cache["length"] == written), {**cache, "written": written, "own": own}


class EndAt(LogitsProcessor):
    """The same for transformers."""

    def __init__(self, lengths_R: Tensor) -> None:
        self.lengths_R = lengths_R

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return end_at(scores, self.lengths_R == input_ids.shape[1])


def end_at(logits_RW: Tensor, ends_R: Tensor) -> Tensor:
    """EOS where a report ends, and no EOS elsewhere."""
    logits_RW[:, EOS] = torch.where(ends_R, 1e4, float("-inf"))
    return logits_RW


def lengths_of(batch: int, real: bool) -> Tensor:
    if not real:
        return torch.full((batch,), LONGEST)
    draw = torch.Generator().manual_seed(0)
    return (58 * (0.35 * torch.randn(batch, generator=draw)).exp()).round().long().clamp(15, LONGEST)


def hugging_face() -> Any:
    config = BartConfig(
        vocab_size=WORDS,
        d_model=WIDTH,
        encoder_layers=SIZES["encoder_layers"],
        decoder_layers=SIZES["layers"],
        encoder_attention_heads=SIZES["heads"],
        decoder_attention_heads=SIZES["heads"],
        encoder_ffn_dim=SIZES["feedforward"],
        decoder_ffn_dim=SIZES["feedforward"],
        max_position_embeddings=LONGEST + 4,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config).eval()


def main() -> None:
    options = start(parser(__doc__))
    torch.manual_seed(0)
    decoder = Transformer(vocabulary_size=WORDS, feature_width=WIDTH, max_length=LONGEST, **SIZES).eval()
    bart = hugging_face()
    rows: list[Any] = []

    def ours(batch: int, num_beams: int, real: bool) -> Callable[[], object]:
        features = features_of(batch)
        ending = WithLengths(decoder, lengths_of(batch, real))
        return lambda: generate(ending, features, max_length=LONGEST, num_beams=num_beams, length_penalty=1.0)

    def theirs(batch: int, num_beams: int, real: bool) -> Callable[[], object]:
        features = features_of(batch)
        ends = LogitsProcessorList([EndAt(lengths_of(batch, real).repeat_interleave(num_beams))])

        def run() -> object:
            encoded = bart.model.encoder(inputs_embeds=features.patches_BND)[0]
            return bart.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                max_new_tokens=LONGEST,
                num_beams=num_beams,
                do_sample=False,
                logits_processor=ends,
            )

        return run

    @torch.no_grad()
    def published(batch: int, real: bool) -> Callable[[], object]:
        """Runs the whole decoder again for every token, as the published code does, until the longest report ends."""
        features, longest = features_of(batch), int(lengths_of(batch, real).max())

        @torch.no_grad()
        def run() -> object:
            tokens = torch.full((batch, 1), BOS)
            for _ in range(longest):
                tokens = torch.cat([tokens, decoder(features, tokens)[:, -1:].argmax(-1)], 1)
            return tokens

        return run

    for real in (False, True):
        text = "real lengths" if real else f"{LONGEST} tokens"
        for num_beams in (1, 3):
            what = f"num_beams {num_beams}, batch 32, {text}"
            if options.only in what:
                works = {"ours": ours(32, num_beams, real), "transformers": theirs(32, num_beams, real)}
                rows += compare(what, "reports", 32, works, options.rounds)
        what = f"num_beams 1, batch 8, {text}"
        if options.only in what:
            works = {"ours": ours(8, 1, real), "without a cache, as published": published(8, real)}
            rows += compare(what, "reports", 8, works, options.rounds)
    write(rows, options, ("torch", "transformers"))


def features_of(batch: int) -> Features:
    patches = torch.randn(batch, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))
    return Features(patches, torch.ones(batch, PATCHES, dtype=torch.bool), patches.mean(1))


if __name__ == "__main__":
    main()
