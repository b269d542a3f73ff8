"""Measures the speed of the parts of a training step on this machine: `make bench`.

Prints a table, and with `--out FILE` writes it as JSON with machine, versions and date.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.table import report
from framework.exam import BOS, Features
from framework.models.generation import generate
from plugins.dataset.phantom import Phantom
from plugins.decoder.transformer import Transformer
from plugins.encoder.resnet import ResNet
from plugins.encoder.tiny_cnn import TinyCnn

EXAMS, VIEWS, WORDS, LONGEST = 16, 2, 160, 60


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest time of several repeats, after a warm-up."""
    work()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)


def training(module: torch.nn.Module, *inputs: object) -> Callable[[], None]:
    def step() -> None:
        found = module(*inputs)
        (found.pooled_BD if isinstance(found, Features) else found).sum().backward()

    return step


@torch.no_grad()
def greedy_without_cache(decoder: Transformer, features: Features) -> torch.Tensor:
    """Runs the whole decoder again for every token, as the published code does."""
    tokens = torch.full((EXAMS, 1), BOS)
    for _ in range(LONGEST):
        tokens = torch.cat([tokens, decoder(features, tokens)[:, -1:].argmax(-1)], 1)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    image = torch.rand(EXAMS, VIEWS, 1, 128, 128)
    mask = torch.ones(EXAMS, VIEWS, dtype=torch.bool)
    patches = torch.randn(EXAMS, 32, 256)
    features = Features(patches, torch.ones(EXAMS, 32, dtype=torch.bool), patches.mean(1))
    decoder = Transformer(vocabulary_size=WORDS, feature_width=256, max_length=LONGEST, layers=2, width=192, heads=6)
    tokens = torch.randint(4, WORDS, (EXAMS, LONGEST))
    view = Phantom(exams=1).splits()["train"][0].views[0]
    rows = [("phantom image, 160 px", "images/s", 1 / seconds(view.load))]
    encoders = {
        "resnet 10, width 32": ResNet(channels=1, depth=10, width=32),
        "resnet 18, width 64": ResNet(channels=1, depth=18),
        "tiny_cnn, width 64": TinyCnn(channels=1),
    }
    for name, encoder in encoders.items():
        rows.append(
            (f"{name}, 128 px, forward + backward", "images/s", EXAMS * VIEWS / seconds(training(encoder, image, mask)))
        )
    rows.append(
        ("transformer 2 x 192, forward + backward", "reports/s", EXAMS / seconds(training(decoder, features, tokens)))
    )
    decoder.eval()
    with torch.no_grad():
        decoder.lm_head.bias[2] = -1e9  # no report ends early, so all searches generate the same length
    for num_beams in (1, 3):
        rate = EXAMS / seconds(
            lambda num_beams=num_beams: generate(decoder, features, max_length=LONGEST, num_beams=num_beams)
        )
        rows.append((f"{LONGEST} tokens with a cache, num_beams {num_beams}", "reports/s", rate))
    rows.append(
        (
            f"{LONGEST} tokens without a cache, greedy",
            "reports/s",
            EXAMS / seconds(lambda: greedy_without_cache(decoder, features)),
        )
    )
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    report(machine, rows, options.out)


if __name__ == "__main__":
    main()
