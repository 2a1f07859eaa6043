"""The page with a server behind it, which draws one picture after the other.

It opens no file that a request names: what it serves are the files of the page, by their names.
It keeps nothing of a request, so that users do not meet. Numbers, sizes, the queue and the time
in it are bounded. Answers go to pages of the same address alone: a request must be JSON, which
other sites may not send, and name this host, which keeps out names that others point here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import logging
import socket
from collections.abc import Callable
from importlib import resources
from typing import Any

from var_jax.demo.answers import Answers
from var_jax.demo.requests import read_drawing, read_painting

#: The files of the page, and what they are.
FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "settings.js": "text/javascript",
    "pyramid.js": "text/javascript",
    "paint.js": "text/javascript",
    "app.js": "text/javascript",
}
#: Names by which a browser on this machine calls it.
LOOPBACK = ("127.0.0.1", "localhost")
#: Bytes of a request, pictures that wait, and seconds until a request is given up.
MAX_BODY, MAX_WAITING, MAX_SECONDS = 2**16, 16, 120
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not answered: status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Queue:
    """One thread that works; so many wait for it at most, and so long.

    Attributes:
      inside: requests that it works on, or that wait.
    """

    def __init__(self, waiting: int = MAX_WAITING, seconds: float = MAX_SECONDS) -> None:
        self._waiting, self._seconds = waiting, seconds
        self.inside = 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "draws")

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result.

        Raises:
          Refused: too many wait, or it took too long.
        """
        if self.inside > self._waiting:
            raise Refused(503, f"{self._waiting} pictures are waiting already; try again soon.")
        self.inside += 1
        future, loop = self._thread.submit(function, *args), asyncio.get_running_loop()
        # Also of what has been given up: until it ends, its thread is taken.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._left))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            message = f"This took longer than {self._seconds:g} seconds; try again later."
            raise Refused(503, message) from None

    def _left(self) -> None:
        self.inside -= 1


def check_installed() -> None:
    """Raises ValueError where a package is missing."""
    if not all(map(importlib.util.find_spec, ("starlette", "uvicorn"))):
        raise ValueError(
            "The page needs the packages starlette and uvicorn: pip install 'var_jax[page]'."
        )


def page_file(name: str) -> str:
    """The text of one of FILES."""
    return resources.files("var_jax.demo").joinpath("static", name).read_text()


def data_script(facts: dict[str, Any]) -> str:
    """data.js: what the page knows when it opens."""
    return f"window.PAGE = {json.dumps(facts, separators=(',', ':'))};\n"


def application(
    answers: Answers, hosts: tuple[str, ...] | None = LOOPBACK, queue: Queue | None = None
) -> Any:
    """The ASGI application.

    Args:
      answers: of the model.
      hosts: names by which it may be called; None is any.
      queue: a new one by default.

    Raises:
      ValueError: starlette is not installed.
    """
    check_installed()
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import Response
    from starlette.routing import Route

    queue = queue or Queue()

    def respond(content: str | bytes, kind: str, status: int = 200) -> Any:
        return Response(content, status, HEADERS, f"{kind}; charset=utf-8")

    def of_file(content: str, kind: str) -> Callable[..., Any]:
        async def serve(request: Any) -> Any:
            return respond(content, kind)

        return serve

    def of_request(read: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
        def work(body: bytes) -> dict[str, Any]:
            try:
                given = json.loads(body)
            except (ValueError, RecursionError):
                raise Refused(400, "The request is no JSON, or nested too deeply.") from None
            try:
                asked = read(given, answers.explorer)
            except ValueError as error:
                raise Refused(400, str(error)) from None
            return answer(asked)

        async def serve(request: Any) -> Any:
            status = 200
            try:
                found = await queue.run(work, await _body(request))
            except Refused as error:
                status, found = error.status, {"error": str(error)}
            except Exception:
                logging.exception("A request failed.")
                status, found = 500, {"error": "The server made a mistake; its log says which."}
            return respond(json.dumps(found), "application/json", status)

        return serve

    files = {name: of_file(page_file(name), kind) for name, kind in FILES.items()}
    files["data.js"] = of_file(data_script(answers.facts()), "text/javascript")
    routes = [Route(f"/{name}", serve) for name, serve in files.items()]
    routes.append(Route("/", files["index.html"]))
    for name, read, answer in (
        ("draw", read_drawing, answers.draw),
        ("paint", read_painting, answers.paint),
    ):
        routes.append(Route(f"/{name}", of_request(read, answer), methods=["POST"]))
    allowed = ["*"] if hosts is None else list(hosts)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=allowed)]
    return Starlette(routes=routes, middleware=middleware)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, so that who calls before `serve` waits; port 0 is any that is free.

    Raises:
      ValueError: the port is taken, or there is no such host.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        raise ValueError(
            f"The page cannot be at {host}:{port} ({error.strerror}); give another port or host."
        ) from None
    return bound


def serve(app: Any, bound: socket.socket) -> None:
    """Serves until Ctrl-C, or a signal that ends it."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=128,
        timeout_keep_alive=5,
        lifespan="off",
        ws="none",
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[bound])


async def _body(request: Any) -> bytes:
    """The bytes of a request.

    Raises:
      Refused: it is no JSON, or too long, or comes too slowly.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Refused(415, "A request must be application/json.")

    async def read() -> bytes:
        found = bytearray()
        async for part in request.stream():
            found += part
            if len(found) > MAX_BODY:
                raise Refused(413, f"A request has {MAX_BODY} bytes at most.")
        return bytes(found)

    try:
        return await asyncio.wait_for(read(), 10)
    except TimeoutError:
        raise Refused(408, "The request did not arrive in time.") from None
