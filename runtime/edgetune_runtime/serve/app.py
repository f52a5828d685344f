"""The application: which path asks what of which model, and what goes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.serve import detect, label_studio, x_anylabeling
from edgetune_runtime.serve.body import read_body
from edgetune_runtime.serve.chat import MESSAGE, Completion, Piece, Question, answering
from edgetune_runtime.serve.detect import Answered
from edgetune_runtime.serve.fetch import Fetcher
from edgetune_runtime.serve.guard import Guard, Log, log_line
from edgetune_runtime.serve.label_studio_files import LabelStudioFiles, refuse_elsewhere
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.metrics import Metrics
from edgetune_runtime.serve.model import Answering, Model, Turn
from edgetune_runtime.serve.openapi import openapi
from edgetune_runtime.serve.pictures import Pictures
from edgetune_runtime.serve.refusal import Refusal
from edgetune_runtime.serve.responding import event_stream, failed, left, refused, unrouted, while_connected
from edgetune_runtime.serve.schema import requests
from edgetune_runtime.timing import Timings

T = TypeVar("T")

STATIC = Path(__file__).parent / "static"
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the pages may load: themselves, and pictures that a user chose. Nothing of another server."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server does besides answering.

    Attributes:
        limits: of requests.
        keys: API keys; none lets everybody in.
        hosts: from which pictures may be fetched by address.
        label_studio: address of a Label Studio whose pictures may be fetched.
        label_studio_key: a token of it.
        log: takes an entry a request; None logs nothing.
        at_a_time: requests that a model answers at a time: 1, but for fleets.
        routes: further ones.
        open_paths: those of them that need no key.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Collection[str] = ()
    hosts: Collection[str] = ()
    label_studio: str | None = None
    label_studio_key: str | None = field(default=None, repr=False)
    log: Log | None = log_line
    at_a_time: int = 1
    routes: Sequence[Route] = ()
    open_paths: Collection[str] = ()


def build_app(sessions: Mapping[str, Answering], settings: Settings | None = None) -> ASGIApp:
    """The ASGI application that serves sessions by name; the first is the default. It closes them when it ends.

    Examples:
        >>> from edgetune_runtime import Session
        >>> from edgetune_runtime.serve.app import build_app
        >>> from starlette.testclient import TestClient
        >>> with TestClient(build_app({"owls": Session.load("runs/onnx-int4")})) as client:
        ...     client.get("/v1/models").json()["data"][0]["id"]
        'owls'
    """
    settings = settings or Settings()
    limits = {"queue_limit": settings.limits.queue, "at_a_time": settings.at_a_time}
    models = {name: Model(name, session, **limits) for name, session in sessions.items()}
    server = Server(models, settings)
    return server.app()


class Server:
    """The handlers of one application."""

    def __init__(self, models: Mapping[str, Model], settings: Settings) -> None:
        limits = settings.limits
        self._models, self._settings = models, settings
        self._metrics = Metrics()
        fetcher = Fetcher(settings.hosts, limits.body_bytes) if settings.hosts else None
        self._pictures = Pictures(limits.image_pixels, fetcher)
        studio = settings.label_studio
        self._files = LabelStudioFiles(studio, settings.label_studio_key, limits.body_bytes) if studio else None
        self._schemas = requests(limits)
        self._document = openapi(limits, self._schemas, keyed=bool(settings.keys))
        self._ready = False
        for name, model in models.items():
            model.changed = self._metrics.pending.labels(name).set
            model.changed(model.pending)

    def app(self) -> ASGIApp:
        """The routes behind the guard."""
        routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/docs", self.docs, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/detect", self.detect, methods=["POST"]),
            Route("/v1/point", self.point, methods=["POST"]),
            Route("/v1/ask", self.ask, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/setup", self.set_up, methods=["POST"]),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/webhook", self.webhook, methods=["POST"]),
            Route(f"{x_anylabeling.PREFIX}/v1/models", self.list_for_x_anylabeling, methods=["GET"]),
            Route(f"{x_anylabeling.PREFIX}/v1/predict", self.predict_shapes, methods=["POST"]),
            *self._settings.routes,
        ]
        handlers = {Refusal: refused, HTTPException: unrouted, ClientDisconnect: left, Exception: failed}
        inner = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)  # type: ignore[arg-type]
        return Guard(
            inner,
            keys=self._settings.keys,
            limits=self._settings.limits,
            metrics=self._metrics,
            paths=[route.path for route in routes],
            open_paths=self._settings.open_paths,
            log=self._settings.log,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._ready = True
        try:
            yield
        finally:
            self._ready = False
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for model in self._models.values():
            model.close()

    async def page(self, request: Request) -> Response:
        """The page to try it on."""
        return FileResponse(STATIC / "index.html", headers={"content-security-policy": PAGE_POLICY})

    async def docs(self, request: Request) -> Response:
        """The OpenAPI document for people."""
        return FileResponse(STATIC / "docs.html", headers={"content-security-policy": PAGE_POLICY})

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return JSONResponse(self._document)

    async def health(self, request: Request) -> Response:
        """Whether the process runs."""
        return JSONResponse({"status": "UP", "model_class": "edgetune"})  # the words of Label Studio's ML backends

    async def ready(self, request: Request) -> Response:
        """Whether it takes requests."""
        return JSONResponse({"status": "ready" if self._ready else "ending"}, 200 if self._ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_models(self, request: Request) -> Response:
        """The bundles, in the form of OpenAI's list with ours beside."""
        data = []
        for model in self._models.values():
            bundle = model.session.bundle
            more = {"family": bundle.family, "format": bundle.format, "precision": bundle.precision}
            most = {"max_length": bundle.limits.max_length, "max_image_tokens": bundle.limits.max_image_tokens}
            entry = {"id": model.name, "object": "model", "created": model.started, "owned_by": "edgetune"}
            data.append(entry | more | most)
        return JSONResponse({"object": "list", "data": data})

    async def detect(self, request: Request) -> Response:
        """Boxes of what phrases name."""
        return await self._ground(request, "Detect", "detections")

    async def point(self, request: Request) -> Response:
        """The middle of each of those boxes."""
        return await self._ground(request, "Point", "points")

    async def _ground(self, request: Request, schema: str, kind: str) -> Response:
        body, model = await self._body(request, schema, form=True)
        waited: list[float] = []
        pieces = self._found(model, body, waited)
        if not body.get("stream"):
            answers = await while_connected(request, _gathered(pieces))
            return JSONResponse(detect.response(model.name, answers, kind, waited[0]))
        first = await while_connected(request, anext(pieces))

        async def events() -> AsyncIterator[Any]:
            yield _event_of(first, kind, waited[0])
            async for answered in pieces:
                yield _event_of(answered, kind, 0.0)

        return event_stream(request, events())

    async def _found(self, model: Model, body: Mapping[str, Any], waited: list[float]) -> AsyncIterator[Answered]:
        """The answers to the phrases of a body, counted."""
        first = True
        async for answered in self._run(model, detect.grounding(body, self._pictures), waited):
            self._count(model, answered.timings, waited, first=first)
            first = False
            yield answered

    async def set_up(self, request: Request) -> Response:
        """Whether Label Studio may ask, with a project's labelling config."""
        with _logging(request):
            body, model = await self._body(request, "LabelStudioSetup", form=False)
            label_studio.Config(body["schema"], "schema", self._settings.limits)
        return JSONResponse({"model_version": label_studio.version(model.name, model.session.bundle)})

    async def predict(self, request: Request) -> Response:
        """Boxes for tasks of Label Studio, one turn in the queue for each picture."""
        with _logging(request):
            body, model = await self._body(request, "LabelStudioPredict", form=False)

            async def asking(image: bytes, phrases: Sequence[str]) -> list[Answered]:
                return await _gathered(self._found(model, {"image": image, "phrase": list(phrases)}, []))

            config = label_studio.Config(body[label_studio.CONFIG], limits=self._settings.limits)
            version = label_studio.version(model.name, model.session.bundle)
            answer = label_studio.predictions(body, config, version, self._opened, asking)
            results = await while_connected(request, answer)
        errors = [each["error"]["message"] for each in results if "error" in each]
        request.state.log.update({"tasks": len(results), "tasks_refused": len(errors)})
        if errors:
            request.state.log["refusal"] = errors[0]
        return JSONResponse({"results": results})

    async def _opened(self, reference: str, param: str) -> bytes:
        """The picture that a task of Label Studio refers to."""
        refuse_elsewhere(reference, self._files, param)
        source = self._files if self._files is not None and self._files.has(reference) else self._pictures
        return await asyncio.to_thread(source.content, reference, param)

    async def webhook(self, request: Request) -> Response:
        """An event of Label Studio, which is counted: nothing is trained here."""
        body, _ = await self._body(request, "LabelStudioWebhook", form=False)
        action = body["action"] if body["action"] in label_studio.EVENTS else "other"
        self._metrics.events.labels(action).inc()
        for origin in label_studio.origins(body):
            self._metrics.regions.labels(origin).inc()
        request.state.log["action"] = action
        return JSONResponse({"status": "ok", "action": action, "detail": "counted in /metrics; nothing is trained"})

    async def list_for_x_anylabeling(self, request: Request) -> Response:
        """The bundles, as X-AnyLabeling lists them."""
        return JSONResponse(x_anylabeling.listed(self._models.values()))

    async def predict_shapes(self, request: Request) -> Response:
        """Boxes as shapes of X-AnyLabeling."""
        body, model = await self._body(request, "XAnyLabelingPredict", form=False)
        phrases = x_anylabeling.phrases(body["params"], self._settings.limits)
        found = self._found(model, {"image": body["image"], "phrase": phrases}, [])
        answers = await while_connected(request, _gathered(found))
        return JSONResponse(x_anylabeling.shapes(answers, body["params"].get("conf_threshold", 0.0)))

    async def ask(self, request: Request) -> Response:
        """An answer in words."""
        body, model = await self._body(request, "Ask", form=True)
        waited: list[float] = []
        run = self._run(model, detect.asking(body, self._pictures), waited)
        (answered,) = await while_connected(request, _gathered(run))
        self._count(model, answered.timings, waited)
        told = {"model": model.name, "answer": answered.answer, "image": detect.size(answered.image)}
        return JSONResponse(told | {"timings": detect.timings([answered], waited[0])})

    async def chat(self, request: Request) -> Response:
        """Chat completions of OpenAI's API."""
        body, model = await self._body(request, "Chat", form=False)
        question = Question.of(body)
        if question.picture is not None:
            question = replace(question, picture=await self._pictures.here(question.picture, MESSAGE))
        waited: list[float] = []

        async def counted() -> AsyncIterator[Piece]:
            async for piece in self._run(model, answering(question, self._pictures), waited):
                if piece.timings is not None:
                    self._count(model, piece.timings, waited, picture=question.picture is not None)
                yield piece

        completion, logprobs = Completion(model.name), question.logprobs
        if not body.get("stream"):
            found = await while_connected(request, _gathered(counted()))
            return JSONResponse(completion.whole(found, logprobs=logprobs))
        pieces = counted()
        first = await while_connected(request, anext(pieces))
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        unused = {"usage": None} if usage else {}

        async def events() -> AsyncIterator[Any]:
            yield completion.chunk(first, first=True, logprobs=logprobs) | unused
            last = first
            async for last in pieces:
                yield completion.chunk(last, first=False, logprobs=logprobs) | unused
            if usage:
                yield completion.usage(last)

        return event_stream(request, events())

    def _count(
        self, model: Model, timings: Timings, waited: list[float], *, first: bool = True, picture: bool = True
    ) -> None:
        """Count an answer in the figures."""
        encoded = timings.vision or not getattr(model.session, "encodes", True)
        image = ("new" if encoded else "known") if first and picture else None
        self._metrics.answered(model.name, timings, queue=waited[0] if first else None, image=image)

    async def _body(self, request: Request, schema: str, *, form: bool) -> tuple[dict[str, Any], Model]:
        """A request's fields, its picture fetched where it was given by address, and the model that it names.

        Raises:
            Refusal: they cannot be used.
        """
        body = await read_body(request, self._schemas[schema], form=form)
        model = self._model(request, body)
        if "image" in body:
            body["image"] = await self._pictures.here(body["image"], "image")
        return body, model

    def _model(self, request: Request, body: Mapping[str, Any]) -> Model:
        """The model that a request names.

        Raises:
            Refusal: there is none of that name.
        """
        name = body.get("model") or next(iter(self._models))
        if name not in self._models:
            known = ", ".join(self._models)
            raise Refusal(404, f"there is no model {excerpt(name)}", hint=f"there are {known}", param="model")
        request.state.log["model"] = name
        return self._models[name]

    async def _run(self, model: Model, work: Callable[[Turn], Any], waited: list[float]) -> AsyncIterator[Any]:
        """What work yields in a model's thread; how long it waited goes to `waited` before its first piece."""

        def noting(turn: Turn) -> Any:
            waited.append(turn.waited)
            yield from work(turn)

        try:
            async with contextlib.aclosing(model.run(noting)) as pieces:
                async for piece in pieces:
                    yield piece
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.cancelled.inc()
            raise


def _event_of(answered: Answered, kind: str, queue: float) -> dict[str, Any]:
    return {**detect.result(answered, kind, queue), "image": detect.size(answered.image)}


@contextlib.contextmanager
def _logging(request: Request) -> Iterator[None]:
    """Have the log say why a request of Label Studio is refused, for its users are not shown that."""
    try:
        yield
    except Refusal as refusal:
        request.state.log["refusal"] = refusal.to_dict()["error"]["message"]
        raise


async def _gathered(pieces: AsyncIterator[T]) -> list[T]:
    return [piece async for piece in pieces]


def names_of(texts: Sequence[str]) -> dict[str, Path]:
    """Names and folders of bundles given as FOLDER or NAME=FOLDER; a folder alone is called by its own name.

    Raises:
        InputError: two have one name.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name:
            name, folder = Path(text).resolve().name, text
        if name in found:
            raise InputError(f"two bundles are called {name}", hint="give them names: NAME=FOLDER")
        found[name] = Path(folder)
    return found
