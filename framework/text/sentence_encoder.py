"""A pretrained sentence encoder, frozen: texts, or embeddings of their pieces, become unit vectors.

As sentence-transformers defines it: a transformer, a mean over its places (or the first one), and length 1. Only that
is read here; folders that ask for more are refused rather than half obeyed.

Shapes: n texts, B batch, L pieces with the encoder's own signs, V pieces known, D width.
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

log = logging.getLogger(__name__)
PACKAGE = "package:"
PACKAGE_FOLDER = re.compile(r"([A-Za-z_]\w*)((?:/\w[\w.-]*)*)")
KEY = "sentence encoder"  # in messages: of a distiller, or of a loss
# What the embeddings depend on. Weights first, then every way in which a folder writes its settings and pieces.
READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*/config.json")
PARTS = ("Transformer", "Pooling", "Normalize")  # the modules of sentence-transformers that are understood
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
BATCH = 32  # texts at a time


def encoder_folder(encoder: str) -> Path:
    """The folder of an encoder's files.

    Args:
        encoder: a folder, or a name on the model hub, whose files are fetched once and then read from the hub's cache;
            or `package:NAME/FOLDER`, a folder inside an installed Python package, found without importing it and
            without a path that holds on one machine only.

    Raises:
        ValueError: there is no such folder or package, or the hub does not give it.
    """
    return _in_package(encoder) if encoder.startswith(PACKAGE) else weights_folder(encoder, KEY)


def _in_package(encoder: str) -> Path:
    found = PACKAGE_FOLDER.fullmatch(encoder.removeprefix(PACKAGE))
    if found is None:
        raise ValueError(
            f"sentence encoder: cannot read '{encoder}'. Expected package:NAME/FOLDER with the package's import name"
        )
    name, inside = found.groups()
    spec = importlib.util.find_spec(name)  # of a name without dots: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"sentence encoder: '{encoder}' names the package '{name}', which is not installed. "
            f"pip install {name.replace('_', '-')}, or name a folder"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inside.strip("/")
    if not folder.is_dir():
        raise ValueError(
            f"sentence encoder: the package '{name}' is installed, but has no folder '{inside.strip('/')}'"
        )
    return folder


def folder_identity(folder: Path) -> str:
    """A hash of an encoder's files and of what reads them: the same on every machine, another for other weights."""
    found = hashlib.sha256(importlib.metadata.version("transformers").encode())
    for path in sorted({path for pattern in READ for path in folder.glob(pattern)}):
        found.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


