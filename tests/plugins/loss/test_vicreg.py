"""The loss `vicreg` against a formula of loops, what it does to a collapse, and on two processes against one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from harness import records
from torch import Tensor

from framework.exam import Batch, Outputs
from plugins.loss.vicreg import VICReg

MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()  # eight views of four exams
VIEWS = int(MASK.sum())


def batch(mask_BV: Tensor = MASK) -> Batch:
    exams = len(mask_BV)
    return Batch([str(row) for row in range(exams)], torch.zeros(exams, 1), mask_BV, torch.zeros(exams, 2))


def copies(rows: slice = slice(None)) -> Tensor:
    drawn = torch.randn(2, VIEWS, 5, generator=torch.Generator().manual_seed(2))
    return drawn[:, rows].clone().requires_grad_()


def outputs(copies_2MD: Tensor) -> Outputs:
    return Outputs(None, None, copies_2MD=copies_2MD)


def made(**keys: float) -> VICReg:
    torch.manual_seed(1)
    return VICReg(feature_width=5, width=4, **keys)


def by_hand(one: Tensor, other: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """The mean over views, from the embeddings, written in loops."""
    views, width = one.shape
    distance = sum((one[view] - other[view]).square().sum() / width for view in range(views)) / views
    shortfall, squares = 0, 0
    for embedding in (one, other):
        table = torch.cov(embedding.T)
        stds = [(table[place, place] + 1e-4).sqrt() for place in range(width)]
        shortfall += sum(torch.clamp(1 - std, min=0) for std in stds) / width / 2
        squares += sum(table[a, b] ** 2 for a in range(width) for b in range(width) if a != b) / width
    return invariance * distance + variance * shortfall + covariance * squares


@pytest.mark.parametrize("factors", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)])
def test_the_term_divided_by_its_count_is_the_formula(factors: tuple[float, float, float]) -> None:
    loss, given = made(**dict(zip(("invariance", "variance", "covariance"), factors))), copies()
    mean = loss(batch(), outputs(given)).total / loss.count(batch())
    expected = by_hand(*loss.expander(given), *factors)
    torch.testing.assert_close(mean, expected)
    (found,), (wanted,) = torch.autograd.grad(mean, [given]), torch.autograd.grad(expected, [given])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert loss.count(batch()) == VIEWS, "missing views do not count"


def test_metrics_are_1_for_features_that_spread_alike_and_0_for_a_collapse() -> None:
    loss = made()
    many = torch.randn(2, 4000, 5, generator=torch.Generator().manual_seed(0))
    found = loss(batch(torch.ones(4000, 1, dtype=torch.bool)), outputs(many)).metrics
    assert found["feature_std"].item() / 4000 == pytest.approx(1, abs=0.02)
    one = copies()[:1, :1].expand(2, VIEWS, 5)
    assert [value.item() for value in loss(batch(), outputs(one)).metrics.values()] == pytest.approx([0] * 3, abs=1e-4)


def test_a_collapse_has_a_high_loss_and_nearly_equal_features_are_driven_apart() -> None:
    loss = made()
    one = copies()[:1, :1].expand(2, VIEWS, 5)
    assert (loss(batch(), outputs(one)).total / VIEWS).item() == pytest.approx(25 * (1 - 1e-2), rel=1e-3)
    close = (one + 1e-2 * copies()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(batch(), outputs(close)).total, [close])
    moved = close - 1e-4 * gradient
    assert moved.std(1).mean() > close.std(1).mean()


def test_a_single_view_gives_a_finite_loss_and_gradient() -> None:
    loss, given = made(), copies(slice(0, 1))
    total = loss(batch(torch.ones(1, 1, dtype=torch.bool)), outputs(given)).total
    total.backward()
    assert total.isfinite() and given.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in loss.parameters())


CUT = ((slice(0, 1), slice(0, 2)), (slice(1, 4), slice(2, 8)))  # exams and views of each process, of unequal numbers


def _one_of_two(rank: int, folder: str) -> None:
    """One of two processes; sums are added over the processes, as the trainer does."""
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    exams, views = CUT[rank]
    loss, given = made(), copies(views)
    term = loss(batch(MASK[exams]), outputs(given))
    term.total.backward()
    summed = [term.total.detach().clone(), *term.metrics.values(), *(weight.grad for weight in loss.parameters())]
    summed = [value.detach().clone() for value in summed]
    for value in summed:
        dist.all_reduce(value)
    torch.save([*summed, given.grad], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_unequal_batches_give_the_value_and_gradients_of_one(tmp_path: Path) -> None:
    # Spawned, since a fork hangs if an earlier test has started threads of torch.
    multiprocessing.start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    loss, given = made(), copies()
    term = loss(batch(), outputs(given))
    term.total.backward()
    expected = [term.total, *term.metrics.values(), *(weight.grad for weight in loss.parameters())]
    for value, wanted in zip(found[0], expected):
        torch.testing.assert_close(value, wanted.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([each[-1] for each in found], 1), given.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_run_on_two_processes_equals_one_on_one_process(exact_run: Callable[..., Path], strategy: str) -> None:
    keys = ("data.augment=jitter", "+losses.vicreg={weight: 0.1, width: 16}")
    one = exact_run(*keys)
    other = exact_run(*keys, f"distributed.strategy={strategy}", processes=2, by="torchrun")
    for name in ("train/loss", "train/vicreg", "train/vicreg/feature_std"):
        first, second = records(one, name), records(other, name)
        assert first.keys() == second.keys()
        assert max(abs(first[step] - second[step]) for step in first if step <= 4) < 1e-3, "rounding grows later"
