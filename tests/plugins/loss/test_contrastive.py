"""The loss `contrastive` against a formula of loops, and on two processes against one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from harness import problem, records
from torch import Tensor

from framework.distributed.gather_exams import gather_exams, no_gather
from framework.exam import BOS, EOS, PAD, Batch, Features, Outputs
from plugins.loss.contrastive import Contrastive

ROWS = [[4, 5, 6], [7, 8], [4, 5, 6], [9, 4, 4, 5], [6], [7, 8], [8, 7]]  # two reports occur twice


def batch(rows: list[list[int]]) -> Batch:
    longest = max(map(len, rows)) + 2
    report = torch.tensor([[BOS, *row, EOS, *[PAD] * (longest - len(row) - 2)] for row in rows])
    return Batch([str(row) for row in rows], torch.zeros(len(rows), 1), torch.ones(len(rows), 1), report)


def pooled(rows: slice = slice(None)) -> Tensor:
    drawn = torch.randn(len(ROWS), 5, generator=torch.Generator().manual_seed(2))
    return drawn[rows].clone().requires_grad_()


def outputs(pooled_BD: Tensor) -> Outputs:
    return Outputs(Features(None, None, pooled_BD), None)


def made(**keys: object) -> Contrastive:
    torch.manual_seed(1)
    return Contrastive(vocabulary_size=10, feature_width=5, width=4, **{"temperature": 0.2, **keys})


def by_hand(loss: Contrastive, rows: list[list[int]], images: Tensor, mask: bool) -> Tensor:
    """The same loss, written in loops."""
    image = [vector / vector.norm() for vector in images @ loss.image.weight.T + loss.image.bias]
    report = []
    for row in rows:
        mean = sum(loss.words.weight[word] for word in row) / len(row)
        vector = loss.report.weight @ mean + loss.report.bias
        report.append(vector / vector.norm())
    total, temperature = torch.zeros(()), torch.exp(-loss.log_scale_1[0])
    for own in range(len(rows)):
        others = [n for n in range(len(rows)) if n == own or not (mask and rows[n] == rows[own])]
        to_report = {n: torch.exp(image[own] @ report[n] / temperature) for n in others}
        to_image = {n: torch.exp(report[own] @ image[n] / temperature) for n in others}
        for found in (to_report, to_image):
            total = total - torch.log(found[own] / sum(found.values())) / 2
    return total


@pytest.mark.parametrize("mask", [True, False])
def test_the_loss_is_the_mean_cross_entropy_of_both_directions(mask: bool) -> None:
    loss, images = made(mask_same=mask), pooled()
    total, expected = loss(batch(ROWS), outputs(images)), by_hand(loss, ROWS, images, mask)
    torch.testing.assert_close(total, expected)
    inputs = [images, *loss.parameters()]
    for one, two in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert loss.count(batch(ROWS)) == len(ROWS)


def test_an_identical_report_is_a_negative_only_without_mask_same() -> None:
    rows = [[4, 5, 6]] * 3
    images = pooled(slice(0, 3))
    assert made()(batch(rows), outputs(images)) == 0, "no negative is left"
    assert made(mask_same=False)(batch(rows), outputs(images)) > 1


@pytest.mark.parametrize("log_scale", [math.log(1000), 25.0, 90.0])
def test_a_temperature_beyond_the_bound_is_clamped_and_has_a_gradient(log_scale: float) -> None:
    loss = made()
    loss.log_scale_1.data.fill_(log_scale)
    assert float(loss._scale().detach()) == pytest.approx(100)
    loss._scale().sum().backward()
    assert loss.log_scale_1.grad.item() > 0


def test_a_temperature_below_the_bound_is_refused() -> None:
    with problem("out-of-range", place="losses.contrastive.temperature"):
        made(temperature=0.005)
    assert float(made(temperature=0.01)._scale().detach()) == pytest.approx(100)


def test_training_lowers_the_loss() -> None:
    rows, images = ROWS[3:6], pooled(slice(3, 6)).detach()
    loss = made()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = last = None
    for _ in range(60):
        last = loss(batch(rows), outputs(images)) / len(rows)
        first = first or last.item()
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
    assert first > 1 and last < 0.1


CUT = (slice(0, 2), slice(2, 7))  # of unequal size, and the longest report is in the second


def _one_of_two(rank: int, folder: str) -> None:
    """One of two processes; sums are added over the processes, as the trainer does."""
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss, images = made(), pooled(CUT[rank])
    total = loss(batch(ROWS[CUT[rank]]), outputs(images))
    total.backward()
    summed = [total.detach().clone(), *(weight.grad for weight in loss.parameters())]
    for value in summed:
        dist.all_reduce(value)
    with no_gather():
        mine, first = gather_exams(images)
        assert mine is images and first == 0
    torch.save([*summed, images.grad], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_batches_give_the_value_and_gradients_of_one(tmp_path: Path) -> None:
    # Spawned, since a fork hangs if an earlier test has started threads of torch.
    multiprocessing.start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    loss, images = made(), pooled()
    total = loss(batch(ROWS), outputs(images))
    total.backward()
    for value, expected in zip(found[0], [total.detach(), *(weight.grad for weight in loss.parameters())]):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.cat([each[-1] for each in found]), images.grad)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_run_on_two_processes_equals_one_on_one_process(exact_run: Callable[..., Path], strategy: str) -> None:
    term = "+losses.contrastive={weight: 0.5, width: 16}"
    one = exact_run(term)
    other = exact_run(term, f"distributed.strategy={strategy}", processes=2, by="torchrun")
    for name in ("train/loss", "train/contrastive"):
        first, second = records(one, name), records(other, name)
        assert first.keys() == second.keys() and max(abs(first[step] - second[step]) for step in first) < 1e-4
    assert min(records(one, "train/contrastive").values()) < 0.8 * records(one, "train/contrastive")[1]
