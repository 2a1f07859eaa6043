"""One untrained model and its page for the tests of this folder."""

import http.client
import json
import threading

import jax
import numpy as np
import pytest
import uvicorn
from untrained import write_model

import var_jax
from var_jax.demo import server
from var_jax.demo.answers import Answers
from var_jax.demo.explorer import Explorer
from var_jax.parallel import sharding


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("page") / "model")


@pytest.fixture(scope="session")
def explorer(folder):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return Explorer(var_jax.load(folder, mesh=mesh))


@pytest.fixture(scope="session")
def answers(folder, explorer):
    return Answers(explorer, str(folder))


class Page:
    """A page that is served, and what asks it."""

    def __init__(self, port):
        self.port, self.address = port, f"http://127.0.0.1:{port}"

    def ask(self, path, body, method="POST", **headers):
        """(status, JSON or text) of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        text = reply.read().decode()
        self.headers = reply.headers
        connection.close()
        is_json = reply.headers["Content-Type"].startswith("application/json")
        return reply.status, json.loads(text) if is_json else text


def serving(app):
    """A `Page` of an application, while the generator lives."""
    bound = server.bind("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    bound.listen()  # From here on a request waits for the server, and is not refused.
    thread.start()
    try:
        yield Page(bound.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def page(answers):
    yield from serving(server.application(answers))


@pytest.fixture(scope="session")
def serve():
    """Serves another application."""
    return serving


@pytest.fixture
def random_image():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8)
