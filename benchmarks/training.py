"""Times steps of the published size beside steps as published.

ResNet-101 and a transformer of 3 + 3 layers of width 512, two views of 224 pixels, batch 4, in fp32 and bf16. As
published (Li et al. 2024, arXiv 2406.00644; written from its description, with our modules): the encoder is called for
each view in torch's own memory format, and each value of the gradient is clipped. In each step it also decodes reports,
here as long as the references, without a cache, for a loss without a gradient. Images arrive as floats in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rounds import compare, parser, start, write
from framework.exam import BOS, PAD, Features
from plugins.decoder.transformer import Transformer
from plugins.encoder.resnet import ResNet

DEVICES = ("cpu", "cuda")
WORDS, VIEWS, TOKENS = 1000, 2, 60
QUICK = {"batch": 2, "image_size": 32, "depth": 10, "width": 8, "decoder": 32}


class Step(nn.Module):
    """A model with its loss on one batch, and its update."""

    def __init__(self, options: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = ResNet(channels=3, depth=options.depth, width=options.width, max_views=0)
        sizes: dict[str, Any] = {"layers": 3, "encoder_layers": 3, "width": options.decoder, "heads": 8}
        self.decoder = Transformer(
            vocabulary_size=WORDS,
            feature_width=self.encoder.width,
            max_length=150,
            feedforward=options.decoder,
            **sizes,
        )
        self.to(device)
        draw = torch.Generator().manual_seed(1)
        self.image_BVCHW = torch.rand(
            options.batch, VIEWS, 3, options.image_size, options.image_size, generator=draw
        ).to(device)
        self.mask_BV = torch.ones(options.batch, VIEWS, dtype=torch.bool, device=device)
        self.report_BT = torch.randint(4, WORDS, (options.batch, TOKENS), generator=draw).to(device)
        self.report_BT[:, 0] = BOS
        self.dtype, self.device = dtype, device
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)

    def features(self) -> Features:
        return self.encoder(self.image_BVCHW, self.mask_BV)

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def loss(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits_BTW = self.decoder(self.features(), self.report_BT[:, :-1])
        target_B = self.report_BT[:, 1:].flatten()
        return F.cross_entropy(logits_BTW.float().flatten(0, 1), target_B, ignore_index=PAD)

    def update(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class Published(Step):
    """Calls the encoder for each view in NCHW, and clips values."""

    def __init__(self, options: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(options, dtype, device)
        self.encoder.backbone.to(memory_format=torch.contiguous_format)

    def features(self) -> Features:
        views = []
        for view in range(VIEWS):
            standard_BCHW = (self.image_BVCHW[:, view] - self.encoder.mean_C11) / self.encoder.std_C11
            maps_BDHW = self.encoder.backbone(standard_BCHW).last_hidden_state
            views.append(maps_BDHW.flatten(2).transpose(1, 2))
        patches_BND = torch.cat(views, 1)
        return Features(patches_BND, torch.ones_like(patches_BND[..., 0], dtype=torch.bool), patches_BND.mean(1))

    def clip(self) -> None:
        nn.utils.clip_grad_value_(self.parameters(), 0.1)


class PublishedWithReports(Published):
    """Decodes a report of each exam too, the whole decoder for every token."""

    def update(self) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.features()
            tokens_BT = self.report_BT[:, :1]
            for _ in range(TOKENS - 1):
                next_B1 = self.decoder(features, tokens_BT)[:, -1:].argmax(-1)
                tokens_BT = torch.cat([tokens_BT, next_B1], 1)
        return super().update()


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--batch", type=int, default=4)
    parse.add_argument("--image-size", type=int, default=224)
    parse.add_argument("--depth", type=int, default=101)
    parse.add_argument("--width", type=int, default=64)
    parse.add_argument("--decoder", type=int, default=512)
    options = start(parse, QUICK)
    device = torch.device(options.device)
    what = f"ResNet-{options.depth} + 3x{options.decoder}, {VIEWS} views of {options.image_size}, batch {options.batch}"
    rows: list[Any] = []
    works = {
        "ours, bf16": _work(Step(options, torch.bfloat16, device)),
        "ours, fp32": _work(Step(options, torch.float32, device)),
        "as published, fp32": _work(Published(options, torch.float32, device)),
        "as published with its reports, fp32": _work(PublishedWithReports(options, torch.float32, device)),
    }
    for ours in ("ours, bf16", "ours, fp32"):
        if options.only in ours:
            others = {name: work for name, work in works.items() if name == ours or "fp32" in name}
            rows += compare(
                f"{what}, {ours[6:]}", "exams", options.batch, {ours: works[ours], **others}, options.rounds
            )
    write(rows, options, ("transformers",))


def _work(step: Step) -> Callable[[], None]:
    def work() -> None:
        float(step.update())  # waits for the device

    return work


if __name__ == "__main__":
    main()
