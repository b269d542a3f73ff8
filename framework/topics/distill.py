"""Runs a distiller once for all processes and runs: its topics are kept by what they were made from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import io
import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from framework.runtime.files import atomic_write, file_lock
from framework.text.lsa import ReportSpace
from framework.text.segmentation import TERMS
from framework.topics.count import TopicChoice
from framework.topics.plot import draw_topics
from framework.topics.quality import TopicDescription, distinct_reports

log = logging.getLogger(__name__)
TRAIN = "train"  # the one split that topics are fitted on
TOPICS_FILE = "topics.json"  # in a run's folder
# Part of the key, beside the distiller's own file and the terms that Chinese is cut by: another version may find other
# topics.
FRAMEWORK = Path(__file__).resolve().parents[1]
CODE = (
    "models/pretrained",
    "text/embedding",
    "text/lsa",
    "text/segmentation",
    "text/sentence_encoder",
    "topics/count",
    "topics/distill",
    "topics/kmeans",
    "topics/plot",
    "topics/quality",
    "topics/umap",
)
LIBRARIES = ("faiss-cpu", "faiss-gpu", "numba", "numpy", "pynndescent", "scikit-learn", "scipy", "torch", "umap-learn")


class Distiller(Protocol):
    """What a `distiller` plugin is. n reports, K topics.

    Two attributes more may be there: `embedding`, a `TextEmbedding`, whose identity then is part of the cache's key,
    and `choice`, a `TopicChoice`, once `fit` has chosen the number of topics.
    """

    topic_count: int | None  # known before `fit`, or None until then where only the reports tell
    space: ReportSpace | None  # set by `fit`; None for a distiller whose topics lie in no space

    def fit(self, texts: Sequence[str]) -> None:
        """Finds topics in training reports. Raises `ValueError` where there are too few."""

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The topic of each report, int64 [n], and its weights, float32 [n, K]."""

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Where reports lie, float32 [n, D], for a map of them."""

    def describe(self) -> list[TopicDescription]:
        """The topics, by number."""

    def quality(self) -> dict[str, float | None]:
        """Measures on the training reports, see `framework.topics.quality.topic_quality`."""


@dataclass(frozen=True)
class Topics:
    """What a distiller found."""

    labels: dict[str, np.ndarray]  # by split, int64 [n], in the order of the texts
    weights: dict[str, np.ndarray]  # by split, float32 [n, K]
    count: int
    words: list[list[str]]  # of each topic, the most characteristic first
    sizes: list[int]  # training reports of each topic
    examples: list[str]  # a training report of each topic
    quality: dict[str, float | None]
    space: ReportSpace | None
    choice: TopicChoice | None = None  # why so many, where the distiller chose


def distill(
    distiller: Distiller, texts_by_split: Mapping[str, Sequence[str]], folder: Path | None, cache: Path, key: str
) -> Topics:
    """The topics of every split, fitted on `train` alone, from the cache where they stand there.

    With several processes, let the first run this before the others: they then read what it kept.

    Args:
        distiller: not fitted yet; it stays so if the cache knows the answer, so use what is returned.
        folder: a run's folder, which gets `topics.json` and `topics.png`; None to write neither.
        cache: a folder; results go to `cache/topics`.
        key: whatever else decides the topics: the distiller's settings, its seed, the tokenizer's segmentation.

    Raises:
        ValueError: there is no split `train`, or the distiller cannot work on its reports.
    """
    texts = {split: list(reports) for split, reports in texts_by_split.items()}
    if not texts.get(TRAIN):
        raise ValueError(f"topics are found in the split '{TRAIN}', which has no reports; splits: {list(texts)}")
    name, place = _fingerprint(distiller, texts, key), cache / "topics"
    place.mkdir(parents=True, exist_ok=True)
    topics = _read(place, name)
    if topics is None:
        with file_lock(place / f"{name}.lock", "topics"):
            topics = _read(place, name)  # another run may have found them meanwhile
            if topics is None:
                topics = _find(distiller, texts)
                atomic_write(place / f"{name}.png", _picture(distiller, topics, texts[TRAIN]))
                _write(place, name, topics)
    else:
        log.info("topics read from %s", place / f"{name}.json")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / f"{name}.png", folder / "topics.png")
        atomic_write(folder / TOPICS_FILE, _as_json(topics))
    return topics


def topic_changes(file: Path, topics: Topics | None) -> str:
    """How the topics of the training exams differ from those in a run's topics.json; empty if they do not."""
    if topics is None or not file.is_file():
        return ""
    before, now = json.loads(file.read_bytes())["labels"][TRAIN], topics.labels[TRAIN].tolist()
    if len(before) != len(now):
        return f"it has the topics of {len(before)} training exams, and there are {len(now)}"
    differing = sum(one != other for one, other in zip(before, now))
    return f"{differing} of {len(now)} training exams have another topic now" if differing else ""


