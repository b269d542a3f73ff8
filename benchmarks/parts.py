"""Forward and backward of encoders and the decoder, and the drawing of a phantom image.

A ResNet of the same size of transformers is beside ours. `decoding` measures generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import ResNetConfig, ResNetModel

from benchmarks.rounds import compare, parser, start, write
from framework.exam import Features
from plugins.dataset.phantom import Phantom
from plugins.decoder.transformer import Transformer
from plugins.encoder.resnet import ResNet
from plugins.encoder.tiny_cnn import TinyCnn

DEVICES = ("cpu", "cuda")
VIEWS, WORDS, WIDTH, PATCHES = 2, 160, 256, 32
QUICK = {"exams": 2, "image_size": 32, "tokens": 8}


def training(module: torch.nn.Module, *inputs: object) -> Callable[[], None]:
    """The work of a forward and a backward pass; the gradients of a run replace those of the run before."""

    def step() -> None:
        module.zero_grad()
        found: Any = module(*inputs)
        if isinstance(found, Features):
            found = found.pooled_BD
        elif not isinstance(found, torch.Tensor):
            found = found.pooler_output
        found.sum().backward()

    return step


def main() -> None:
    parse = parser(__doc__, DEVICES)
    parse.add_argument("--exams", type=int, default=16, help="of two views each")
    parse.add_argument("--image-size", type=int, default=128)
    parse.add_argument("--tokens", type=int, default=60)
    options = start(parse, quick=QUICK)
    exams, size, device = options.exams, options.image_size, options.device
    torch.manual_seed(0)
    image = torch.rand(exams, VIEWS, 1, size, size, device=device)
    mask = torch.ones(exams, VIEWS, dtype=torch.bool, device=device)
    patches = torch.randn(exams, PATCHES, WIDTH, device=device)
    features = Features(patches, torch.ones(exams, PATCHES, dtype=torch.bool, device=device), patches.mean(1))
    decoder = Transformer(
        vocabulary_size=WORDS, feature_width=WIDTH, max_length=options.tokens, layers=2, width=192, heads=6
    )
    tokens = torch.randint(4, WORDS, (exams, options.tokens), device=device)
    view = Phantom(exams=1).splits()["train"][0].views[0]
    encoders = {
        "resnet 10, width 32": ResNet(channels=1, depth=10, width=32),
        "resnet 18, width 64": ResNet(channels=1, depth=18),
        "tiny_cnn, width 64": TinyCnn(channels=1),
    }
    same = ResNetConfig(
        num_channels=1, embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    theirs = training(ResNetModel(same).to(device), image.flatten(0, 1))
    measured: list[tuple[str, str, int, dict[str, Callable[[], object]]]] = [
        ("phantom image, 160 px", "images", 1, {"ours": view.load})
    ]
    for name, encoder in encoders.items():
        works = {"ours": training(encoder.to(device), image, mask)}
        works |= {"transformers": theirs} if name.startswith("resnet 18") else {}
        measured.append((f"{name}, {size} px", "images", exams * VIEWS, works))
    measured.append(("transformer 2 x 192", "reports", exams, {"ours": training(decoder.to(device), features, tokens)}))
    rows: list[Any] = []
    for what, unit, amount, works in measured:
        if options.only in what:
            rows += compare(what, unit, amount, works, options.rounds)
    write(rows, options, ("transformers",))


if __name__ == "__main__":
    main()
