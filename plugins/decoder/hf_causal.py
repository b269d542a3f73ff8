"""A causal language model of transformers as a decoder: the visual features stand before the report as a prefix.

Shapes: B batch, N patches, P positions before the report, D width of the features, H width of the language model,
T tokens, W words in the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ARCHITECTURES

from framework.exam import BOS, EOS, PAD, UNK, Features
from framework.models.blocks import eval_frozen_modules
from framework.models.external_weights import external_weights_of
from framework.models.pretrained import (
    add_lora,
    changed,
    config_from,
    config_of,
    first_position,
    folder_of,
    new_config,
    new_model,
    only_measured,
    plain_config,
    positions_of,
    read_model,
    read_tokenizer,
    require_all,
    require_known,
    require_one_source,
)
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.console import print0
from framework.text.vocabulary import special_ids_of, subwords_of

KEY = "model.decoder"
OURS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "is_decoder", "add_cross_attention")
OTHER_STEPS = ("git",)  # architectures that attend otherwise one word at a time than to a whole report
BARRED = -100.0  # logit of a sign that the language model has no word for: finite, and as good as never


@register("decoder", "hf_causal")
class HfCausal(nn.Module):
    """Causal language model with the projected patches as its first positions; frozen, trained whole, or by LoRA.

    With the tokenizer `hf` of the same folder the model keeps its words. With any other tokenizer new embeddings are
    learned, even where every word is a piece, and a frozen model cannot use them. R2GenGPT's shallow alignment
    is a frozen model and frozen encoder, its deep one a frozen model and a trained encoder, its delta one a frozen
    model and an encoder with `lora_rank`.

    Source:
        Wang et al. 2023, arXiv 2309.09812 (R2GenGPT), section 3; LoRA: Hu et al. 2021, arXiv 2106.09685, equation 3;
        pooling by queries: Lee et al. 2019, arXiv 1810.00825, section 3.2 (PMA).

    Args:
        architecture: A causal language model of transformers such as gpt2 or llama, trained from scratch.
        config: Values of its configuration, such as num_hidden_layers; with `weights`, those that leave shapes alone.
        weights: A model to start from, in place of `architecture`: a folder, or a name on the model hub.
        tuning: What is trained of the language model: `full`, all of it; `frozen`, nothing; `lora`, matrices beside its
            frozen weights.
        queries: Positions that the patches are pooled into, by learned attention; 0: each patch is one. [tokens]
        prompt: Text between the image and the report, in the words of `weights`; null: none.
        lora_rank: Width of LoRA's matrices. [channels]
        lora_alpha: Factor of what LoRA adds, times the rank.
        lora_dropout: Share of units dropped before LoRA's matrices. [share]
        lora_targets: Names of the linear maps that LoRA changes, such as q_proj; null: those usual for the model.
    """

    words_W: Tensor
    signs_4: Tensor
    prompt_T: Tensor

    needs = ("patches",)
    gives = ("logits",)
    settings = ("words_W", "signs_4", "prompt_T")

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        max_length: int,
        vocabulary: list[str] | None = None,
        hf_config: dict | None = None,
        architecture: str | None = None,
        config: dict = {},  # noqa: B006
        weights: str | None = None,
        tuning: Literal["full", "frozen", "lora"] = "full",
        queries: NonNegativeInt = 0,
        prompt: str | None = None,
        lora_rank: PositiveInt = 16,
        lora_alpha: PositiveInt = 16,
        lora_dropout: Fraction = 0.1,
        lora_targets: list[str] | None = None,
    ) -> None:
        super().__init__()
        require_one_source(KEY, architecture, weights, hf_config, config, OURS, "the tokenizer and the decoder")
        if tuning != "lora" and (lora_rank, lora_alpha, lora_dropout, lora_targets) != (16, 16, 0.1, None):
            raise ValueError(
                f"{KEY}: lora_rank, lora_alpha, lora_dropout and lora_targets are for tuning: lora, and tuning is "
                f"{tuning}; set tuning: lora, or take them out"
            )
        if architecture is not None and (tuning != "full" or prompt is not None):
            raise ValueError(f"{KEY}.{'prompt' if prompt else 'tuning'}: is for weights that were trained before")
        self.max_length = max_length
        folder = None
        if hf_config is not None:
            begun = _Begun(_new(config_from(hf_config)), hf_config["keeps_words"], prompt=hf_config["prompt"])
        elif weights is not None:
            folder = folder_of(weights, f"{KEY}.weights")
            begun = _of_folder(folder, weights, config, tuning, prompt, vocabulary, vocabulary_size)
        else:
            made = new_config(str(architecture), config, ARCHITECTURES, KEY)
            made.vocab_size = vocabulary_size
            _take_signs(made)
            begun = _Begun(_new(made), keeps_words=False)
        self.model, self.keeps_words = begun.model, begun.keeps_words
        # Noted, as it hangs on the sign of padding, which other words may have moved since.
        self.first_position = first_position(self.model) if hf_config is None else hf_config["first_position"]
        takes = inspect.signature(self.model.forward).parameters
        self._require_prefix_model(takes)
        self._keeps_logits = "logits_to_keep" in takes
        self.hf_config, self.external_weights = None, None
        if architecture is None:
            self.hf_config = {
                "config": plain_config(self.model.config),
                "keeps_words": begun.keeps_words,
                "prompt": list(begun.prompt),
                "first_position": self.first_position,
            }
        self.register_buffer("words_W", torch.arange(vocabulary_size) if begun.words_W is None else begun.words_W)
        self.register_buffer("signs_4", torch.zeros(4) if begun.signs_4 is None else begun.signs_4)
        self.register_buffer("prompt_T", torch.tensor(begun.prompt, dtype=torch.long))
        if tuning == "lora":
            add_lora(self.model, lora_rank, lora_alpha, lora_dropout, lora_targets, KEY)
        elif tuning == "frozen":
            self.model.requires_grad_(False)
        if folder is not None and tuning != "full":
            self.external_weights = external_weights_of(self, "model", str(weights), folder)
        width = self.model.get_input_embeddings().embedding_dim
        self.project = nn.Sequential(nn.Linear(feature_width, width), nn.LayerNorm(width))
        self.pool = _Pool(queries, width) if queries else None

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]: at t, of the word that follows `tokens_BT[:, : t + 1]`."""
        prefix_BPH, mask_BP = self._prefix(features)
        words_BTH = self._embed(tokens_BT)
        mask = torch.cat([mask_BP, mask_BP.new_ones(tokens_BT.shape)], dim=1)
        logits = self._run(torch.cat([prefix_BPH, words_BTH], dim=1), mask, None, tokens_BT.shape[1])
        return self._of_words(logits[:, -tokens_BT.shape[1] :])

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The state before the first word: keys and values of the prefix, and which of its positions count."""
        prefix_BPH, mask_BP = self._prefix(features)
        cache = DynamicCache()
        self._run(prefix_BPH, mask_BP, cache, 1)
        return {"mask": mask_BP, "past": _tensors(cache)}

    def step(self, tokens_B: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next word, and the state with this one in its cache."""
        mask = torch.cat([state["mask"], state["mask"].new_ones(len(tokens_B), 1)], dim=1)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(state["past"]):
            cache.update(keys, values, layer)
        logits = self._run(self._embed(tokens_B[:, None]), mask, cache, 1)
        return self._of_words(logits[:, -1]), {"mask": mask, "past": _tensors(cache)}

    def train(self, mode: bool = True) -> HfCausal:
        super().train(mode)
        eval_frozen_modules(self.model)
        return self

    def _prefix(self, features: Features) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P, H] of what stands before the report, and which of them count.

        Raises:
            ValueError: they leave the language model no room for the longest report.
        """
        patches_BNH = self.project(features.patches_BND)
        mask_BN = features.patch_mask_BN
        if self.pool is not None:
            prefix = self.pool(patches_BNH, mask_BN)
            mask = mask_BN.new_ones(prefix.shape[:2])
        else:
            # Gaps come first, as padding does elsewhere: no word is then further from the patches than without them.
            order_BN = mask_BN.to(torch.uint8).argsort(dim=1, stable=True)
            prefix = patches_BNH.gather(1, order_BN[..., None].expand_as(patches_BNH))
            mask = mask_BN.gather(1, order_BN)
        if len(self.prompt_T):
            prompt_BTH = self.model.get_input_embeddings()(self.prompt_T).expand(len(prefix), -1, -1)
            prefix = torch.cat([prefix, prompt_BTH.to(prefix.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(prompt_BTH.shape[:2])], dim=1)
        self._require_room(prefix.shape[1] + self.max_length)
        return prefix, mask

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(self.words_W[tokens_BT])

    def _run(self, embedded_BSH: Tensor, mask_BS: Tensor, cache: Any, last: int) -> Tensor:
        """Logits of the language model at least at the `last` positions."""
        place_BS = (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, -embedded_BSH.shape[1] :]
        return self.model(
            inputs_embeds=embedded_BSH,
            attention_mask=mask_BS.long(),
            position_ids=self.first_position + place_BS,
            past_key_values=cache,
            use_cache=cache is not None,
            **({"logits_to_keep": last} if self._keeps_logits else {}),
        ).logits

    def _require_room(self, positions: int) -> None:
        """Raises ValueError where the language model has fewer: at the first batch, not at the first long report."""
        most = positions_of(self.model)
        if positions > most:
            raise ValueError(
                f"{KEY}: {positions} positions (patches, prompt and report), the language model has {most}. "
                "Pool the patches (queries: 32), lower evaluate.max_length, or raise config.max_position_embeddings"
            )

    def _of_words(self, logits: Tensor) -> Tensor:
        """Logits of our words from those of the model's."""
        if not self.keeps_words:
            return logits
        found = logits.index_select(-1, self.words_W)
        return torch.cat([found[..., :4] + self.signs_4.to(found.dtype), found[..., 4:]], dim=-1)

    def _require_prefix_model(self, takes: Collection[str]) -> None:
        lacking = [name for name in ("inputs_embeds", "position_ids", "past_key_values") if name not in takes]
        if lacking or getattr(self.model, "_is_stateful", False):
            raise ValueError(
                f"{KEY}: {self.model.config.model_type} does not take {', '.join(lacking) or 'a cache of attention'}, "
                "which a prefix of patches needs; take a model such as gpt2, llama, qwen2 or mistral"
            )


