"""What a decoder keeps between the tokens of a search, and how it follows beams and exams.

A cache is a nest of dicts, lists and tuples. Each of its tensors has one row for each beam of each exam, the beams of
an exam side by side. A `CacheLeaf` moves its rows itself: `PerExam` has one row for all beams of an exam, `LayerCache`
and `BeamPast` never copy the past of a beam.

Shapes: B exams, K beams, R rows (B x K), H heads, T tokens so far, L the longest report, N patches, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moves:
    """Exams of a batch that take the places of finished ones, so that the first `count` rows are those that remain."""

    target: Tensor
    source: Tensor
    count: int

    @staticmethod
    def closing_gaps(finished_B: Tensor) -> Moves:
        """Moves the last unfinished exams to the places of finished ones; no other exam changes its place."""
        count = int((~finished_B).sum())
        target, source = finished_B[:count].nonzero().flatten(), (~finished_B[count:]).nonzero().flatten() + count
        return Moves(target, source, count)

    def rows(self, num_beams: int) -> Tensor:
        """The rows that remain of a tensor with one row for each beam, [R]."""
        exam_B = torch.arange(self.count, device=self.target.device)
        exam_B[self.target] = self.source
        return (exam_B[:, None] * num_beams + torch.arange(num_beams, device=exam_B.device)).flatten()

    def apply(self, rows: Tensor) -> Tensor:
        """The remaining rows of a tensor with one row for each exam. Changes the tensor."""
        rows[self.target] = rows[self.source]
        return rows[: self.count]


class CacheLeaf:
    """A part of a cache that moves its rows itself."""

    def expand(self, num_beams: int) -> None:
        """Each exam gets `num_beams` equal beams. Changes nothing if the part has none yet."""

    def reorder(self, parents_BK: Tensor) -> None:
        """Each beam continues the beam `parents_BK` of its exam."""
        raise NotImplementedError

    def move(self, moves: Moves, num_beams: int) -> None:
        """Keeps the exams that remain."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a program of one step takes and returns, of one beam for each exam, by name."""
        raise NotImplementedError(f"{type(self).__name__} in the decoder's cache offers no `tensors`")

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> CacheLeaf:
        """This part of another cache, with the tensors of that one. Changes nothing."""
        raise NotImplementedError


class PerExam(CacheLeaf):
    """A tensor with one row for each exam, which all of its beams read."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.owned = value, False

    def reorder(self, parents_BK: Tensor) -> None:
        """Changes nothing."""

    def move(self, moves: Moves, num_beams: int) -> None:
        if not self.owned:  # the caller may still need it
            self.value, self.owned = self.value.clone(), True
        self.value = moves.apply(self.value)

    def tensors(self) -> dict[str, Tensor]:
        return {"": self.value}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> PerExam:
        return PerExam(tensors[""])


class BeamPast(CacheLeaf):
    """Which beam wrote each position in the past of a beam.

    A beam that continues another one shares its past. Keys and values stay where they were written, and the mask admits
    to each beam the positions of all beams that are in its past.

    Args:
        length: positions to make room for.
    """

    def __init__(self, length: int) -> None:
        self.length, self.written = length, 0
        self.writer_BKL: Tensor | None = None

    def advance(self, batch: int, beams: int, device: torch.device) -> Tensor | None:
        """Adds a position. Returns where each beam attends, bool [B, 1, K, T x K]; None for one beam."""
        self.written += 1
        if beams == 1:
            return None
        beam_K = torch.arange(beams, device=device)
        if self.writer_BKL is None:
            self.writer_BKL = beam_K[None, :, None].repeat(batch, 1, self.length)
        self.writer_BKL[:, :, self.written - 1] = beam_K
        return (self.writer_BKL[:, None, :, : self.written, None] == beam_K).flatten(3)

    def reorder(self, parents_BK: Tensor) -> None:
        assert self.writer_BKL is not None, "beams are reordered after a step"
        past = self.writer_BKL[..., : self.written]
        past.copy_(past.gather(1, parents_BK[..., None].expand_as(past)))

    def move(self, moves: Moves, num_beams: int) -> None:
        if self.writer_BKL is not None:
            self.writer_BKL = moves.apply(self.writer_BKL)

    def tensors(self) -> dict[str, Tensor]:
        """None: a beam that is alone has written all of its past."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> BeamPast:
        return BeamPast(self.length)


KeyValues = tuple[Tensor, Tensor]


def _each(change: Callable[[Tensor], Tensor], key_values: KeyValues) -> KeyValues:
    return change(key_values[0]), change(key_values[1])


