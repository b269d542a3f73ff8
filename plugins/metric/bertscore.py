"""BERTScore: similarity of a report's tokens to those of the reference in a language model's embedding space."""

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
from framework.runtime.errors import UserError
from framework.scoring.dependencies import LastResult
from framework.scoring.pairs import require_references, warn_empty_predictions

KEY = "metric bertscore"


class _Text(NamedTuple):
    """Token ids of a text and their embeddings."""

    tokens: tuple[int, ...]
    vectors_TD: Tensor  # of norm 1


@register("metric", "bertscore")
class BertScore:
    """Greedy matching of tokens by the cosine of their contextual embeddings, mean over reports.

    Precision is the mean over the prediction's tokens of the largest cosine with a token of the reference, recall the
    same from the reference's side, `bertscore` their F1; `bertscore/precision` and `bertscore/recall` are reported too.
    Equal to the package bert-score without rescaling. -1 to 1, in practice 0.6 to 1. Only scores with the same model,
    layer and `idf` compare. Empty reports score 0. Texts longer than the model's limit are truncated, with a warning.

    Args:
        weights: Text encoder such as BERT in the language of the reports: a folder with config.json, tokenizer and
            model.safetensors, or a name on the model hub such as bert-base-chinese.
        layer: Layer whose output is used; null for the last. The authors use 9 for bert-base-uncased, 8 for
            bert-base-chinese, 17 for roberta-large. [layers]
        idf: Weights tokens by log((N + 1) / (n + 1)), where n of the N scored references contain the token. The authors
            take references too, not training reports, so scores of different splits do not compare.
        batch_size: Texts per forward pass. [reports]

    Source:
        Zhang et al. 2020, arXiv 1904.09675, section 3.

    Raises:
        UserError: the model does not load, is not an encoder, or has fewer layers.
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
            raise UserError(
                "unsupported",
                f"'{weights}' is a {config.model_type}",
                place=f"{KEY}.weights",
                expected="an encoder such as BERT",
            )
        if layer is not None and layer > layers:
            raise UserError(
                "out-of-range",
                f"found {layer}",
                place=f"{KEY}.layer",
                expected=f"at most {layers}, the layers of '{weights}'",
            )
        self.tokenizer, self.model = load_text_encoder(folder, config, KEY)
        self.layer, self.idf, self.batch_size = layer or layers, idf, batch_size
        self.limit = min(int(self.tokenizer.model_max_length), max_positions(self.model))
        self.special_ids = frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        self._last = LastResult()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        warn_empty_predictions("BERTScore", pairs, by_words=False)
        texts = {text.strip() for pair in pairs for text in (pair.prediction, pair.reference)}
        if cut := sum(len(self._tokenize(text)) > self.limit for text in texts):
            warnings.warn(
                f"BERTScore: {cut} texts are longer than the model's limit of {self.limit} tokens and are truncated",
                stacklevel=2,
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: precision, recall, their F1, and 1. With `idf`, weights come from all of `pairs`."""
        require_references("BERTScore", pairs, by_words=False)
        return self._last.get(pairs, lambda: self._rows(pairs))

    def _rows(self, pairs: Sequence[Pair]) -> np.ndarray:
        asked = [(pair.prediction.strip(), pair.reference.strip()) for pair in pairs]
        tokens = {text: self._truncate(self._tokenize(text)) for text in sorted({t for each in asked for t in each})}
        documents = Counter(token for _, reference in asked for token in set(tokens[reference]))

        def weight_of(token: int) -> float:
            if token in self.special_ids:
                return 0.0
            return math.log((len(asked) + 1) / (documents[token] + 1)) if self.idf else 1.0

        self.model.to("cpu" if on_cpu() else "cuda")
        try:
            found = self._match_all(asked, tokens, weight_of)
        finally:
            self.model.to("cpu")  # the trained model needs the GPU memory
        return np.array([(*found[each], 1.0) for each in asked], dtype=np.float64)

    def _match_all(
        self,
        asked: Sequence[tuple[str, str]],
        tokens: Mapping[str, tuple[int, ...]],
        weight_of: Callable[[int], float],
    ) -> dict[tuple[str, str], tuple[float, float, float]]:
        """Precision, recall and F1 of each pair of texts."""
        found: dict[tuple[str, str], tuple[float, float, float]] = {}
        different = sorted(set(asked), key=lambda each: len(tokens[each[0]]) + len(tokens[each[1]]))
        for start in range(0, len(different), self.batch_size):
            batch = different[start : start + self.batch_size]
            embedded = dict(self._embed({text: tokens[text] for each in batch for text in each if text}))
            for prediction, reference in batch:
                found[prediction, reference] = self._match(embedded.get(prediction), embedded[reference], weight_of)
        return found

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The means from sums over exams, [..., 4]."""
        precision, recall, f1 = (sums[..., place] / sums[..., 3] for place in range(3))
        return {"bertscore": f1, "bertscore/precision": precision, "bertscore/recall": recall}

    def _tokenize(self, text: str) -> tuple[int, ...]:
        # With a leading space, byte-level tokenizers split the first word like every other.
        return tuple(self.tokenizer(f" {text}", verbose=False)["input_ids"])

    def _truncate(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """At most `limit` tokens; keeps the last one, a special token."""
        return tokens if len(tokens) <= self.limit else (*tokens[: self.limit - 1], tokens[-1])[: self.limit]

    def _embed(self, tokens: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, _Text]]:
        """Embeddings of each text, in batches of similar length."""
        device = self.model.device
        texts = sorted(tokens, key=lambda text: (len(tokens[text]), text))
        padding = self.tokenizer.pad_token_id or 0
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            longest = len(tokens[batch[-1]])
            token_BT = torch.full((len(batch), longest), padding)
            mask_BT = torch.zeros_like(token_BT)
            for row, text in enumerate(batch):
                token_BT[row, : len(tokens[text])] = torch.tensor(tokens[text])
                mask_BT[row, : len(tokens[text])] = 1
            with torch.no_grad():
                output = self.model(
                    input_ids=token_BT.to(device), attention_mask=mask_BT.to(device), output_hidden_states=True
                )
            vectors_BTD = torch.nn.functional.normalize(output.hidden_states[self.layer].float(), dim=-1)
            for row, text in enumerate(batch):
                yield text, _Text(tokens[text], vectors_BTD[row, : len(tokens[text])])

    def _match(
        self, prediction: _Text | None, reference: _Text, weight_of: Callable[[int], float]
    ) -> tuple[float, float, float]:
        """Precision, recall and F1. Special tokens ([CLS]) may be matched but have weight 0, as in bert-score."""
        if prediction is None:
            return 0.0, 0.0, 0.0
        cosine_TT = (prediction.vectors_TD @ reference.vectors_TD.T).double().cpu().numpy()
        precision = self._mean(cosine_TT.max(1), prediction.tokens, weight_of)
        recall = self._mean(cosine_TT.max(0), reference.tokens, weight_of)
        total = precision + recall
        return precision, recall, 2 * precision * recall / total if total else 0.0

    @staticmethod
    def _mean(nearest_T: np.ndarray, tokens: Sequence[int], weight_of: Callable[[int], float]) -> float:
        weights = np.array([weight_of(token) for token in tokens])
        return float(nearest_T @ weights / weights.sum()) if weights.any() else 0.0
