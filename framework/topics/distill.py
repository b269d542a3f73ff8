"""Runs a distiller once and caches its topics under a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, file_lock, read_object
from framework.runtime.packages import package_versions
from framework.text.lsa import ReportSpace
from framework.text.segmentation import TERMS
from framework.topics.count import TopicChoice
from framework.topics.plot import draw_topics, principal, sample_points
from framework.topics.quality import TopicDescription, distinct_reports

log = logging.getLogger(__name__)
TRAIN = "train"  # the only split that topics are fitted on
TOPICS_FILE = "topics.json"  # in a run's folder
DIMENSIONS = 64  # of the embeddings that are kept for maps
# Source files in the cache key, with the distiller's own file and the Chinese terms: their changes may change topics.
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
    """The interface of a `distiller` plugin. n reports, K topics.

    Two attributes are optional: `embedding`, a `TextEmbedding`, whose identity is added to the cache key, and `choice`,
    a `TopicChoice`, after `fit` has chosen the number of topics.
    """

    topic_count: int | None  # None before `fit` if it depends on the reports
    space: ReportSpace | None  # set by `fit`; None for a distiller without a report space

    def fit(self, texts: Sequence[str]) -> None:
        """Finds topics in training reports. Raises `ValueError` if there are too few."""

    def assign(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The topic of each report, int64 [n], and its weights, float32 [n, K]."""

    def positions(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of reports, float32 [n, D], for the plot."""

    def describe(self) -> list[TopicDescription]:
        """The topics, by number."""

    def quality(self) -> dict[str, float | None]:
        """Quality measures on the training reports, see `framework.topics.quality.topic_quality`."""


@dataclass(frozen=True)
class Topics:
    """The topics of all splits."""

    labels: dict[str, np.ndarray]  # by split, int64 [n], in the order of the texts
    weights: dict[str, np.ndarray]  # by split, float32 [n, K]
    count: int
    words: list[list[str]]  # by topic, the most characteristic first
    sizes: list[int]  # number of training reports by topic
    examples: list[str]  # a training report by topic
    quality: dict[str, float | None]
    space: ReportSpace | None
    shown: np.ndarray  # training reports of the map, each a different text: their indices, int64 [m]
    positions: np.ndarray  # embeddings of these reports, float32 [m, at most DIMENSIONS]
    choice: TopicChoice | None = None  # if the distiller chose their number

    def columns(self, train: Sequence[str]) -> dict[str, list[object]]:
        """What is known of the reports of the map, by name.

        Args:
            train: the training reports.
        """
        copies = Counter(train)
        numbers, reports = self.labels[TRAIN][self.shown].tolist(), [train[place] for place in self.shown]
        return {
            "topic": numbers,
            "words": [" ".join(self.words[number][:6]) for number in numbers],
            "copies": [copies[report] for report in reports],
            "report": reports,
        }


def distill(
    distiller: Distiller, texts_by_split: Mapping[str, Sequence[str]], folder: Path | None, cache: Path, key: str
) -> Topics:
    """The topics of every split, fitted on `train`, or read from the cache.

    With several processes, the first one must call this before the others, which then read its cache.

    Args:
        distiller: not fitted; it is not fitted here either if the topics are cached.
        folder: where topics.json and topics.png are written; None skips them.
        cache: topics are cached in `cache/topics`.
        key: everything else that topics depend on: the distiller's settings, its seed, the tokenizer's segmentation.

    Raises:
        UserError: there is no split `train`.
    """
    texts = {split: list(reports) for split, reports in texts_by_split.items()}
    if not texts.get(TRAIN):
        raise UserError("empty-split", "topics need training reports", place=f"split {TRAIN}")
    name, place = _fingerprint(distiller, texts, key), cache / "topics"
    place.mkdir(parents=True, exist_ok=True)
    topics = _read(place, name)
    if topics is None:
        with file_lock(place / f"{name}.lock", "topics"):
            topics = _read(place, name)  # another run may have cached them meanwhile
            if topics is None:
                topics = _fit(distiller, texts)
                atomic_write(place / f"{name}.png", _plot(topics, texts[TRAIN]))
                _write(place, name, topics)
    else:
        log.info("topics read from %s", place / f"{name}.json")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "topics.png", (place / f"{name}.png").read_bytes())
        atomic_write(folder / TOPICS_FILE, _as_json(topics))
    return topics


def topic_changes(file: Path, topics: Topics | None) -> str:
    """How the topics of the training exams differ from those in a run's topics.json; empty if they do not."""
    if topics is None or not file.is_file():
        return ""
    hint = "Restore it from a copy; without it, topics are not compared with those before."
    found = read_object(file, hint).get("labels")
    before, now = found.get(TRAIN) if isinstance(found, dict) else None, topics.labels[TRAIN].tolist()
    if not isinstance(before, list):
        raise UserError("damaged-file", f"lacks labels of {TRAIN}", place=file, hint=hint)
    if len(before) != len(now):
        return f"it has the topics of {len(before)} training exams, and there are {len(now)}"
    differing = sum(one != other for one, other in zip(before, now))
    return f"{differing} of {len(now)} training exams have another topic now" if differing else ""


def _fingerprint(distiller: Distiller, texts: Mapping[str, Sequence[str]], key: str) -> str:
    versions = package_versions(LIBRARIES)
    code = [FRAMEWORK / f"{part}.py" for part in CODE]
    code += [TERMS, Path(str(inspect.getsourcefile(type(distiller))))]
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]
    embedding = getattr(distiller, "embedding", None)
    identity = None if embedding is None else embedding.identity
    inputs = [key, type(distiller).__qualname__, versions, sources, identity, texts]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def _fit(distiller: Distiller, texts: Mapping[str, Sequence[str]]) -> Topics:
    distiller.fit(texts[TRAIN])
    assigned = {split: distiller.assign(reports) for split, reports in texts.items()}
    descriptions = distiller.describe()
    if empty := sum(topic.size == 0 for topic in descriptions):
        log.warning(
            "%d of %d topics have no training report; use fewer topics, unless the empty one is for noise",
            empty,
            len(descriptions),
        )
    assert distiller.topic_count is not None, "fit did not set topic_count"
    once = distinct_reports(texts[TRAIN])
    shown = once[sample_points(len(once))]  # before they are embedded, which may take long
    positions = distiller.positions([texts[TRAIN][place] for place in shown])
    if positions.shape[1] > DIMENSIONS:
        positions = principal(positions, DIMENSIONS)
    return Topics(
        labels={split: labels.astype(np.int64) for split, (labels, _) in assigned.items()},
        weights={split: weights.astype(np.float32) for split, (_, weights) in assigned.items()},
        count=distiller.topic_count,
        words=[topic.words for topic in descriptions],
        sizes=[topic.size for topic in descriptions],
        examples=[topic.example for topic in descriptions],
        quality=distiller.quality(),
        space=distiller.space,
        shown=shown,
        positions=positions.astype(np.float32),
        choice=getattr(distiller, "choice", None),
    )


