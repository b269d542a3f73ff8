"""A frozen pretrained sentence encoder: unit vectors of texts, or of embeddings of their subwords.

As in sentence-transformers: a transformer, the mean over its positions (or the first one), normalized. Folders with
other modules or settings are refused.

Shapes: n texts, B batch, L subwords with special tokens, D width.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.models.device import on_cpu
from framework.models.pretrained import load_text_encoder, max_positions, read_config, weights_folder
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded

log = logging.getLogger(__name__)
PACKAGE = "package:"
PACKAGE_FOLDER = re.compile(r"([A-Za-z_]\w*)((?:/\w[\w.-]*)*)")
KEY = "sentence encoder"  # place of errors
# Files that the embeddings depend on: weights, settings, and vocabularies in all formats.
READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*/config.json")
MODULES = ("Transformer", "Pooling", "Normalize")  # supported modules of sentence-transformers
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
BATCH = 32  # texts at a time


def encoder_folder(encoder: str) -> Path:
    """The folder of an encoder's files.

    Args:
        encoder: a folder; a name on the model hub, which is downloaded to the hub's cache; or `package:NAME/FOLDER`, a
            folder inside an installed Python package, which is not imported.

    Raises:
        UserError: there is no such folder, package, or model on the hub.
    """
    return _in_package(encoder) if encoder.startswith(PACKAGE) else weights_folder(encoder, KEY)


def _in_package(encoder: str) -> Path:
    found = PACKAGE_FOLDER.fullmatch(encoder.removeprefix(PACKAGE))
    if found is None:
        expected = "package:NAME/FOLDER with the import name of the package"
        raise UserError("wrong-format", f"found '{encoder}'", place=KEY, expected=expected)
    name, inside = found.groups()
    spec = importlib.util.find_spec(name)  # a name without dots, so nothing is imported
    if spec is None or not spec.submodule_search_locations:
        hint = f"pip install {name.replace('_', '-')}, or name a folder."
        raise UserError("missing-package", f"the package '{name}' is not installed", place=KEY, hint=hint)
    folder = Path(next(iter(spec.submodule_search_locations))) / inside.strip("/")
    if not folder.is_dir():
        raise UserError("no-such-file", f"the package '{name}' has no folder '{inside.strip('/')}'", place=KEY)
    return folder


def folder_identity(folder: Path) -> str:
    """A hash of an encoder's files and the version of transformers; it does not depend on the machine."""
    found = hashlib.sha256(importlib.metadata.version("transformers").encode())
    for path in sorted({path for pattern in READ for path in folder.glob(pattern)}):
        found.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


