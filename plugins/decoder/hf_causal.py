"""A causal language model of transformers as decoder: the projected patches are a prefix of the report.

Shapes: B batch, N patches, P positions of the prefix, D width of the features, H width of the language model,
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
from framework.models.cache import CacheLeaf, Moves, beam_rows
from framework.models.external_weights import external_weights_of
from framework.models.pretrained import (
    add_lora,
    config_from_dict,
    config_to_dict,
    first_position,
    load_pretrained,
    load_tokenizer,
    max_positions,
    new_config,
    new_model,
    read_config,
    require_architecture,
    require_no_missing_weights,
    require_one_source,
    skips_weight_loading,
    update_config,
    weights_folder,
)
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.text.vocabulary import special_ids_of, subwords_of

KEY = "model.decoder"
DERIVED = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "is_decoder", "add_cross_attention")
STEP_DIFFERS = ("git",)  # architectures that attend differently with a cache than to a whole sequence
TAKE_ANOTHER = "Take a model such as gpt2, llama, qwen2 or mistral."
BANNED = -100.0  # logit of a special token that the language model lacks: finite, with a probability near 0


@register("decoder", "hf_causal")
class HfCausal(nn.Module):
    """Causal language model with the projected patches as its first positions; frozen, fully trained, or with LoRA.

    With the tokenizer `hf` of the same folder the model keeps its embeddings. With any other tokenizer new embeddings
    are learned, which a frozen model cannot do. In R2GenGPT the language model is frozen; the encoder is frozen in its
    shallow alignment, trained in the deep one, and has a `lora_rank` in the delta one.

    Source:
        Wang et al. 2023, arXiv 2309.09812 (R2GenGPT), section 3; LoRA: Hu et al. 2021, arXiv 2106.09685, equation 3;
        pooling by queries: Lee et al. 2019, arXiv 1810.00825, section 3.2 (PMA).

    Args:
        architecture: Causal language model of transformers such as gpt2 or llama, trained from scratch.
        config: Values of its configuration, such as num_hidden_layers; with `weights`, none that change shapes.
        weights: Pretrained model in place of `architecture`: a folder, or a name on the model hub.
        tuning: `full` trains the whole language model, `frozen` nothing of it, `lora` low-rank matrices beside its
            frozen weights.
        queries: Learned queries that pool the patches by attention; 0 makes each patch a position. [tokens]
        prompt: Text between patches and report, in the vocabulary of `weights`; null for none.
        lora_rank: Rank of LoRA's matrices. [channels]
        lora_alpha: LoRA scaling factor; the update is multiplied by lora_alpha / lora_rank.
        lora_dropout: Dropout probability before LoRA's matrices. [share]
        lora_targets: Names of the linear layers with LoRA, such as q_proj; null for peft's defaults of the model.
    """

    model_ids_W: Tensor
    special_bias_4: Tensor
    prompt_T: Tensor

    needs = ("patches",)
    gives = ("logits",)
    settings = ("model_ids_W", "special_bias_4", "prompt_T")

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
        require_one_source(KEY, architecture, weights, hf_config, config, DERIVED, "the tokenizer and the decoder")
        if tuning != "lora" and (lora_rank, lora_alpha, lora_dropout, lora_targets) != (16, 16, 0.1, None):
            raise UserError(
                "ignored-setting",
                f"lora_rank, lora_alpha, lora_dropout and lora_targets have no effect with tuning: {tuning}",
                place=KEY,
                hint="Set tuning: lora, or remove them.",
            )
        if architecture is not None and (tuning != "full" or prompt is not None):
            raise UserError(
                "conflicting-settings",
                f"{'prompt' if prompt else 'tuning'} needs pretrained weights",
                place=f"{KEY}.{'prompt' if prompt else 'tuning'}",
                hint="Set weights in place of architecture.",
            )
        self.max_length = max_length
        folder = None
        if hf_config is not None:
            initial = _InitialModel(
                _new(config_from_dict(hf_config)), hf_config["keeps_vocabulary"], prompt=hf_config["prompt"]
            )
        elif weights is not None:
            folder = weights_folder(weights, f"{KEY}.weights")
            initial = _from_folder(folder, weights, config, tuning, prompt, vocabulary, vocabulary_size)
        else:
            lm_config = new_config(str(architecture), config, ARCHITECTURES, KEY)
            lm_config.vocab_size = vocabulary_size
            _set_special_ids(lm_config)
            initial = _InitialModel(_new(lm_config), keeps_vocabulary=False)
        self.model, self.keeps_vocabulary = initial.model, initial.keeps_vocabulary
        # Saved, since it depends on padding_idx, which another vocabulary changes.
        self.first_position = first_position(self.model) if hf_config is None else hf_config["first_position"]
        parameters = inspect.signature(self.model.forward).parameters
        self._require_prefix_model(parameters)
        self._has_logits_to_keep = "logits_to_keep" in parameters
        self.hf_config, self.external_weights = None, None
        if architecture is None:
            self.hf_config = {
                "config": config_to_dict(self.model.config),
                "keeps_vocabulary": initial.keeps_vocabulary,
                "prompt": list(initial.prompt),
                "first_position": self.first_position,
            }
        model_ids_W, special_bias_4 = initial.model_ids_W, initial.special_bias_4
        self.register_buffer("model_ids_W", torch.arange(vocabulary_size) if model_ids_W is None else model_ids_W)
        self.register_buffer("special_bias_4", torch.zeros(4) if special_bias_4 is None else special_bias_4)
        self.register_buffer("prompt_T", torch.tensor(initial.prompt, dtype=torch.long))
        if tuning == "lora":
            add_lora(self.model, lora_rank, lora_alpha, lora_dropout, lora_targets, KEY)
        elif tuning == "frozen":
            self.model.requires_grad_(False)
        if folder is not None and tuning != "full":
            self.external_weights = external_weights_of(self, "model", str(weights), folder)
        width = self.model.get_input_embeddings().embedding_dim
        self.input_proj = nn.Sequential(nn.Linear(feature_width, width), nn.LayerNorm(width))
        self.pool = _QueryPooling(queries, width) if queries else None

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]; those at t are of the token that follows `tokens_BT[:, : t + 1]`."""
        prefix_BPH, mask_BP = self._prefix(features)
        words_BTH = self._embed(tokens_BT)
        mask = torch.cat([mask_BP, mask_BP.new_ones(tokens_BT.shape)], dim=1)
        logits = self._run(torch.cat([prefix_BPH, words_BTH], dim=1), mask, None, tokens_BT.shape[1])
        return self._select_vocabulary(logits[:, -tokens_BT.shape[1] :])

    def attention(self, features: Features, tokens_BT: Tensor) -> Tensor | None:
        """Where the decoder looks for each logit of `forward`, [B, T, N]: the mean of self-attention over layers and
        heads, of which the patches' part is scaled to a sum of 1. Queries pass theirs on to the patches.

        Words that no layer lets read the patches have zeros. None for a model that does not return its attention.
        """
        prefix_BPH, mask_BP = self._prefix(features)
        mask_BS = torch.cat([mask_BP, mask_BP.new_ones(tokens_BT.shape)], dim=1)
        embedded_BSH = torch.cat([prefix_BPH, self._embed(tokens_BT)], dim=1)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the others compute no weights
        try:
            layers = self._outputs(embedded_BSH, mask_BS, None, 1, output_attentions=True).attentions
        finally:
            self.model.set_attn_implementation(before)
        if not layers:
            return None
        weights_BSS = torch.stack([layer_BHSS.float().mean(1) for layer_BHSS in layers]).mean(0)
        patch_count = prefix_BPH.shape[1] - len(self.prompt_T)
        weights_BTN = weights_BSS[:, -tokens_BT.shape[1] :, :patch_count]
        if self.pool is None:  # back from left padding
            place_BN = _left_padded(features.patch_mask_BN).argsort(1)
            weights_BTN = weights_BTN.gather(2, place_BN[:, None].expand_as(weights_BTN))
        else:
            patches_BNH = self.input_proj(features.patches_BND)
            weights_BTN = weights_BTN @ self.pool.weights(patches_BNH, features.patch_mask_BN)
        return weights_BTN / weights_BTN.sum(-1, keepdim=True).clamp(min=torch.finfo(weights_BTN.dtype).tiny)

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The cache before the first token: attention mask, keys and values of the prefix."""
        prefix_BPH, mask_BP = self._prefix(features)
        past = DynamicCache()
        self._run(prefix_BPH, mask_BP, past, 1)
        return {"attention_mask": mask_BP, "past_key_values": _KeyValues(past)}

    def step(self, tokens_R: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [R, W] of the next token, and the cache with `tokens_R` in it."""
        before, past = cache["attention_mask"], cache["past_key_values"]
        mask = torch.cat([before, before.new_ones(len(tokens_R), 1)], dim=1)
        logits = self._run(self._embed(tokens_R[:, None]), mask, past.value, 1)
        return self._select_vocabulary(logits[:, -1]), {"attention_mask": mask, "past_key_values": past}

    def train(self, mode: bool = True) -> HfCausal:
        super().train(mode)
        eval_frozen_modules(self.model)
        return self

    def _prefix(self, features: Features) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P, H] of patches and prompt, and their attention mask [B, P].

        Raises:
            UserError: `out-of-range` if they leave the language model too few positions for the longest report.
        """
        patches_BNH = self.input_proj(features.patches_BND)
        mask_BN = features.patch_mask_BN
        if self.pool is not None:
            prefix = self.pool(patches_BNH, mask_BN)
            mask = mask_BN.new_ones(prefix.shape[:2])
        else:
            order_BN = _left_padded(mask_BN)
            prefix = patches_BNH.gather(1, order_BN[..., None].expand_as(patches_BNH))
            mask = mask_BN.gather(1, order_BN)
        if len(self.prompt_T):
            prompt_BTH = self.model.get_input_embeddings()(self.prompt_T).expand(len(prefix), -1, -1)
            prefix = torch.cat([prefix, prompt_BTH.to(prefix.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(prompt_BTH.shape[:2])], dim=1)
        self._require_room(prefix.shape[1] + self.max_length)
        return prefix, mask

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(self.model_ids_W[tokens_BT])

    def _run(self, embedded_BSH: Tensor, mask_BS: Tensor, past: DynamicCache | None, last: int) -> Tensor:
        """Logits of the language model at the `last` positions, or at all."""
        return self._outputs(embedded_BSH, mask_BS, past, last).logits

    def _outputs(
        self, embedded_BSH: Tensor, mask_BS: Tensor, past: DynamicCache | None, last: int, **options: bool
    ) -> Any:
        position_BS = (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, -embedded_BSH.shape[1] :]
        return self.model(
            inputs_embeds=embedded_BSH,
            attention_mask=mask_BS.long(),
            position_ids=self.first_position + position_BS,
            past_key_values=past,
            use_cache=past is not None,
            **({"logits_to_keep": last} if self._has_logits_to_keep else {}),
            **options,
        )

    def _require_room(self, positions: int) -> None:
        """Fails at the first batch rather than at the first long report."""
        limit = max_positions(self.model)
        if positions > limit:
            raise UserError(
                "out-of-range",
                f"patches, prompt and report take {positions} positions",
                place=KEY,
                expected=f"at most {limit}, the positions of the language model",
                hint="Pool the patches (queries: 32), lower evaluate.max_length, or raise "
                "config.max_position_embeddings.",
            )

    def _select_vocabulary(self, logits: Tensor) -> Tensor:
        """Logits of our vocabulary from those of the model's."""
        if not self.keeps_vocabulary:
            return logits
        selected = logits.index_select(-1, self.model_ids_W)
        special = selected[..., :4] + self.special_bias_4.to(selected.dtype)
        return torch.cat([special, selected[..., 4:]], dim=-1)

    def _require_prefix_model(self, parameters: Collection[str]) -> None:
        lacking = [name for name in ("inputs_embeds", "position_ids", "past_key_values") if name not in parameters]
        if lacking or getattr(self.model, "_is_stateful", False):
            raise UserError(
                "unsupported",
                f"{self.model.config.model_type} does not take {', '.join(lacking) or 'an attention cache'}",
                place=KEY,
                hint=TAKE_ANOTHER,
            )