def _write(place: Path, name: str, topics: Topics) -> None:
    """Writes the arrays under a name with their hash, then the JSON that refers to them: readers see both or none."""
    arrays = {f"labels/{split}": labels for split, labels in topics.labels.items()}
    arrays |= {f"weights/{split}": weights for split, weights in topics.weights.items()}
    arrays |= {"shown": topics.shown, "positions": topics.positions}
    content: dict[str, Any] = {part.name: getattr(topics, part.name) for part in fields(topics)}
    for part in ("labels", "weights", "shown", "positions"):
        del content[part]
    content["choice"] = None if topics.choice is None else asdict(topics.choice)
    if topics.space is not None:
        arrays["space"] = topics.space.vectors_WD
        content["space"] = {"words": topics.space.words, "seed": topics.space.seed}
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    content["sha256"] = hashlib.sha256(packed.getvalue()).hexdigest()
    atomic_write(place / f"{name}-{content['sha256'][:16]}.npz", packed.getvalue())
    atomic_write(place / f"{name}.json", json.dumps(content, ensure_ascii=False).encode())


def _read(place: Path, name: str) -> Topics | None:
    """The cached topics of this name; None if there are none or they are damaged, which is logged."""
    try:
        content = json.loads((place / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("topics in %s cannot be read (%s) and are computed again", place / f"{name}.json", error)
        return None
    sha256 = content.pop("sha256")
    arrays_file = place / f"{name}-{sha256[:16]}.npz"
    packed = arrays_file.read_bytes() if arrays_file.is_file() else b""
    if hashlib.sha256(packed).hexdigest() != sha256 or not (place / f"{name}.png").is_file():
        log.warning("%s or its plot is damaged or missing; the topics are computed again", arrays_file)
        return None
    arrays = dict(np.load(io.BytesIO(packed), allow_pickle=False))
    if content["space"] is not None:
        content["space"] = ReportSpace.restore(content["space"]["words"], arrays["space"], content["space"]["seed"])
    content["choice"] = None if content["choice"] is None else TopicChoice(**content["choice"])
    for part in ("labels", "weights"):
        content[part] = {k.split("/", 1)[1]: array for k, array in arrays.items() if k.startswith(f"{part}/")}
    return Topics(**content, shown=arrays["shown"], positions=arrays["positions"])


def _plot(topics: Topics, train: list[str]) -> bytes:
    copies = Counter(train)
    return draw_topics(
        topics.positions,
        np.array([copies[train[place]] for place in topics.shown]),
        topics.labels[TRAIN][topics.shown],
        len(copies),
        topics.words,
        topics.sizes,
        topics.quality,
        topics.choice,
    )


def _as_json(topics: Topics) -> bytes:
    topic_rows = zip(topics.words, topics.sizes, topics.examples)
    content = {
        "count": topics.count,
        "quality": topics.quality,
        "choice": None if topics.choice is None else asdict(topics.choice),
        "topics": [{"topic": k, "size": size, "words": w, "example": e} for k, (w, size, e) in enumerate(topic_rows)],
        "labels": {split: labels.tolist() for split, labels in topics.labels.items()},
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode()
