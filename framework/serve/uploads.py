"""The images of a request: read in memory, bounded in number, bytes and pixels, and never stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from framework.data.image_file import read_image
from framework.evaluation.predict import Predictor
from framework.runtime.errors import UserError
from framework.serve.guard import TooLargeError

MAX_BYTES = 32_000_000  # of a request
MAX_IMAGES = 256  # of a request
MAX_PIXELS = 40_000_000  # of an image, before it is decoded; above a camera's, and 120 MB decoded
FORM = "multipart/form-data"


@dataclass(frozen=True)
class Upload:
    name: str
    content: bytes


class _InMemory(MultiPartParser):
    spool_max_size = MAX_BYTES + 1  # starlette writes larger files to the disk


async def read_uploads(request: Request) -> dict[str, list[Upload]]:
    """The files of a form, by the names of their fields.

    Raises:
        UserError: the body is no form, has fields that are not files, or no file.
        TooLargeError: there are too many.
    """
    if not request.headers.get("content-type", "").startswith(FORM):
        content_type = request.headers.get("content-type")
        raise UserError("wrong-format", f"found {content_type!r}", place="Content-Type", expected=FORM)
    parser = _InMemory(request.headers, request.stream(), max_files=MAX_IMAGES, max_fields=MAX_IMAGES)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError) as error:
        reason = getattr(error, "message", str(error))
        if "Too many files" in reason:
            raise TooLargeError("too-large", "too many images", expected=f"at most {MAX_IMAGES} in a request") from None
        raise UserError("wrong-format", f"not a form ({reason})", place="body", expected=FORM) from None
    found: dict[str, list[Upload]] = {}
    for field, value in form.multi_items():
        if not isinstance(value, UploadFile):
            raise UserError("wrong-type", "the field is a text", place=field, expected="an image file")
        found.setdefault(field, []).append(Upload(value.filename or field, await value.read()))
    await form.close()
    if not found:
        raise UserError("missing-input", "the form has no image", place="body", expected="at least one file")
    return found


def load_views(predictor: Predictor, uploads: list[Upload]) -> np.ndarray:
    """The views of an exam as the model takes them: pixels alone, without EXIF or other data of the files.

    Raises:
        UserError: an image cannot be used; the place is the file's name.
    """
    images = []
    for upload in uploads:
        try:
            images.append(read_image(upload.content, upload.name, MAX_PIXELS))
        except OSError as error:
            raise UserError("broken-image", str(error).removeprefix(f"{upload.name}: "), place=upload.name) from error
    try:
        return predictor.load(images)
    except UserError as error:
        names = ", ".join(upload.name for upload in uploads)
        raise UserError.of(problem.at(names) for problem in error.problems) from error


def only_field(found: Mapping[str, list[Upload]], name: str) -> list[Upload]:
    """The files of the one field that a form may have."""
    if set(found) != {name}:
        raise UserError("unknown-key", f"found the fields {', '.join(sorted(found))}", place="body", expected=name)
    return found[name]
