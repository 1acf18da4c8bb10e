"""The HTTP side: routes, keys, errors, health and metrics of an OpenAI-compatible server."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from components.serving.answering import Gone, still_there
from components.serving.api_errors import ApiError, invalid
from components.serving.chat_endpoint import chat
from components.serving.completion_endpoint import completions
from components.serving.protocol import ScoreAsked, parsed
from components.serving.replies import model_object
from components.serving.responses_endpoint import responses
from components.serving.service import Service
from components.serving.static_page import page
from components.serving.votes import ThumbAsked, VoteAsked, Votes, is_thumb

log = logging.getLogger(__name__)
Handler = Callable[[HttpRequest], Awaitable[Response]]
MOST_CONVERSATIONS = 256  # of a request to a reward model, which scores one after another
CLIENT_GONE = 499  # nginx's status for it


def new_app(service: Service, *, keys: Sequence[str] = (), hosts: Sequence[str] = ()) -> Starlette:
    """The ASGI application.

    keys: those that clients can use; empty: none is needed. hosts: names by which the server can be addressed; empty:
    any. Another name on a loopback address means that a web page points its own name there, to read from this server.
    """
    api = _Api(service, keys, hosts)
    posts = {
        "/v1/chat/completions": lambda http: chat(service, http),
        "/v1/completions": lambda http: completions(service, http),
        "/v1/responses": lambda http: responses(service, http),
        "/v1/score": api.score,
        "/v1/votes": api.vote,
    }
    gets = {
        "/v1/models": api.models,
        "/v1/models/{name:path}": api.model,
        "/metrics": api.metrics,
        "/v1/votes": api.votes,
        "/v1/runs": api.runs,
        "/v1/runs/{name:path}": api.run,
    }
    routes = [Route(path, api.endpoint(path, handler), methods=["POST"]) for path, handler in posts.items()]
    routes += [Route(path, api.endpoint(path, handler), methods=["GET"]) for path, handler in gets.items()]
    for path, handler in {"/health": api.health, "/": page, "/page/{name}": page}.items():
        routes.append(Route(path, api.endpoint(path, handler, is_open=True), methods=["GET"]))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_route})


class _Api:
    def __init__(self, service: Service, keys: Sequence[str], hosts: Sequence[str]) -> None:
        self.service = service
        self.keys, self.hosts = [key.encode() for key in keys], set(hosts)

    def endpoint(self, path: str, handler: Handler, *, is_open: bool = False) -> Handler:
        """A handler with its errors as the official API's; is_open: needs no key."""

        async def answered(http: HttpRequest) -> Response:
            start = time.monotonic()
            try:
                self._check_host(http)
                if not is_open:
                    self._check_key(http)
                response = await handler(http)
            except ApiError as error:
                response = JSONResponse(error.body(), error.status, error.headers)
            except (Gone, ClientDisconnect):
                response = Response(status_code=CLIENT_GONE)
            except Exception:
                log.exception("%s failed", path)
                failure = ApiError(500, "The server had an error; its log has more.", kind="server_error")
                response = JSONResponse(failure.body(), 500)
            self.service.metrics.add("gradus_requests_total", path=path, status=str(response.status_code))
            log.info("%s %s %d %.3f s", http.method, path, response.status_code, time.monotonic() - start)
            return response

        return answered

    def _check_key(self, http: HttpRequest) -> None:
        if not self.keys:
            return
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        matches = [
            hmac.compare_digest(given.strip().encode(), key) for key in self.keys
        ]  # all of them, each in constant time
        if scheme.lower() != "bearer" or not any(matches):
            message = (
                "Incorrect API key provided." if given else "You didn't provide an API key: Authorization: Bearer KEY"
            )
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_host(self, http: HttpRequest) -> None:
        name = http.headers.get("host", "").lower()
        name = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() and name.rpartition(":")[0] else name
        if self.hosts and name not in self.hosts:
            message = f"this server is not called {name[:80]!r}; to allow that name, start it with --allow-host NAME"
            raise ApiError(403, message, code="unknown_host")

    async def models(self, _: HttpRequest) -> Response:
        data = [model_object(served) for served in self.service.served.values()]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        served = self.service.served.get(name)
        if served is None:
            raise ApiError(404, f"The model {name[:80]!r} does not exist", code="model_not_found", param="model")
        return JSONResponse(model_object(served))

    async def score(self, http: HttpRequest) -> Response:
        """A reward model's score of each conversation, at the end of its last answer."""
        asked = parsed(await self.service.body(http), ScoreAsked)
        served = self.service.find(asked.model, generates=False)
        if not asked.conversations or not all(asked.conversations):
            raise invalid("messages: expected at least one conversation, and no empty one", "messages")
        if len(asked.conversations) > MOST_CONVERSATIONS:
            message = f"messages: expected at most {MOST_CONVERSATIONS} conversations, got {len(asked.conversations)}"
            raise invalid(f"{message}. Send them in several requests", "messages")
        data = []
        for number, messages in enumerate(asked.conversations):
            await still_there(http.is_disconnected)
            ids = await self.service.prepare(served.chat_ids, messages)
            if len(ids) > served.room:
                message = f"The conversation has {len(ids)} tokens; the model's context is {served.room}"
                raise invalid(message, "messages", "context_length_exceeded")
            value = await self.service.compute(partial(served.reward, ids))
            data.append({"object": "score", "index": number, "score": value, "tokens": len(ids)})
        return JSONResponse({"object": "list", "model": served.name, "data": data})

    async def vote(self, http: HttpRequest) -> Response:
        """Keeps a vote."""
        body = await self.service.body(http)
        asked = parsed(body, ThumbAsked if is_thumb(body) else VoteAsked)
        return JSONResponse(await self.service.prepare(self._kept_votes.add, asked))

    async def votes(self, _: HttpRequest) -> Response:
        return JSONResponse(await self.service.prepare(self._kept_votes.table))

    @property
    def _kept_votes(self) -> Votes:
        if self.service.votes is None:
            raise ApiError(404, "this server keeps no votes", code="no_votes")
        return self.service.votes

    async def runs(self, _: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": self.service.runs.listed()})

    async def run(self, http: HttpRequest) -> Response:
        """A run's lineage, curves and report card."""
        name = http.path_params["name"]
        if name not in self.service.runs.models:
            raise ApiError(404, f"The run {name[:80]!r} does not exist", code="run_not_found")
        return JSONResponse(await asyncio.to_thread(self.service.runs.described, name))

    async def health(self, _: HttpRequest) -> Response:
        alive = self.service.engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine has ended"}, 200 if alive else 503)

    async def metrics(self, _: HttpRequest) -> Response:
        return PlainTextResponse(self.service.page(), media_type="text/plain; version=0.0.4")


async def _no_route(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"Unknown request URL: {http.method} {http.url.path[:200]}"
    return JSONResponse(ApiError(error.status_code, message, code="unknown_url").body(), error.status_code)