class SentenceEncoder:
    """A transformer with its tokenizer and pooling, with frozen weights.

    It is not an `nn.Module`, so that a module that holds it does not train, save, wrap or cast it. It moves to the
    device of its inputs, and deep copies are the same object.

    Source:
        Reimers and Gurevych 2019, arXiv 1908.10084, section 3: mean pooling.

    Args:
        encoder: see `encoder_folder`.

    Attributes:
        width: D of its vectors.
        limit: maximum number of subwords, special tokens included.

    Raises:
        UserError: it does not load, is another kind of model, or uses another pooling.
    """

    def __init__(self, encoder: str) -> None:
        self.name = encoder
        self.folder = encoder_folder(encoder)
        self.pooling = self._read_pooling()
        self._tokenizer, self._model = self._load()
        self.width: int = self._model.config.hidden_size
        settings = self._read("sentence_bert_config.json", dict)
        self._lower = settings.get("do_lower_case") is True
        limits = (max_positions(self._model), self._tokenizer.model_max_length, settings.get("max_seq_length"))
        self.limit = int(min(limit for limit in limits if isinstance(limit, (int, float)) and limit > 0))
        self.pad, self.unknown = (int(self._tokenizer.convert_tokens_to_ids(token)) for token in self._special_tokens())
        around = self._tokenizer("")["input_ids"]
        one = self._tokenizer("a")["input_ids"]
        # Special tokens before and after the subwords of a text.
        before = next((index for index, id in enumerate(one) if id not in around), len(around))
        self.before, self.after = list(around[:before]), list(around[before:])
        self._check_embeddings()

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceEncoder:
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts, float32 [n, D], on the GPU if the run uses one.

        Texts longer than `limit` are truncated, with a warning. A vector depends on the other texts only by rounding.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        ids = [self._token_ids(text) for text in texts]
        if too_long := sum(len(row) > self.limit for row in ids):
            values = too_long, len(texts), self.limit, self.name
            log.warning("%d of %d texts are truncated to the %d subwords that %s takes", *values)
        end = len(self.after)
        ids = [row if len(row) <= self.limit else [*row[: self.limit - end], *self.after] for row in ids]
        device = torch.device("cpu" if on_cpu() else "cuda")
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # so that batches need little padding
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = len(ids[rows[-1]])
            id_BL = torch.tensor([ids[row] + [self.pad] * (longest - len(ids[row])) for row in rows])
            length_B = torch.tensor([len(ids[row]) for row in rows])
            mask_BL = torch.arange(longest) < length_B[:, None]
            with torch.no_grad():
                vector_BD = self.encode(self.input_embeddings(id_BL.to(device)), mask_BL.to(device))
            vectors[rows] = vector_BD.cpu().numpy()
        return vectors

    def unknown_fraction(self, texts: Sequence[str]) -> float:
        """Fraction of the subwords of the texts that are unknown."""
        ids = [id for text in texts for id in self._token_ids(text, special_tokens=False)]
        return ids.count(self.unknown) / max(len(ids), 1)

    def subword_ids(self, word: str) -> list[int]:
        """The subwords of a word inside a text, at least one.

        A space precedes the word, which some tokenizers make part of the first subword, except for Chinese and
        punctuation.
        """
        spaced = word[:1].isalnum() and not re.match("[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", word)
        ids = self._token_ids(f" {word}" if spaced else word, special_tokens=False)
        # A tokenizer that adds a space itself may return the space as a subword of its own.
        visible = [id for id in ids if self._tokenizer.decode([id]).strip()]
        return visible or [self.unknown]

    def input_embeddings(self, ids: Tensor) -> Tensor:
        """Input embeddings of subwords, float32 [..., input width], on the device of the ids."""
        return self._on(ids.device).get_input_embeddings().weight[ids]

    def encode(self, embedded_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Unit vectors [B, D] of texts that are given as embeddings of their subwords with special tokens.

        Differentiable in `embedded_BLD`. Positions and segment ids are the model's defaults.
        """
        hidden_BLD = self._on(embedded_BLD.device)(
            inputs_embeds=embedded_BLD, attention_mask=mask_BL.long()
        ).last_hidden_state
        if self.pooling == "cls":
            pooled_BD = hidden_BLD[:, 0]
        else:
            weight_BL1 = mask_BL[..., None].to(hidden_BLD.dtype)
            pooled_BD = (hidden_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1)
        return F.normalize(pooled_BD, dim=-1)

    def _on(self, device: torch.device) -> Any:
        if self._model.device != device:
            self._model.to(device)
        return self._model

    def _token_ids(self, text: str, *, special_tokens: bool = True) -> list[int]:
        text = text.lower() if self._lower else text
        # verbose=False: `embed` warns of texts that are too long.
        return list(self._tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])

    def _read(self, name: str, kind: type) -> Any:
        """A JSON file of the folder, a mapping or a list; empty if the file does not exist."""
        path = self.folder / name
        try:
            found = json.loads(read_bounded(path))
        except FileNotFoundError:
            return kind()
        except (OSError, ValueError) as error:
            raise UserError("unreadable-file", f"not JSON: {error}", place=path) from None
        if not isinstance(found, kind):
            raise UserError("wrong-type", f"a {type(found).__name__}", place=path, expected=f"a {kind.__name__}")
        return found

    def _read_pooling(self) -> str:
        """`mean` or `cls`, from the files of sentence-transformers; `mean` if the folder has none."""
        modules = {}  # type -> folder
        for part in self._read("modules.json", list):
            module = part if isinstance(part, dict) else {"type": part}
            modules[str(module.get("type")).split(".")[-1]] = str(module.get("path", ""))
        others = sorted(set(modules) - set(MODULES))
        if others:
            expected = f"only {', '.join(MODULES)}"
            raise self._unsupported(f"'{self.name}' has a module {others[0]} (modules.json)", expected)
        if prompt := self._read("config_sentence_transformers.json", dict).get("default_prompt_name"):
            raise self._unsupported(f"'{self.name}' adds a prompt, '{prompt}', to every text")
        # Only the last component of its path, so that it cannot refer outside of the folder.
        settings = self._read(f"{Path(modules.get('Pooling', '1_Pooling')).name}/config.json", dict)
        if isinstance(named := settings.get("pooling_mode", []), list):  # older versions write a flag for each mode
            flags = [POOLINGS.get(key, key) for key, on in settings.items() if key.startswith("pooling_mode_") and on]
            modes = [*map(str, named), *flags]
        else:
            modes = [str(named)]
        if modes not in ([], ["mean"], ["cls"]):
            found = f"'{self.name}' pools by {' and '.join(modes)} (1_Pooling/config.json)"
            raise self._unsupported(found, "mean or cls")
        return modes[0] if modes else "mean"

    def _load(self) -> tuple[Any, Any]:
        config = read_config(self.folder, KEY)
        if config.is_encoder_decoder or not hasattr(config, "vocab_size"):
            raise self._unsupported(f"'{self.name}' is a {config.model_type}", "a text encoder such as BERT")
        return load_text_encoder(self.folder, config, KEY)

    def _special_tokens(self) -> tuple[str, str]:
        tokens = (self._tokenizer.pad_token, self._tokenizer.unk_token)
        if None in tokens:
            missing = "padding" if tokens[0] is None else "unknown"
            raise self._unsupported(f"the tokenizer of '{self.name}' has no {missing} token")
        return tokens

    def _unsupported(self, found: str, expected: str = "") -> UserError:
        return UserError("unsupported", found, place=KEY, expected=expected, hint="Choose another model.")

    def _check_embeddings(self) -> None:
        """Raises UserError if the model does more than look up input embeddings by id."""
        id_BL = torch.tensor([[*self.before, self.unknown, *self.after]])
        mask_BL = torch.ones_like(id_BL)
        with torch.no_grad():
            by_id = self._model(input_ids=id_BL, attention_mask=mask_BL).last_hidden_state
            by_embedding = self._model(
                inputs_embeds=self.input_embeddings(id_BL), attention_mask=mask_BL
            ).last_hidden_state
        if not torch.allclose(by_id, by_embedding, atol=1e-4):
            kind = self._model.config.model_type
            raise self._unsupported(f"'{self.name}' (a {kind}) transforms its input embeddings")