class _InitialModel(NamedTuple):
    """A language model before training, and the mapping of our vocabulary to its own."""

    model: Any
    keeps_vocabulary: bool
    prompt: Sequence[int] = ()  # the model's ids
    model_ids_W: Tensor | None = None  # the model's id of each of our tokens; None: the same ids
    special_bias_4: Tensor | None = None  # added to the logits of the four special tokens


def _from_folder(
    folder: Path,
    weights: str,
    values: dict[str, Any],
    tuning: str,
    prompt: str | None,
    vocabulary: list[str] | None,
    vocabulary_size: int,
) -> _InitialModel:
    """A language model with the weights of a folder; it keeps its vocabulary if it is that of the tokenizer.

    Raises:
        UserError: the folder does not load, or `does-not-fit` if a frozen model or a prompt needs its vocabulary and
            the tokenizer has another.
    """
    model = _from_weights(folder, values)
    tokenizer: Any = load_tokenizer(folder, f"{KEY}.weights") if vocabulary else None
    mapping = _map_vocabulary(tokenizer, folder, vocabulary, model.config.vocab_size) if vocabulary else None
    if mapping is None:
        if tuning != "full" or prompt is not None:
            key = "tuning" if tuning != "full" else "prompt"
            raise UserError(
                "does-not-fit",
                f"the tokenizer has another vocabulary than {weights}, which {key}: {prompt or tuning} needs",
                place=f"{KEY}.{key}",
                hint=f"Set data.tokenizer: {{name: hf, weights: {weights}}}"
                + (", or tuning: full." if key == "tuning" else ", or remove prompt."),
            )
        _new_embeddings(model, vocabulary_size)
        initial = _InitialModel(model, keeps_vocabulary=False)
        message = "learns new embeddings, since the tokenizer is not the one beside its weights"
    else:
        prompt_ids = () if prompt is None else tokenizer(prompt, add_special_tokens=False)["input_ids"]
        initial = _InitialModel(model, True, prompt_ids, *mapping)
        message = "keeps its embeddings, since the tokenizer is the one beside its weights"
    if not skips_weight_loading():
        print0(f"the language model of {weights} {message}")
    return initial


