"""Exams in a data set of Hugging Face `datasets`: a local folder, Parquet files, or a name on the hub."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.data.cells import id_of, text_of
from framework.data.check import SPLIT_ALIASES, SPLITS, DatasetError, nearest_split
from framework.data.columns import named_columns, require_columns, shares_problems, split_leaks
from framework.data.image_file import MAX_PIXELS, FileView, read_image
from framework.data.image_folder import searched
from framework.data.patient_split import split_of
from framework.exam import Exam, View
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.console import print0
from framework.runtime.errors import Problem, UserError, first_line

KEY = "data.dataset"
ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes into a folder


@dataclass(frozen=True)
class ArrowView:
    """An image in an Arrow file, which `datasets` maps into memory."""

    name: str
    file: str
    row: int
    column: str
    number: int | None  # in the row's list of images
    window: tuple[float, float] | None

    def load(self) -> np.ndarray:
        """The image as `FileView.load` returns it."""
        value = _opened(self.file, self.column)[self.row][self.column]
        stored = value if self.number is None else value[self.number]
        content = stored if isinstance(stored, bytes) else stored["bytes"]
        return read_image(content, self.name, MAX_PIXELS, self.window)


@functools.lru_cache(maxsize=256)  # in each process that decodes images
def _opened(file: str, column: str) -> Any:
    import datasets

    return _undecoded(datasets.Dataset.from_file(file).select_columns([column]))


def _undecoded(rows: Any) -> Any:
    """The rows with the content of their images in place of images."""
    import datasets

    def without(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            return type(feature)(without(feature.feature))
        return feature

    features = datasets.Features({name: without(feature) for name, feature in rows.features.items()})
    return rows.cast(features) if features != rows.features else rows


def _listed(column: Any, name: str) -> tuple[bool, list[list[tuple[bool, str | None]]]]:
    """Whether rows of an Arrow column are lists of images; and for each image of a row, whether its content is there,
    and its path. Reads no content.

    Raises:
        UserError: it is no column of images.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist() if is_list else [1] * len(column)
    images = pc.list_flatten(column) if is_list else column
    if pa.types.is_struct(images.type) and {"bytes", "path"} <= {each.name for each in images.type}:
        are_stored, paths = pc.is_valid(pc.struct_field(images, "bytes")), pc.struct_field(images, "path").to_pylist()
    elif pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type):
        are_stored, paths = pc.is_valid(images), [None] * len(images)
    else:
        found, expected = f"column '{name}' holds {column.type}", "images, lists of them, or the bytes of image files"
        raise UserError("wrong-type", found, place=f"{KEY}.columns.image", expected=expected)
    each = zip(are_stored.to_pylist(), paths, strict=True)
    return is_list, [list(itertools.islice(each, length)) for length in lengths]


@dataclass
class _Draft:
    """An exam of which some rows are read."""

    place: str
    patient: str
    split: str
    report: str
    views: list[View] = field(default_factory=list)