class _Begun(NamedTuple):
    """A language model as training finds it, and how our words are told in its own."""

    model: Any
    keeps_words: bool
    prompt: Sequence[int] = ()  # as ids of the model's own
    words_W: Tensor | None = None  # the model's id of each of our words; None: ours are its own
    signs_4: Tensor | None = None  # what is added to the logits of our four signs


def _of_folder(
    folder: Path,
    weights: str,
    values: dict[str, Any],
    tuning: str,
    prompt: str | None,
    vocabulary: list[str] | None,
    vocabulary_size: int,
) -> _Begun:
    """A language model with the weights of a folder, which keeps its words where they are those of the tokenizer.

    Raises:
        ValueError: the folder does not fit; or a frozen model or a prompt needs words that it does not keep.
    """
    model = _from_weights(folder, values)
    tokenizer: Any = read_tokenizer(folder, f"{KEY}.weights") if vocabulary else None
    kept = _words_of(tokenizer, folder, vocabulary, model.config.vocab_size) if vocabulary else None
    if kept is None:
        if tuning != "full":
            raise ValueError(
                f"{KEY}.tuning: {tuning} leaves the embeddings of {weights} as they are, and the tokenizer has "
                f"other words; set data.tokenizer: {{name: hf, weights: {weights}}}, or tuning: full"
            )
        if prompt is not None:
            raise ValueError(f"{KEY}.prompt: needs the words of {weights}; set data.tokenizer: hf")
        _learn_words_anew(model, vocabulary_size)
        begun = _Begun(model, keeps_words=False)
        told = "learns its words anew, since the tokenizer is not the one beside its weights"
    else:
        asked = () if prompt is None else tokenizer(prompt, add_special_tokens=False)["input_ids"]
        begun = _Begun(model, True, asked, *kept)
        told = "keeps its words, which are those of the tokenizer"
    if not only_measured():
        print0(f"the language model of {weights} {told}")
    return begun