class _QueryPooling(nn.Module):
    """A fixed number of learned queries that attend to the patches."""

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.query_QH = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_BNH: Tensor, mask_BN: Tensor) -> Tensor:
        query_BQH = self._queries(patches_BNH)
        attended, _ = self.attention(query_BQH, patches_BNH, patches_BNH, key_padding_mask=~mask_BN, need_weights=False)
        return self.norm(query_BQH + attended)

    def weights(self, patches_BNH: Tensor, mask_BN: Tensor) -> Tensor:
        """What each query reads of each patch, [B, Q, N]: the mean over heads."""
        query_BQH = self._queries(patches_BNH)
        weights_BQN: Tensor = self.attention(query_BQH, patches_BNH, patches_BNH, key_padding_mask=~mask_BN)[1]
        return weights_BQN.float()

    def _queries(self, patches_BNH: Tensor) -> Tensor:
        return self.query_QH.expand(len(patches_BNH), -1, -1).to(patches_BNH.dtype)


class _KeyValues(CacheLeaf):
    """The cache of transformers, which adds tokens in place."""

    def __init__(self, value: DynamicCache) -> None:
        self.value = value

    def expand(self, num_beams: int) -> None:
        self.value.batch_repeat_interleave(num_beams)

    def reorder(self, parents_BK: Tensor) -> None:
        self.value.batch_select_indices(beam_rows(parents_BK))

    def move(self, moves: Moves, num_beams: int) -> None:
        self.value.batch_select_indices(moves.rows(num_beams))


