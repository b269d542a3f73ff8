"""The parts of a model as three programs without our code: encoder, prefill and step of the decoder.

    encoder  images, view_mask -> patches, patch_mask, pooled
    prefill  features          -> logits of the first word, cache
    step     tokens, cache     -> logits of the next word, what it changes in the cache

Shapes: B batch, V views, C channels, H W image, N patches, D width, W words in the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from framework.exam import BOS, Features, scaled
from framework.models.cache import tensors_of, with_tensors
from framework.models.exporting import exporting
from framework.runtime.errors import UserError, first_line

FIELDS = {"patches": {"patches": "patches_BND", "patch_mask": "patch_mask_BN"}, "pooled": {"pooled": "pooled_BD"}}
NEXT = "next_"  # before the name of an input of `step`: the output that takes its place in the next step
# Sizes in two examples, by which the axes of a cache are recognized.
AXES = {(3, 2): "batch", (21, 29): "patches", (4, 6): "length"}
SIZES = {name: sizes for sizes, name in AXES.items()}

Shape = tuple[int | str, ...]  # an axis of any size is a name
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Program:
    """An exported program from tensors to tensors, each by its name.

    Attributes:
        inputs, outputs: shapes by name, in order.
        types: of the elements of each tensor, such as float32.
    """

    name: str
    exported: ExportedProgram
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    types: Mapping[str, str]


class _Encoder(nn.Module):
    def __init__(self, encoder: Any, gives: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.gives = encoder, gives

    def forward(self, inputs: Tensors) -> Tensors:
        features = self.encoder(scaled(inputs["images"]), inputs["view_mask"])
        return tensors_of_features(features, self.gives)


class _Prefill(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, inputs: Tensors) -> Tensors:
        logits_BW, cache = first_step(self.decoder, features_of(inputs))
        return {"logits": logits_BW, **tensors_of(cache)}


class _Step(nn.Module):
    """A step on the tensors of a cache.

    Args:
        cache: has the parts of that cache.
        changed: names of the tensors that a step changes.
    """

    def __init__(self, decoder: Any, cache: Any, changed: Sequence[str]) -> None:
        super().__init__()
        self.decoder, self.cache, self.changed = decoder, cache, changed

    def forward(self, inputs: Tensors) -> Tensors:
        logits_BW, cache = self.decoder.step(inputs["tokens"], with_tensors(self.cache, inputs))
        after = tensors_of(cache)
        return {"logits": logits_BW, **{NEXT + name: after[name] for name in self.changed}}


def tensors_of_features(features: Features, words: Sequence[str]) -> Tensors:
    """The tensors that an encoder gives or a decoder needs, of `patches` and `pooled`."""
    return {name: getattr(features, field) for word in words for name, field in FIELDS[word].items()}


def features_of(tensors: Mapping[str, Tensor]) -> Features:
    """Features of which only these tensors are known."""
    fields = {field: tensors.get(name) for names in FIELDS.values() for name, field in names.items()}
    return Features(**fields)  # type: ignore[arg-type]


def first_step(decoder: Any, features: Features) -> tuple[Tensor, Any]:
    """Logits of the first word, and the cache after BOS."""
    known = next(tensor for tensor in features if tensor is not None)
    bos_B = torch.full((known.shape[0],), BOS, device=known.device)
    logits_BW, cache = decoder.step(bos_B, decoder.init_cache(features))
    return logits_BW, cache


def random_images(batch: int, views: int, channels: int, size: int) -> Tensor:
    """The same in every call, uint8 [B, V, C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, views, channels, size, size), dtype=torch.uint8, generator=generator)


def max_views(encoder: Any) -> int | None:
    """The most views of an exam that an encoder takes; None for any number."""
    position_VD = getattr(encoder, "position_VD", None)
    return None if position_VD is None else len(position_VD)


def encoder_program(encoder: Any, gives: Sequence[str], channels: int, size: int) -> Program:
    """The encoder for any batch, number of views and image size, or for images of `size` if it takes no others.

    Raises:
        UserError: `unsupported`.
    """
    batch, views = SIZES["batch"][0], 1 if max_views(encoder) == 1 else 2
    inputs = {"images": random_images(batch, views, channels, size)}
    inputs["view_mask"] = torch.ones(batch, views, dtype=torch.bool)
    module = _Encoder(encoder, gives)
    outputs = {name: _shape(tensor, ("batch", "patches")) for name, tensor in module(inputs).items()}

    def export(height: int | str, width: int | str) -> Program:
        of_views = ("batch", 1 if views == 1 else "views")
        shapes = {"images": (*of_views, channels, height, width), "view_mask": of_views}
        return _export("encoder", encoder, module, inputs, shapes, outputs)

    with contextlib.suppress(Exception):  # the encoder is built for one size, which the tracer says in its own ways
        program = export("height", "width")
        # By an odd number, since an encoder may take multiples of its patch only, which an ONNX graph does not check.
        other = {"images": random_images(1, views, channels, size + 37), "view_mask": inputs["view_mask"][:1]}
        found, expected = program.exported.module()(other), module(other)
        if all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4) for name in expected):
            return program
    return export(size, size)