@register("dataset", "hf")
class HuggingFaceDataset:
    """Your own exams as a Hugging Face data set: a folder of images, a saved data set, Parquet files, or the hub.

    `datasets` writes them once as Arrow files, into the folder of caches, and maps these into memory; they are not
    streamed, since an epoch reads exams in random order. No code of a data set is run. A row is an exam, or with a
    column `exam`, rows of the same exam are its views. A column of images may hold lists.

    Source:
        Lhoest et al. 2021, Datasets: A Community Library for Natural Language Processing, arXiv 2109.02846.

    Args:
        source: Folder of images with metadata.csv or metadata.jsonl; folder that `save_to_disk` wrote; Parquet files,
            as in `exams/*.parquet`; or a name on the hub, such as owner/name.
        columns: Names of the columns: `image` (one name or a list) and `report`; optional are `exam`, `patient` (who
            appears in only one split; without it, each exam is another patient) and `split`.
        configuration: Configuration of a data set on the hub; null for its default.
        revision: Commit or tag of a data set on the hub; null for the newest.
        splits: Split of each split of the data set, or of each value of the column `split`, that is not named train,
            val, validation or test; null leaves its rows out.
        shares: Shares of train, val and test among patients, in place of the splits of the data set; their sum is 1.
        split_seed: Seed of the assignment of patients by `shares`.
        window: Values of 16-bit and floating-point images that become black and white, such as [0, 4095]; null: 0 and
            the largest value of 8, 10, 12, 14 or 16 bits, by the file.
    """

    def __init__(
        self,
        *,
        source: str,
        columns: dict[Literal["image", "report", "exam", "patient", "split"], str | list[str]],
        configuration: str | None = None,
        revision: str | None = None,
        splits: dict[str, Literal["train", "val", "test"] | None] | None = None,
        shares: dict[Literal["train", "val", "test"], Fraction] | None = None,
        split_seed: int = 0,
        window: tuple[float, float] | None = None,
        cache_dir: str,
    ) -> None:
        self.source, self.configuration, self.revision = source, configuration, revision
        self.cache, self.window, self.split_seed = Path(cache_dir) / "hf", window, split_seed
        self.meaning: Mapping[str, str | None] = {
            **{name: name for name in SPLITS}, **SPLIT_ALIASES, **(splits or {}),
        }  # fmt: skip
        self.shares: Mapping[str, float] | None = dict(shares.items()) if shares is not None else None
        self.image_columns, self.columns, problems = named_columns(dict(columns.items()), KEY)
        problems += shares_problems(self.shares, KEY)
        if shares is not None and "split" in self.columns:
            found = f"both {KEY}.columns.split and {KEY}.shares are set"
            problems.append(Problem("conflicting-settings", found, f"{KEY}.shares", "one of the two"))
        if shares is not None and splits:
            problems.append(Problem("ignored-setting", f"{KEY}.shares makes the splits", f"{KEY}.splits"))
        if problems:
            raise UserError.of(problems)

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams in the order of the data set. Loads no image.

        Raises:
            UserError: the data set cannot be loaded, lacks a column or a split, or rows cannot be used.
        """
        return self._splits

    @property
    def cache_key(self) -> str:
        """Hash of name, size and time of the Arrow files, and of the image files that they name."""
        files = {file["filename"] for rows in self._loaded.values() for file in rows.cache_files}
        views = [view for exams in self._splits.values() for exam in exams for view in exam.views]
        files |= {view.path for view in views if isinstance(view, FileView)}
        seen = hashlib.sha256(repr((self.window, [view.name for view in views])).encode())
        for file in sorted(files):
            stat = Path(file).stat()
            seen.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return f"hf-{seen.hexdigest()[:20]}"

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        """The rows of each split of the data set."""
        try:
            import datasets
        except ImportError:
            hint = "Run: pip install 'sonoscribe[hf]'"
            raise UserError("missing-package", "the data set needs datasets", place=KEY, hint=hint) from None
        root = Path(self.source).expanduser()
        is_local = root.exists() or self.source.endswith(".parquet")
        files = sorted(map(str, root.parent.glob(root.name))) if self.source.endswith(".parquet") else []
        if (self.source.endswith(".parquet") and not files) or not (is_local or ON_HUB.fullmatch(self.source)):
            raise UserError("no-such-file", f"no such data set ({KEY}.source){searched(root)}", place=root)
        is_saved = is_local and any((root / name).is_file() for name in SAVED)
        of_hub = {
            "revision": self.revision if is_local else None,
            "configuration": self.configuration if files or is_saved else None,
        }
        if ignored := [key for key, value in of_hub.items() if value is not None]:
            found = f"{root} is no data set on the hub"
            raise UserError.of(Problem("ignored-setting", found, f"{KEY}.{key}", hint="Remove it.") for key in ignored)
        datasets.disable_progress_bars()
        cache = str(self.cache)
        try:
            if files:
                found = datasets.load_dataset("parquet", data_files={"train": files}, cache_dir=cache)
            elif is_saved:
                found = datasets.load_from_disk(str(root))
            else:
                name = str(root.resolve()) if is_local else self.source
                found = datasets.load_dataset(name, self.configuration, revision=self.revision, cache_dir=cache)
        except Exception as error:  # datasets raises what any of its readers and the network raise
            reason = f"{type(error).__name__}: {first_line(error)[:300]}"
            if is_local:
                raise UserError("unreadable-file", f"datasets cannot load it ({reason})", place=root) from None
            hint = f"There is no folder {root.absolute()} either."
            raise UserError("hub-refused", f"{self.source}: {reason}", place=f"{KEY}.source", hint=hint) from None
        return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        problems: list[UserError] = []
        drafts: dict[str, _Draft] = {}
        left_out: Counter[str] = Counter()
        unknown: Counter[str] = Counter()
        for name, rows in self._loaded.items():
            require_columns(self.image_columns, self.columns, rows.column_names, f"split {name}", KEY)
            views = self._views(rows)
            texts = {key: list(rows.select_columns([column])[column]) for key, column in self.columns.items()}
            for number in range(len(rows)):
                row = {key: values[number] for key, values in texts.items()}
                given = str(text_of(row["split"])) if "split" in row else name
                if self.shares is None and self.meaning.get(given) is None:
                    (left_out if given in self.meaning else unknown)[given] += 1
                    continue
                try:
                    self._add(drafts, f"{name} row {number + 1}", f"{name}-{number:06d}", row, given, views[number])
                except UserError as error:
                    problems.append(error)
        problems += [self._unknown_split(value, count) for value, count in unknown.items()]
        exams: dict[str, list[Exam]] = {name: [] for name in SPLITS}
        for exam_id, draft in drafts.items():
            exams[draft.split].append(Exam(exam_id, draft.patient, tuple(draft.views), draft.report))
        problems += split_leaks((draft.patient, draft.split, draft.place) for draft in drafts.values())
        counts = ", ".join(f"{name} {len(found)}" for name, found in exams.items())
        if problems:
            raise DatasetError.of_exams(problems, self.source, exams)
        if empty := [name for name in SPLITS if not exams[name]]:
            hint = f"Name the splits in {KEY}.splits, or set {KEY}.shares: {{train: 0.7, val: 0.1, test: 0.2}}."
            found = f"split {', '.join(empty)} has no exams ({counts})"
            raise UserError("empty-split", found, place=self.source, hint=hint)
        left = "".join(f"; left out: {count} rows of {value}" for value, count in left_out.items())
        print0(f"{self.source}: splits {'by patient' if self.shares else 'given'}: {counts}{left}")
        return {name: tuple(found) for name, found in exams.items()}

    def _views(self, rows: Any) -> list[list[View]]:
        """The views of each row, by what its Arrow files hold in place of content."""
        import datasets

        found: list[list[View]] = []
        for file in (each["filename"] for each in rows.cache_files):
            table = datasets.Dataset.from_file(file).data.table
            columns = [(name, *_listed(table.column(name), name)) for name in self.image_columns]
            for row in range(len(table)):
                views: list[View] = []
                for column, is_list, images in columns:
                    for number, (is_stored, path) in enumerate(images[row]):
                        name = Path(path).name if path else f"{Path(file).stem}-{row + 1}"
                        if is_stored:
                            at = number if is_list else None
                            views.append(ArrowView(name, file, row, column, at, self.window))
                        elif path:
                            views.append(FileView(path, name, self.window))
                found.append(views)
        assert len(found) == len(rows), "a data set that is loaded has the rows of its files"
        return found

    def _add(
        self,
        drafts: dict[str, _Draft],
        place: str,
        exam_id: str,
        row: Mapping[str, Any],
        given: str,
        views: list[View],
    ) -> None:
        """Adds a row to its exam. Raises UserError if the row cannot be used."""
        if not views:
            raise UserError("missing-key", "no image", place=place, expected="an image")
        ids: dict[str, str | None] = {}
        for key in ("exam", "patient"):
            try:
                ids[key] = id_of(row.get(key))
            except ValueError as error:
                raise UserError("wrong-format", f"{self.columns[key]}: {error}", place=place) from None
        if "exam" in row and ids["exam"] is None:
            raise UserError("missing-key", f"no {self.columns['exam']}", place=place, expected="the id of an exam")
        exam_id = ids["exam"] or exam_id
        patient = ids["patient"] or exam_id
        report = text_of(row["report"])
        if report is None:
            raise UserError("empty-report", f"no {self.columns['report']}", place=place)
        split = split_of(patient, self.shares, self.split_seed) if self.shares else str(self.meaning[given])
        draft = drafts.setdefault(exam_id, _Draft(place, patient, split, report))
        for key, value in (("patient", patient), ("split", split), ("report", report)):
            if getattr(draft, key) != value:
                found = f"exam {exam_id} has another {self.columns.get(key, key)} than in {draft.place}"
                raise UserError("conflicting-settings", found, place=place)
        draft.views += views

    def _unknown_split(self, value: str, count: int) -> UserError:
        near = nearest_split(value)
        hint = f"Set {KEY}.splits: {{{value}: {near or 'null'}}}{'' if near else ', which leaves these rows out'}."
        return UserError(
            "unknown-name",
            f"{count} rows are in split '{value}'",
            place=f"{KEY}.splits",
            expected=", ".join(SPLITS),
            hint=hint,
        )