class _Pool(nn.Module):
    """A fixed number of learned queries that attend to the patches."""

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.query_QH = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_BNH: Tensor, mask_BN: Tensor) -> Tensor:
        query_BQH = self.query_QH.expand(len(patches_BNH), -1, -1).to(patches_BNH.dtype)
        seen, _ = self.attention(query_BQH, patches_BNH, patches_BNH, key_padding_mask=~mask_BN, need_weights=False)
        return self.norm(query_BQH + seen)


def _tensors(cache: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values of each layer, batch first: what beam search can reorder, in every version of transformers."""
    return tuple((layer[0], layer[1]) for layer in cache)


def _new(config: Any) -> Any:
    return new_model(_class_of(config), config, KEY)


def _class_of(config: Any) -> Any:
    """The class of a configuration, which is told that no word sees those behind it: BERT's kin ask for that."""
    if config.model_type in OTHER_STEPS:
        raise ValueError(
            f"{KEY}: {config.model_type} gives other words one at a time than for a whole report; take a model such as "
            "gpt2, llama, qwen2 or mistral"
        )
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _from_weights(folder: Path, values: dict[str, Any]) -> Any:
    config = config_of(folder, f"{KEY}.weights")
    require_known(config.model_type, ARCHITECTURES, [config.model_type], f"{KEY}.weights")
    config = changed(config, values, KEY)
    model, missing = read_model(_class_of(config), folder, config, KEY)
    require_all(missing, folder, KEY)
    return model


def _words_of(tokenizer: Any, folder: Path, vocabulary: list[str], size: int) -> tuple[Tensor, Tensor] | None:
    """The model's id of each of our words, and what to add to the logits of our four signs.

    None where the vocabulary is not the whole one of the tokenizer beside the weights: words that happen to be pieces
    of it too would be read and written as pieces that its reports are never cut into.

    Args:
        tokenizer: the one beside the weights, in `folder`.
        size: words that the model knows.

    Raises:
        ValueError: the model has no word that ends a text.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    whole, theirs = subwords_of(tokenizer.backend_tokenizer, special_ids_of(tokenizer))
    if vocabulary != whole or max(theirs, default=size) >= size:
        return None
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"{KEY}.weights: the tokenizer in {folder} has no eos_token, so no report would end")
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    unknown = tokenizer.unk_token_id
    signs = torch.zeros(4)
    signs[[PAD, BOS]] = BARRED  # never a target
    signs[UNK] = BARRED if unknown is None or unknown == end else 0.0
    ids = {PAD: end, BOS: begin, EOS: end, UNK: end if unknown is None else unknown}
    return torch.tensor([*(ids[sign] for sign in range(4)), *theirs]), signs


def _take_signs(config: Any) -> None:
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, BOS, EOS


def _learn_words_anew(model: Any, vocabulary_size: int) -> None:
    """New embeddings and head for another vocabulary, drawn as the model draws its own."""
    model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
    _take_signs(model.config)
    spread = getattr(model.config, "initializer_range", 0.02)
    for part in {id(p): p for p in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        nn.init.normal_(part.weight, std=spread)
        if getattr(part, "padding_idx", None) is not None:
            part.padding_idx = PAD
        if getattr(part, "bias", None) is not None:
            nn.init.zeros_(part.bias)