def decoder_programs(decoder: Any, needs: Sequence[str], feature_width: int) -> list[Program]:
    """Prefill and step of a decoder.

    Raises:
        UserError: `unsupported`.
    """
    features = [tensors_of_features(_example_features(n, feature_width), needs) for n in (0, 1)]
    try:
        caches = [_example_cache(decoder, features[n], SIZES["length"][n]) for n in (0, 1)]
        first, second = map(tensors_of, caches)
    except NotImplementedError as error:
        raise _unsupported("decoder", decoder, error) from error
    shapes = {name: _axes(name, tensor, second[name]) for name, tensor in first.items()}
    inputs = {"tokens": torch.full((SIZES["batch"][0],), BOS)}
    inputs |= {name: tensor.contiguous() for name, tensor in first.items()}
    logits_BW, cache = decoder.step(inputs["tokens"], with_tensors(caches[0], inputs))
    changed = [name for name, tensor in tensors_of(cache).items() if tensor is not inputs[name]]
    logits: Shape = ("batch", logits_BW.shape[-1])
    of_features = {name: _axes(name, tensor, features[1][name]) for name, tensor in features[0].items()}
    longer: dict[int | str, str] = {"length": "length + 1"}
    after = {NEXT + name: tuple(longer.get(size, size) for size in shapes[name]) for name in changed}
    step = _Step(decoder, caches[0], changed)
    return [
        _export("prefill", decoder, _Prefill(decoder), features[0], of_features, {"logits": logits, **shapes}),
        _export("step", decoder, step, inputs, {"tokens": ("batch",), **shapes}, {"logits": logits, **after}),
    ]


def _example_features(example: int, width: int) -> Features:
    batch, patches = SIZES["batch"][example], SIZES["patches"][example]
    generator = torch.Generator().manual_seed(0)
    patches_BND = torch.randn(batch, patches, width, generator=generator)
    mask_BN = torch.ones(batch, patches, dtype=torch.bool)
    mask_BN[-1, patches // 2 :] = False
    return Features(patches_BND, mask_BN, torch.randn(batch, width, generator=generator))


def _example_cache(decoder: Any, features: Tensors, length: int) -> Any:
    """The cache after this number of tokens."""
    logits_BW, cache = first_step(decoder, features_of(features))
    for _ in range(length - 1):
        logits_BW, cache = decoder.step(torch.full((len(logits_BW),), BOS), cache)
    return cache


def _axes(name: str, first: Tensor, second: Tensor) -> Shape:
    """The shape of a tensor of two examples; an axis of an unknown kind has a name of its own."""
    sizes = enumerate(zip(first.shape, second.shape, strict=True))
    return tuple(a if a == b else AXES.get((a, b), f"{name}_{axis}") for axis, (a, b) in sizes)


def _shape(tensor: Tensor, names: Sequence[str]) -> Shape:
    """The shape of an encoder's output; [B, D] has one name, [B, N] and [B, N, D] have two."""
    known = 1 if tensor.dim() == 2 and tensor.is_floating_point() else 2
    return (*names[:known], *tensor.shape[known:])


def _export(
    name: str,
    part: nn.Module,
    module: nn.Module,
    inputs: Tensors,
    shapes: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
) -> Program:
    dynamic = {
        each: {axis: Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str)}
        for each, shape in shapes.items()
    }
    try:
        with exporting():
            exported = torch.export.export(module.eval(), (inputs,), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # whatever the tracer or the part raises
        raise _unsupported("encoder" if name == "encoder" else "decoder", part, error) from error
    types = {each: str(tensor.dtype).removeprefix("torch.") for each, tensor in {**inputs, **module(inputs)}.items()}
    return Program(name, exported, shapes, outputs, types)


def _unsupported(kind: str, part: nn.Module, error: Exception) -> UserError:
    found = f"{type(part).__name__} cannot be exported ({first_line(error)})"
    hint = "sonoscribe.load uses the model as it is."
    return UserError("unsupported", found, place=f"model.{kind}", hint=hint)