class LayerCache(CacheLeaf):
    """Keys and values of a decoder layer: of the tokens so far, and of the memory that it attends to.

    Args:
        length: positions to make room for.
    """

    def __init__(self, length: int) -> None:
        self.length, self.written = length, 0
        self.self_attn: KeyValues | None = None  # [B, H, L, K, d] each
        self.cross_attn: KeyValues | None = None  # [B, H, N, d] each

    def append(self, new: KeyValues) -> KeyValues:
        """Adds the next token of each beam [B, H, K, d]. Returns all tokens of all beams, [B, H, T x K, d]."""
        if self.self_attn is None:
            batch, heads, beams, width = new[0].shape
            self.self_attn = _each(lambda tensor: tensor.new_empty(batch, heads, self.length, beams, width), new)
        for stored, tensor in zip(self.self_attn, new):
            stored[:, :, self.written] = tensor
        self.written += 1
        return _each(lambda stored: stored[:, :, : self.written].flatten(2, 3), self.self_attn)

    def store(self, cross_attn: KeyValues) -> KeyValues:
        """Keeps keys and values of the memory, head by head, as every step reads them."""
        self.cross_attn = _each(Tensor.contiguous, cross_attn)
        return self.cross_attn

    def reorder(self, parents_BK: Tensor) -> None:
        """Changes nothing: `BeamPast` knows the past of each beam."""

    def move(self, moves: Moves, num_beams: int) -> None:
        if self.self_attn is not None:
            for stored in self.self_attn:
                moves.apply(stored[:, :, : self.written])
            self.self_attn = _each(lambda stored: stored[: moves.count], self.self_attn)
        if self.cross_attn is not None:
            self.cross_attn = _each(moves.apply, self.cross_attn)

    def tensors(self) -> dict[str, Tensor]:
        assert self.self_attn is not None and self.cross_attn is not None, "a step has been made"
        keys, values = _each(lambda stored: stored[:, :, : self.written, 0], self.self_attn)
        return {"keys": keys, "values": values, "cross_keys": self.cross_attn[0], "cross_values": self.cross_attn[1]}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> LayerCache:
        return _GrowingLayerCache(tensors)


class _GrowingLayerCache(LayerCache):
    """A layer's cache in a program: a step returns longer tensors and changes none, and T is a symbol."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        keys = tensors["keys"]
        super().__init__(keys.shape[2])
        self.written = keys.shape[2]
        self.self_attn = keys[:, :, :, None], tensors["values"][:, :, :, None]
        self.cross_attn = tensors["cross_keys"], tensors["cross_values"]

    def append(self, new: KeyValues) -> KeyValues:
        assert self.self_attn is not None
        keys, values = (torch.cat([past, each[:, :, None]], 2) for past, each in zip(self.self_attn, new))
        self.self_attn, self.written = (keys, values), self.written + 1
        return _each(lambda stored: stored.flatten(2, 3), self.self_attn)


def expand_beams(cache: Any, num_beams: int) -> Any:
    """The cache with `num_beams` equal rows for each row."""
    if num_beams == 1:
        return cache
    return _map(cache, lambda rows: rows.repeat_interleave(num_beams, 0), lambda leaf: leaf.expand(num_beams))


def reorder_beams(cache: Any, parents_BK: Tensor) -> Any:
    """The cache after each beam has become a copy of the beam `parents_BK` of its exam."""
    rows_R = beam_rows(parents_BK)
    return _map(cache, lambda tensor: tensor.index_select(0, rows_R), lambda leaf: leaf.reorder(parents_BK))


def move_exams(cache: Any, moves: Moves, num_beams: int) -> Any:
    """The cache of the exams that remain."""
    return _map(
        cache, lambda rows: rows.index_select(0, moves.rows(num_beams)), lambda leaf: leaf.move(moves, num_beams)
    )


def beam_rows(parents_BK: Tensor) -> Tensor:
    """The row of each beam's parent, [R]."""
    first_B1 = torch.arange(0, parents_BK.numel(), parents_BK.shape[1], device=parents_BK.device)[:, None]
    return (first_B1 + parents_BK).flatten()


def _map(cache: Any, select: Callable[[Tensor], Tensor], leaf: Callable[[CacheLeaf], None]) -> Any:
    if isinstance(cache, Tensor):
        return select(cache)
    if isinstance(cache, CacheLeaf):
        leaf(cache)
    elif isinstance(cache, dict):
        return {key: _map(value, select, leaf) for key, value in cache.items()}
    elif isinstance(cache, (list, tuple)):
        return type(cache)(_map(value, select, leaf) for value in cache)
    return cache


def tensors_of(cache: Any, name: str = "cache") -> dict[str, Tensor]:
    """The tensors of a cache of one beam for each exam, by their path in it, such as `cache.layers.0.keys`.

    Raises:
        NotImplementedError: a part of the cache does not offer `tensors`.
    """
    if isinstance(cache, Tensor):
        return {name: cache}
    if isinstance(cache, CacheLeaf):
        return {f"{name}.{own}".rstrip("."): tensor for own, tensor in cache.tensors().items()}
    return {path: tensor for key, part in _parts(cache) for path, tensor in tensors_of(part, f"{name}.{key}").items()}


def with_tensors(cache: Any, tensors: Mapping[str, Tensor], name: str = "cache") -> Any:
    """A cache like `cache` with tensors of these names. What is neither a tensor nor a leaf is the same in both."""
    if isinstance(cache, Tensor):
        return tensors[name]
    if isinstance(cache, CacheLeaf):
        return cache.with_tensors({own: tensors[f"{name}.{own}".rstrip(".")] for own in cache.tensors()})
    parts = {key: with_tensors(part, tensors, f"{name}.{key}") for key, part in _parts(cache)}
    if isinstance(cache, dict):
        return parts
    return type(cache)(parts.values()) if isinstance(cache, (list, tuple)) else cache


def _parts(cache: Any) -> list[tuple[Any, Any]]:
    if isinstance(cache, dict):
        return list(cache.items())
    return list(enumerate(cache)) if isinstance(cache, (list, tuple)) else []
