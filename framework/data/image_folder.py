"""A folder of images, which finds the files that a data set names and says what is wrong with a name."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import cached_property
from pathlib import Path, PureWindowsPath

from framework.data.image_file import FileView, inside, is_absolute
from framework.registry import did_you_mean
from framework.runtime.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
PATTERN = re.compile(r"[*?\[]")
MOST_NAMES = 2000  # the nearest of more names takes seconds for each error


class ImageFolder:
    """Finds images by names that count from the folder, with / or \\ between their parts.

    Args:
        window: values of 16-bit grey and floating-point files that become black and white, see `FileView`.
    """

    def __init__(self, root: Path, window: tuple[float, float] | None = None) -> None:
        if window is not None and window[0] >= window[1]:
            found = f"found {window[0]:g} to {window[1]:g}"
            raise UserError("out-of-range", found, place="data.dataset.window", expected="[low, high]")
        self.root, self.window = root, window
        self._names: dict[Path, list[str]] = {}

    def views(self, name: str) -> list[FileView]:
        """The image of this name, or all images that match it if it is a pattern such as `17/*.png`, 2 before 10.

        Raises:
            UserError: `no-such-file`; or the name leaves the folder.
        """
        file, name = self._path(name)
        if not PATTERN.search(name) or _is_file(file):
            return [self.view(name)]
        try:
            found = [path for path in self.root.glob(name) if path.suffix.lower() in SUFFIXES and path.is_file()]
        except (ValueError, OSError) as error:
            raise UserError("wrong-format", f"the pattern {name}: {error}") from None
        if not found:
            raise UserError("no-such-file", f"no image matches {name} in {self.root}")
        names = [path.relative_to(self.root).as_posix() for path in found]
        return [self.view(each) for each in sorted(names, key=by_number)]

    def view(self, name: str) -> FileView:
        """The image of this name.

        Raises:
            UserError: `no-such-file`; or the name leaves the folder.
        """
        file, name = self._path(name)
        if not _is_file(file):
            raise UserError("no-such-file", f"no image {name} in {self.root}", hint=self._hint(name))
        return FileView(str(file), name, self.window)

    def has(self, name: str) -> bool:
        """Whether there is an image of this name, or one that matches it if it is a pattern."""
        try:
            if _is_file(inside(self.root, name)):
                return True
            return bool(PATTERN.search(name)) and any(self.root.glob(name))
        except (ValueError, OSError):
            return False

    def _path(self, name: str) -> tuple[Path, str]:
        """The file of a name, which may not exist, and the name as this system writes it."""
        try:
            file = inside(self.root, name)
            if "\\" in name and not _is_file(file):
                name = name.replace("\\", "/")
                file = inside(self.root, name)
        except (ValueError, OSError) as error:
            raise UserError("no-such-file", str(error), hint=self._hint(name) if "\0" not in name else "") from None
        return file, name

    def _hint(self, name: str) -> str:
        """The likely reason for which there is no image of this name."""
        path = PureWindowsPath(name)
        parts = [part for part in path.parts if part != path.anchor]
        if ".." in parts or not parts:
            return ""
        for start in range(0 if is_absolute(name) else 1, len(parts)):
            tail = "/".join(parts[start:])
            if self.has(tail):
                return f"{tail} is there: paths count from {self.root}."
        name = "/".join(parts)
        for form in ("NFC", "NFD"):
            if (other := unicodedata.normalize(form, name)) != name and self.has(other):  # type: ignore[arg-type]
                return f"A file of this name in the Unicode form {form} is there: rename it, or write the name like it."
        within = [folder for folder in self._folders if _is_file(folder / name)]
        if len(within) == 1:
            return f"It is in {within[0]}: data.dataset.images can name that folder."
        *above, last = parts
        names = self._listed(self.root.joinpath(*above))
        same = [each for each in names if each.casefold() == last.casefold()]
        if same:
            return f"Did you mean '{same[0]}'?"
        return did_you_mean(last, names).strip() if len(names) <= MOST_NAMES else ""

    @cached_property
    def _folders(self) -> list[Path]:
        return [path for path in sorted(self.root.iterdir()) if path.is_dir()] if self.root.is_dir() else []

    def _listed(self, folder: Path) -> list[str]:
        if folder not in self._names:
            self._names[folder] = sorted(path.name for path in folder.iterdir()) if os.path.isdir(folder) else []  # noqa: PTH112 - as _is_file
        return self._names[folder]


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name that is too long


def searched(path: Path) -> str:
    """Where a relative path was searched, for an error."""
    return "" if path.is_absolute() else f", searched in {Path.cwd()}"


def by_number(name: str) -> list[tuple[int, str]]:
    """Sorts `17_2.png` before `17_10.png`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]