class SentenceEncoder:
    """A transformer with its tokenizer and pooling, whose weights never change.

    It is no `nn.Module`, so that one which holds it does not train, save, wrap or cast it; it moves to the device of
    what it is given. Copies of what holds it share it.

    Source:
        Reimers and Gurevych 2019, arXiv 1908.10084, section 3: mean pooling.

    Args:
        encoder: as `encoder_folder` reads it.

    Attributes:
        width: D of its vectors.
        limit: the most pieces it takes, its own signs included. [pieces]

    Raises:
        ValueError: it does not load, is another kind of model, or pools in another way.
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
        self.pad, self.unknown = (int(self._tokenizer.convert_tokens_to_ids(sign)) for sign in self._signs())
        around = self._tokenizer("")["input_ids"]
        one = self._tokenizer("a")["input_ids"]
        # The signs of its own: what stands before, and what after the pieces of a text.
        before = next((place for place, piece in enumerate(one) if piece not in around), len(around))
        self.before, self.after = list(around[:before]), list(around[before:])
        self._check_embeddings()

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceEncoder:
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Directions of texts, float32 [n, D], each of length 1. Texts beyond `limit` are cut, which the log tells.

        On the GPU where the run may use one. A vector does not depend on the other texts but for rounding.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        pieces = [self._pieces(text) for text in texts]
        if cut := sum(len(row) > self.limit for row in pieces):
            log.warning("%d of %d texts are cut to the %d pieces that %s takes", cut, len(texts), self.limit, self.name)
        end = len(self.after)
        pieces = [row if len(row) <= self.limit else [*row[: self.limit - end], *self.after] for row in pieces]
        device = torch.device("cpu" if on_cpu() else "cuda")
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(pieces)), key=lambda place: len(pieces[place]))  # little padding in a batch
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = len(pieces[rows[-1]])
            piece_BL = torch.tensor([pieces[row] + [self.pad] * (longest - len(pieces[row])) for row in rows])
            length_B = torch.tensor([len(pieces[row]) for row in rows])
            mask_BL = torch.arange(longest) < length_B[:, None]
            with torch.no_grad():
                vector_BD = self.encode(self.piece_vectors(piece_BL.to(device)), mask_BL.to(device))
            vectors[rows] = vector_BD.cpu().numpy()
        return vectors

    def unknown_share(self, texts: Sequence[str]) -> float:
        """How much of texts the encoder reads as unknown. [share of pieces]"""
        pieces = [piece for text in texts for piece in self._pieces(text, signs=False)]
        return pieces.count(self.unknown) / max(len(pieces), 1)

    def word_pieces(self, word: str) -> list[int]:
        """The pieces of a word in the middle of a text, at least one.

        Where an alphabet writes spaces, one stands before the word, which some tokenizers make part of the first piece;
        before Chinese and punctuation stands none.
        """
        spaced = word[:1].isalnum() and not re.match("[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", word)
        pieces = self._pieces(f" {word}" if spaced else word, signs=False)
        # A tokenizer that puts a space before whatever it cuts makes it a piece of its own there.
        written = [piece for piece in pieces if self._tokenizer.decode([piece]).strip()]
        return written or [self.unknown]

    def piece_vectors(self, piece: Tensor) -> Tensor:
        """The input embeddings of pieces, float32 [..., width of the input], on their device."""
        return self._on(piece.device).get_input_embeddings().weight[piece]

    def encode(self, embedded_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Directions of texts given as embeddings of their pieces, signs included: [B, D], each of length 1.

        A gradient reaches `embedded_BLD`. Positions and segments are the model's own, from the left.
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

    def _pieces(self, text: str, *, signs: bool = True) -> list[int]:
        text = text.lower() if self._lower else text
        # verbose: a text beyond the limit is told of in `embed`, with what is done about it.
        return list(self._tokenizer(text, add_special_tokens=signs, verbose=False)["input_ids"])

    def _read(self, name: str, kind: type) -> Any:
        """A JSON file of the folder, a mapping or a list; an empty one where there is none."""
        path = self.folder / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return kind()
        except (OSError, ValueError) as error:
            raise ValueError(f"sentence encoder: {path} cannot be read as JSON: {error}") from None
        if not isinstance(found, kind):
            raise ValueError(f"sentence encoder: {path} holds a {type(found).__name__}; expected a {kind.__name__}")
        return found

    def _read_pooling(self) -> str:
        """`mean` or `cls`, by the files of sentence-transformers; `mean` where the folder has none."""
        modules = {}  # type -> folder
        for part in self._read("modules.json", list):
            told = part if isinstance(part, dict) else {"type": part}
            modules[str(told.get("type")).split(".")[-1]] = str(told.get("path", ""))
        others = sorted(set(modules) - set(PARTS))
        if others:
            raise ValueError(
                f"sentence encoder: '{self.name}' has a part {others[0]} (modules.json), which would be left out here. "
                f"Expected no more than {', '.join(PARTS)}; choose another model"
            )
        if prompt := self._read("config_sentence_transformers.json", dict).get("default_prompt_name"):
            raise ValueError(
                f"sentence encoder: '{self.name}' puts a prompt, '{prompt}', before every text, which is not done "
                "here; choose another model"
            )
        # The last part of its path alone: a folder may not point outside of itself.
        settings = self._read(f"{Path(modules.get('Pooling', '1_Pooling')).name}/config.json", dict)
        if isinstance(named := settings.get("pooling_mode", []), list):  # as older versions write, a flag for each
            flags = [POOLINGS.get(key, key) for key, on in settings.items() if key.startswith("pooling_mode_") and on]
            modes = [*map(str, named), *flags]
        else:
            modes = [str(named)]
        if modes not in ([], ["mean"], ["cls"]):
            raise ValueError(
                f"sentence encoder: '{self.name}' pools by {' and '.join(modes)} (1_Pooling/config.json). Expected "
                "mean or cls; choose another model"
            )
        return modes[0] if modes else "mean"

    def _load(self) -> tuple[Any, Any]:
        config = read_config(self.folder, KEY)
        if config.is_encoder_decoder or not hasattr(config, "vocab_size"):
            raise ValueError(
                f"sentence encoder: '{self.name}' is a {config.model_type}, which is no encoder of text such as BERT; "
                "choose a sentence encoder"
            )
        return load_text_encoder(self.folder, config, KEY)

    def _signs(self) -> tuple[str, str]:
        signs = (self._tokenizer.pad_token, self._tokenizer.unk_token)
        if None in signs:
            lacking = "padding" if signs[0] is None else "unknown"
            raise ValueError(
                f"sentence encoder: the tokenizer of '{self.name}' has no {lacking} piece; choose another one"
            )
        return signs

    def _check_embeddings(self) -> None:
        """Raises ValueError where the model does more with pieces than to look them up."""
        piece_BL = torch.tensor([[*self.before, self.unknown, *self.after]])
        mask_BL = torch.ones_like(piece_BL)
        with torch.no_grad():
            told = self._model(input_ids=piece_BL, attention_mask=mask_BL).last_hidden_state
            same = self._model(inputs_embeds=self.piece_vectors(piece_BL), attention_mask=mask_BL).last_hidden_state
        if not torch.allclose(told, same, atol=1e-4):
            raise ValueError(
                f"sentence encoder: '{self.name}' (a {self._model.config.model_type}) does not read its table of "
                "pieces as it stands; choose another sentence encoder"
            )