def _left_padded(mask_BN: Tensor) -> Tensor:
    """The order of the patches in the prefix, [B, N]: missing ones first, where they do not move the others away from
    the report.
    """
    return mask_BN.to(torch.uint8).argsort(dim=1, stable=True)


def _new(config: Any) -> Any:
    return new_model(_class_of(config), config, KEY)


def _class_of(config: Any) -> Any:
    """The model class of a configuration."""
    if config.model_type in STEP_DIFFERS:
        raise UserError(
            "unsupported",
            f"{config.model_type} gives other logits with a cache than for a whole report",
            place=KEY,
            hint=TAKE_ANOTHER,
        )
    if hasattr(config, "is_decoder"):  # causal attention in BERT and its descendants
        config.is_decoder = True
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _from_weights(folder: Path, values: dict[str, Any]) -> Any:
    config = read_config(folder, f"{KEY}.weights")
    require_architecture(config.model_type, ARCHITECTURES, [config.model_type], f"{KEY}.weights")
    config = update_config(config, values, KEY)
    model, missing = load_pretrained(_class_of(config), folder, config, KEY)
    require_no_missing_weights(missing, folder, KEY)
    return model


def _map_vocabulary(tokenizer: Any, folder: Path, vocabulary: list[str], size: int) -> tuple[Tensor, Tensor] | None:
    """The model's id of each of our tokens, and the bias of the logits of our four special tokens.

    None if the vocabulary is not exactly that of the tokenizer beside the weights: words that happen to be subwords of
    it would be mapped to subwords into which it never splits a report.

    Args:
        tokenizer: the one beside the weights, in `folder`.
        size: vocabulary size of the model.

    Raises:
        UserError: `unsupported` if the tokenizer has no eos_token.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    subwords, model_ids = subwords_of(tokenizer.backend_tokenizer, special_ids_of(tokenizer))
    if vocabulary != subwords or max(model_ids, default=size) >= size:
        return None
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "unsupported",
            f"the tokenizer in {folder} has no eos_token, so no report would end",
            place=f"{KEY}.weights",
            hint="Take other weights, or set eos_token in its tokenizer_config.json.",
        )
    bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    unk = tokenizer.unk_token_id
    bias = torch.zeros(4)
    bias[[PAD, BOS]] = BANNED  # never a target
    bias[UNK] = BANNED if unk is None or unk == eos else 0.0
    special = {PAD: eos, BOS: bos, EOS: eos, UNK: eos if unk is None else unk}
    return torch.tensor([*(special[id] for id in range(4)), *model_ids]), bias


def _set_special_ids(config: Any) -> None:
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, BOS, EOS


def _new_embeddings(model: Any, vocabulary_size: int) -> None:
    """New embeddings and head for another vocabulary, initialized as the model initializes its own."""
    model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
    _set_special_ids(model.config)
    std = getattr(model.config, "initializer_range", 0.02)
    for part in {id(p): p for p in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        nn.init.normal_(part.weight, std=std)
        if getattr(part, "padding_idx", None) is not None:
            part.padding_idx = PAD
        if getattr(part, "bias", None) is not None:
            nn.init.zeros_(part.bias)
