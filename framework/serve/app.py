"""The routes of `serve`: the page, its cards, and the JSON endpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from framework.data.image_folder import SUFFIXES
from framework.evaluation.predict import GeneratedReport, Predictor
from framework.pages.render import render, with_script
from framework.registry import did_you_mean
from framework.runtime.errors import UserError, first_line
from framework.runtime.memory import is_out_of_memory
from framework.runtime.packages import package_versions
from framework.serve.answers import (
    ErrorAnswer,
    ExamAnswer,
    HealthAnswer,
    ModelAnswer,
    ReportAnswer,
    problem_answers,
    report_answer,
)
from framework.serve.guard import Guard, error_response
from framework.serve.queue import ModelQueue
from framework.serve.uploads import FORM, MAX_BYTES, Upload, load_views, only_field, read_uploads

log = logging.getLogger(__name__)
ABOUT = "Research software, not for diagnosis."
READ_S = 60.0  # in which the body of a request must arrive
LOOK_S = 1.0  # between looks at whether the client still waits
STATUS = {"queue-full": 429, "too-large": 413, "out-of-memory": 503, "internal-error": 500}  # others: 400
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 403, 404, 413, 429, 500, 503)
}
ModelName = Annotated[str | None, Query(description="A name of /api/models; default: the first one.")]
IMAGES = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}


@dataclass(frozen=True)
class ServedModel:
    """A loaded model.

    Attributes:
        name: RECIPE/RUN.
        training_data: what it was trained on, from its card.
        card: the text of its card.
    """

    name: str
    predictor: Predictor
    training_data: str
    card: str

    def answer(self) -> ModelAnswer:
        predictor = self.predictor
        positions = getattr(predictor.task.encoder, "position_VD", None)
        return ModelAnswer(
            name=self.name,
            training_data=self.training_data,
            image_size=predictor.recipe.data.image_size,
            channels=predictor.recipe.data.channels,
            max_views=None if positions is None else positions.shape[0],
            num_beams=predictor.num_beams,
            compares_images=predictor.statistics is not None,
            finds_nearest=predictor.training_exams is not None,
        )


def build_app(models: Sequence[ServedModel], names: frozenset[str], limit: int) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        models: the first one answers requests that name none.
        names: host names under which it is reached, beside localhost and addresses.
        limit: open requests.
    """
    by_name = {model.name: model for model in models}
    queue, decoding = ModelQueue(limit), ThreadPoolExecutor(1, thread_name_prefix="decode")

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(queue.run())
        yield
        task.cancel()
        decoding.shutdown(wait=False, cancel_futures=True)

    def chosen(name: str | None) -> ServedModel:
        if name is None:
            return models[0]
        if name not in by_name:
            raise UserError("unknown-name", f"no model '{name}'", place="model", hint=did_you_mean(name, by_name))
        return by_name[name]

    async def uploads_of(request: Request) -> dict[str, list[Upload]]:
        try:
            async with asyncio.timeout(READ_S):
                return await read_uploads(request)
        except TimeoutError:
            raise UserError("wrong-format", f"not received within {READ_S:.0f} s", place="body") from None

    async def generated(
        request: Request, model: ServedModel, exams: Mapping[str, list[Upload]]
    ) -> dict[str, GeneratedReport | UserError]:
        """The report of each exam, or why its images cannot be used."""
        loop, found = asyncio.get_running_loop(), dict[str, GeneratedReport | UserError]()
        waiting: dict[str, asyncio.Future[GeneratedReport]] = {}
        for exam_id, uploads in exams.items():
            try:
                views = await loop.run_in_executor(decoding, load_views, model.predictor, uploads)
                waiting[exam_id] = queue.put(model.predictor, views)
            except UserError as error:
                found[exam_id] = error
        try:
            while not all(each.done() for each in waiting.values()):
                await asyncio.wait(waiting.values(), timeout=LOOK_S)
                if await request.is_disconnected():
                    break
        finally:
            for each in waiting.values():
                each.cancel()  # of those that are not done
        for exam_id, each in waiting.items():
            if each.cancelled():
                raise UserError("internal-error", "the client no longer waits")
            failed = each.exception()
            found[exam_id] = each.result() if failed is None else _as_user_error(failed)
        return {exam_id: found[exam_id] for exam_id in exams}

    async def report_of(request: Request, model: ServedModel) -> tuple[str, GeneratedReport]:
        with queue.admit():
            uploads = only_field(await uploads_of(request), "images")
            (found,) = (await generated(request, model, {"exam": uploads})).values()
        if isinstance(found, UserError):
            raise found
        return ", ".join(upload.name for upload in uploads), found

    app = FastAPI(
        title="Sonoscribe",
        description=f"Writes reports of ultrasound exams from their images. {ABOUT} Images and reports are not stored.",
        version=package_versions(["sonoscribe"]).get("sonoscribe", "0"),
        docs_url=None,  # the pages of Swagger and Redoc load scripts from another host
        redoc_url=None,
        lifespan=working,
        responses=ERRORS,
    )
    _add_error_handlers(app)
    page_values = with_script("serve.js")
    policy = f"{page_values['policy']}; connect-src 'self'"
    page = render(
        "serve.html.j2",
        **{**page_values, "policy": policy},
        title="Sonoscribe",
        about=[ABOUT],
        models=models,
        suffixes=SUFFIXES,
        max_bytes=MAX_BYTES,
    )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> str:
        return page

    @app.post("/card", response_class=HTMLResponse, include_in_schema=False)
    async def card(request: Request, model: ModelName = None) -> str:
        """The card of one exam, for the page."""
        title, report = await report_of(request, chosen(model))
        return render("served_exam.html.j2", exam=report.card(title))

    @app.get("/api/health")
    async def health() -> HealthAnswer:
        """Whether the server answers, and how much is waiting."""
        return HealthAnswer(status="ok", requests=queue.requests, limit=queue.limit, waiting=queue.waiting)

    @app.get("/api/models")
    async def list_models() -> list[ModelAnswer]:
        """The models that can be chosen."""
        return [model.answer() for model in models]

    @app.post("/api/report", openapi_extra=_form({"properties": {"images": IMAGES}, "required": ["images"]}))
    async def one_report(request: Request, model: ModelName = None) -> ReportAnswer:
        """The report of one exam. The files of the field `images` are its views, in the order of the training data."""
        served = chosen(model)
        return report_answer(served.name, (await report_of(request, served))[1])

    @app.post("/api/reports", openapi_extra=_form({"additionalProperties": IMAGES}))
    async def many_reports(request: Request, model: ModelName = None) -> list[ExamAnswer]:
        """The reports of many exams. Each field is an exam: its name is the exam's id, its files are the views."""
        served = chosen(model)
        with queue.admit():
            found = await generated(request, served, await uploads_of(request))
        return [
            ExamAnswer(id=exam_id, report=None, errors=problem_answers(each.problems))
            if isinstance(each, UserError)
            else ExamAnswer(id=exam_id, report=report_answer(served.name, each))
            for exam_id, each in found.items()
        ]

    return Guard(app, names, MAX_BYTES, f"{policy}; frame-ancestors 'none'")


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {FORM: {"schema": {"type": "object", **schema}}}}}


def _as_user_error(error: BaseException) -> UserError:
    """An error of the model's call, with its traceback in the log if it is not one of the request."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return UserError("out-of-memory", "the model ran out of memory", hint="Send fewer images at once.")
    log.error("the model failed", exc_info=error)
    return UserError("internal-error", f"{type(error).__name__}: {first_line(error)}")


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is JSON with a code, never a traceback."""

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        status = 404 if (error.code, error.place) == ("unknown-name", "model") else STATUS.get(error.code, 400)
        seconds = getattr(error, "retry_after", 1)
        return error_response(status, error, {"Retry-After": str(seconds)} if status in (429, 503) else {})

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = "unsupported" if error.status_code == 405 else "unknown-name"
        found = UserError(code, str(error.detail).lower(), place=f"{request.method} {request.url.path}")
        return error_response(error.status_code, found, error.headers or {})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return error_response(400, UserError("wrong-type", first["msg"], place=".".join(map(str, first["loc"]))))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        """The server prints the traceback, since starlette raises the error again."""
        return error_response(500, UserError("internal-error", type(error).__name__))
