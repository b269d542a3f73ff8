"""BERTScore: how near each piece of a report comes to some piece of the reference, as a language model sees them."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from framework.exam import Pair
from framework.models.device import on_cpu
from framework.models.pretrained import load_text_encoder, max_positions, read_config, weights_folder
from framework.registry import register
from framework.scoring.dependencies import LastRows

KEY = "metric bertscore"


class _Text(NamedTuple):
    """A text as the model sees it."""

    pieces: tuple[int, ...]
    vectors_TD: Tensor  # of length 1


@register("metric", "bertscore")
class BertScore:
    """Greedy matching of word pieces by the cosine of their vectors in a language model, as a mean over reports.

    Precision is the mean over the prediction's pieces of the cosine with the nearest piece of the reference, recall the
    same from the reference's side, and `bertscore` their F1; `bertscore/precision` and `bertscore/recall` stand beside
    it. Equal to the package bert-score without rescaling. -1 to 1, and in practice 0.6 to 1: only scores by the same
    model, layer and `idf` compare. An empty report scores 0. Longer texts than the model takes are cut, with a warning.

    Args:
        weights: The model: a folder with config.json, tokenizer and model.safetensors, or a name on the model hub, such
            as bert-base-chinese. An encoder such as BERT, of the reports' language.
        layer: Whose output the vectors are; none is the last. The authors' choice for bert-base-uncased is 9, for
            bert-base-chinese 8, for roberta-large 17. [layers]
        idf: Rare pieces weigh more: by log((N + 1) / (n + 1)) of the N references that are scored, n of which hold it.
            Not of the training reports, as for the authors; so scores of different splits do not compare.
        batch_size: Texts that the model reads at a time. [reports]

    Source:
        Zhang et al. 2020, arXiv 1904.09675, section 3.

    Raises:
        ValueError: the model does not load, is no encoder, or has fewer layers.
    """

    names = ("bertscore",)
    by_words = False
    higher_is_better = True

    def __init__(
        self, *, weights: str, layer: PositiveInt | None = None, idf: bool = False, batch_size: PositiveInt = 32
    ) -> None:
        folder = weights_folder(weights, f"{KEY}.weights")
        config = read_config(folder, f"{KEY}.weights")
        layers = getattr(config, "num_hidden_layers", 0)
        if config.is_encoder_decoder or not layers:
            raise ValueError(
                f"metric bertscore.weights: '{weights}' is a {config.model_type}; expected an encoder such as BERT"
            )
        if layer is not None and layer > layers:
            raise ValueError(f"metric bertscore.layer: {layer}, and '{weights}' has {layers} layers")
        self.tokenizer, self.model = load_text_encoder(folder, config, KEY)
        self.layer, self.idf, self.batch_size = layer or layers, idf, batch_size
        self.limit = min(int(self.tokenizer.model_max_length), max_positions(self.model))
        self.signs = frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        self._last = LastRows()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, or an empty reference."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        if empty := sum(not pair.prediction.strip() for pair in pairs):
            warnings.warn(f"BERTScore: {empty} of {len(pairs)} predictions are empty; each counts as 0", stacklevel=2)
        texts = {text.strip() for pair in pairs for text in (pair.prediction, pair.reference)}
        if cut := sum(len(self._pieces(text)) > self.limit for text in texts):
            warnings.warn(
                f"BERTScore: {cut} texts are longer than the {self.limit} pieces that the model takes; the rest of "
                "each is not scored",
                stacklevel=2,
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: precision, recall, their F1, and 1. With `idf`, pieces weigh as in all of `pairs`."""
        if not pairs:
            raise ValueError("BERTScore of no reports: the split is empty")
        for pair in pairs:
            if not pair.reference.strip():
                raise ValueError(f"BERTScore: the reference of exam {pair.exam_id} is empty")
        return self._last.of(pairs, lambda: self._rows(pairs))

    def _rows(self, pairs: Sequence[Pair]) -> np.ndarray:
        asked = [(pair.prediction.strip(), pair.reference.strip()) for pair in pairs]
        pieces = {text: self._cut(self._pieces(text)) for text in sorted({text for each in asked for text in each})}
        held = Counter(piece for _, true in asked for piece in set(pieces[true]))

        def weight_of(piece: int) -> float:
            if piece in self.signs:
                return 0.0
            return math.log((len(asked) + 1) / (held[piece] + 1)) if self.idf else 1.0

        self.model.to("cpu" if on_cpu() else "cuda")
        try:
            found = self._matched(asked, pieces, weight_of)
        finally:
            self.model.to("cpu")  # the memory of the GPU is the trained model's
        return np.array([(*found[each], 1.0) for each in asked], dtype=np.float64)

    def _matched(
        self,
        asked: Sequence[tuple[str, str]],
        pieces: Mapping[str, tuple[int, ...]],
        weight_of: Callable[[int], float],
    ) -> dict[tuple[str, str], tuple[float, float, float]]:
        """Precision, recall and F1 of each pair of texts, by the model where it is."""
        found: dict[tuple[str, str], tuple[float, float, float]] = {}
        different = sorted(set(asked), key=lambda each: len(pieces[each[0]]) + len(pieces[each[1]]))
        for start in range(0, len(different), self.batch_size):
            batch = different[start : start + self.batch_size]
            seen = dict(self._see({text: pieces[text] for each in batch for text in each if text}))
            for told, true in batch:
                found[told, true] = self._match(seen.get(told), seen[true], weight_of)
        return found

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The values of sums over exams, [..., 4]: means."""
        precision, recall, f1 = (sums[..., place] / sums[..., 3] for place in range(3))
        return {"bertscore": f1, "bertscore/precision": precision, "bertscore/recall": recall}

    def _pieces(self, text: str) -> tuple[int, ...]:
        # A space before it, so that byte-level tokenizers cut the first word like every other.
        return tuple(self.tokenizer(f" {text}", verbose=False)["input_ids"])

    def _cut(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        """As many pieces as the model takes, the last one, its own sign, among them."""
        return pieces if len(pieces) <= self.limit else (*pieces[: self.limit - 1], pieces[-1])[: self.limit]

    def _see(self, pieces: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, _Text]]:
        """The model's view of each text, some at a time, those of like length together."""
        device = self.model.device
        texts = sorted(pieces, key=lambda text: (len(pieces[text]), text))
        padding = self.tokenizer.pad_token_id or 0
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            longest = len(pieces[batch[-1]])
            piece_BT = torch.full((len(batch), longest), padding)
            mask_BT = torch.zeros_like(piece_BT)
            for row, text in enumerate(batch):
                piece_BT[row, : len(pieces[text])] = torch.tensor(pieces[text])
                mask_BT[row, : len(pieces[text])] = 1
            with torch.no_grad():
                told = self.model(
                    input_ids=piece_BT.to(device), attention_mask=mask_BT.to(device), output_hidden_states=True
                )
            vectors_BTD = torch.nn.functional.normalize(told.hidden_states[self.layer].float(), dim=-1)
            for row, text in enumerate(batch):
                yield text, _Text(pieces[text], vectors_BTD[row, : len(pieces[text])])

    def _match(self, told: _Text | None, true: _Text, weight_of: Callable[[int], float]) -> tuple[float, float, float]:
        """Precision, recall and F1. A text's own signs ([CLS]) may be matched, but count nothing, as in bert-score."""
        if told is None:
            return 0.0, 0.0, 0.0
        cosine_TT = (told.vectors_TD @ true.vectors_TD.T).double().cpu().numpy()
        precision = self._mean(cosine_TT.max(1), told.pieces, weight_of)
        recall = self._mean(cosine_TT.max(0), true.pieces, weight_of)
        together = precision + recall
        return precision, recall, 2 * precision * recall / together if together else 0.0

    @staticmethod
    def _mean(nearest_T: np.ndarray, pieces: Sequence[int], weight_of: Callable[[int], float]) -> float:
        weights = np.array([weight_of(piece) for piece in pieces])
        return float(nearest_T @ weights / weights.sum()) if weights.any() else 0.0
