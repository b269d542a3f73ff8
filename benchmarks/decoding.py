"""Generates reports of the published size beside transformers and beside a decoder without a cache.

All of them write reports of the same lengths: 150 tokens each, or lengths like those of breast reports (mean 58).
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

DEVICES = ("cpu", "cuda")
WORDS, PATCHES, MEAN, SHORTEST = 1000, 98, 58, 15
QUICK = {"width": 32, "layers": 1, "longest": 20, "batch": 4, "published_batch": 2}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def lengths_of(batch: int, longest: int, real: bool) -> Tensor:
    if not real:
        return torch.full((batch,), longest)
    draw = torch.Generator().manual_seed(0)
    return (MEAN * (0.35 * torch.randn(batch, generator=draw)).exp()).round().long().clamp(SHORTEST, longest)


def hugging_face(sizes: dict[str, int], longest: int) -> Any:
    config = BartConfig(
        vocab_size=WORDS,
        d_model=sizes["width"],
        encoder_layers=sizes["encoder_layers"],
        decoder_layers=sizes["layers"],
        encoder_attention_heads=sizes["heads"],
        decoder_attention_heads=sizes["heads"],
        encoder_ffn_dim=sizes["feedforward"],
        decoder_ffn_dim=sizes["feedforward"],
        max_position_embeddings=max(longest, PATCHES) + 4,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config).eval()


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--batch", type=int, default=32)
    parse.add_argument("--published-batch", type=int, default=8, help="beside the decoder without a cache")
    parse.add_argument("--width", type=int, default=512, help="of decoder, its feed-forward layers and patches")
    parse.add_argument("--layers", type=int, default=3, help="of the decoder, and of its encoder of patches")
    parse.add_argument("--longest", type=int, default=150)
    parse.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of autocast, for all of them")
    options = start(parse, quick=QUICK)
    device, width, longest = options.device, options.width, options.longest
    torch.manual_seed(0)
    sizes = {
        "layers": options.layers,
        "encoder_layers": options.layers,
        "width": width,
        "heads": 8,
        "feedforward": width,
    }
    decoder = Transformer(vocabulary_size=WORDS, feature_width=width, max_length=longest, **sizes).eval().to(device)
    bart = hugging_face(sizes, longest).to(device)
    rows: list[Any] = []

    def lengths(batch: int, real: bool) -> Tensor:
        return lengths_of(batch, longest, real).to(device)

    def features_of(batch: int) -> Features:
        patches = torch.randn(batch, PATCHES, width, generator=torch.Generator().manual_seed(1)).to(device)
        return Features(patches, torch.ones(batch, PATCHES, dtype=torch.bool, device=device), patches.mean(1))

    def ours(batch: int, num_beams: int, real: bool) -> Callable[[], object]:
        features = features_of(batch)
        ending = WithLengths(decoder, lengths(batch, real))
        return lambda: generate(ending, features, max_length=longest, num_beams=num_beams, length_penalty=1.0)

    def theirs(batch: int, num_beams: int, real: bool) -> Callable[[], object]:
        features = features_of(batch)
        ends = LogitsProcessorList([EndAt(lengths(batch, real).repeat_interleave(num_beams))])

        def run() -> object:
            encoded = bart.model.encoder(inputs_embeds=features.patches_BND)[0]
            return bart.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                max_new_tokens=longest,
                num_beams=num_beams,
                do_sample=False,
                logits_processor=ends,
            )

        return run

    def published(batch: int, real: bool) -> Callable[[], object]:
        """Runs the whole decoder again for every token, as the published code does, until the longest report ends."""
        features, last = features_of(batch), int(lengths(batch, real).max())

        def run() -> object:
            tokens = torch.full((batch, 1), BOS, device=device)
            for _ in range(last):
                tokens = torch.cat([tokens, decoder(features, tokens)[:, -1:].argmax(-1)], 1)
            return tokens

        return run

    precision = PRECISIONS[options.precision]
    with torch.no_grad(), torch.autocast(device, precision, enabled=precision != torch.float32):
        for real in (False, True):
            text = "real lengths" if real else f"{longest} tokens"
            for num_beams in (1, 3):
                batch = options.batch
                what = f"num_beams {num_beams}, batch {batch}, {text}"
                if options.only in what:
                    works = {"ours": ours(batch, num_beams, real), "transformers": theirs(batch, num_beams, real)}
                    rows += compare(what, "reports", batch, works, options.rounds)
            batch = options.published_batch
            what = f"num_beams 1, batch {batch}, {text}"
            if options.only in what:
                works = {"ours": ours(batch, 1, real), "without a cache, as published": published(batch, real)}
                rows += compare(what, "reports", batch, works, options.rounds)
    write(rows, options, ("transformers",))


if __name__ == "__main__":
    main()