def _fingerprint(distiller: Distiller, texts: Mapping[str, Sequence[str]], key: str) -> str:
    versions = {found.name: found.version for found in importlib.metadata.distributions() if found.name in LIBRARIES}
    code = [FRAMEWORK / f"{part}.py" for part in CODE]
    code += [TERMS, Path(str(inspect.getsourcefile(type(distiller))))]
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]
    embedding = getattr(distiller, "embedding", None)
    identity = None if embedding is None else embedding.identity
    made_from = [key, type(distiller).__qualname__, versions, sources, identity, texts]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def _find(distiller: Distiller, texts: Mapping[str, Sequence[str]]) -> Topics:
    distiller.fit(texts[TRAIN])
    assigned = {split: distiller.assign(reports) for split, reports in texts.items()}
    cards = distiller.describe()
    if empty := sum(card.size == 0 for card in cards):
        log.warning(
            "%d of %d topics hold no training report; fewer topics would do, unless that one is for noise",
            empty,
            len(cards),
        )
    assert distiller.topic_count is not None, "fit did not set topic_count"
    return Topics(
        labels={split: labels.astype(np.int64) for split, (labels, _) in assigned.items()},
        weights={split: weights.astype(np.float32) for split, (_, weights) in assigned.items()},
        count=distiller.topic_count,
        words=[card.words for card in cards],
        sizes=[card.size for card in cards],
        examples=[card.example for card in cards],
        quality=distiller.quality(),
        space=distiller.space,
        choice=getattr(distiller, "choice", None),
    )


def _write(place: Path, name: str, topics: Topics) -> None:
    """Numbers first, under a name that holds their hash, then the JSON that names them: no reader sees a half."""
    arrays = {f"labels/{split}": labels for split, labels in topics.labels.items()}
    arrays |= {f"weights/{split}": weights for split, weights in topics.weights.items()}
    told: dict[str, Any] = {part.name: getattr(topics, part.name) for part in fields(topics)}
    del told["labels"], told["weights"]
    told["choice"] = None if topics.choice is None else asdict(topics.choice)
    if topics.space is not None:
        arrays["space"] = topics.space.vectors_WD
        told["space"] = {"words": topics.space.words, "seed": topics.space.seed}
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    told["sha256"] = hashlib.sha256(packed.getvalue()).hexdigest()
    atomic_write(place / f"{name}-{told['sha256'][:16]}.npz", packed.getvalue())
    atomic_write(place / f"{name}.json", json.dumps(told, ensure_ascii=False).encode())


def _read(place: Path, name: str) -> Topics | None:
    """What the cache holds under this name; None if nothing, or if it is damaged (which the log tells)."""
    try:
        told = json.loads((place / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("topics in %s cannot be read (%s); they are found anew", place / f"{name}.json", error)
        return None
    sha256 = told.pop("sha256")
    numbers = place / f"{name}-{sha256[:16]}.npz"
    packed = numbers.read_bytes() if numbers.is_file() else b""
    if hashlib.sha256(packed).hexdigest() != sha256 or not (place / f"{name}.png").is_file():
        log.warning("%s or its picture is damaged or gone; the topics are found anew", numbers)
        return None
    arrays = dict(np.load(io.BytesIO(packed), allow_pickle=False))
    if told["space"] is not None:
        told["space"] = ReportSpace.restore(told["space"]["words"], arrays["space"], told["space"]["seed"])
    told["choice"] = None if told["choice"] is None else TopicChoice(**told["choice"])
    for part in ("labels", "weights"):
        told[part] = {k.split("/", 1)[1]: array for k, array in arrays.items() if k.startswith(f"{part}/")}
    return Topics(**told)


def _picture(distiller: Distiller, topics: Topics, train: list[str]) -> bytes:
    once = distinct_reports(train)
    copies = Counter(train)
    return draw_topics(
        distiller.positions([train[place] for place in once]),
        np.array([copies[train[place]] for place in once]),
        topics.labels[TRAIN][once],
        topics.words,
        topics.sizes,
        topics.quality,
        topics.choice,
    )


def _as_json(topics: Topics) -> bytes:
    cards = zip(topics.words, topics.sizes, topics.examples)
    told = {
        "count": topics.count,
        "quality": topics.quality,
        "choice": None if topics.choice is None else asdict(topics.choice),
        "topics": [{"topic": k, "size": size, "words": w, "example": e} for k, (w, size, e) in enumerate(cards)],
        "labels": {split: labels.tolist() for split, labels in topics.labels.items()},
    }
    return json.dumps(told, ensure_ascii=False, indent=1).encode()
