"""The page's server: what it answers, and what it refuses."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from var_jax.demo import server

DRAWING = {"label": 3, "seed": 5, "temperature": 2.0, "pins": [[2, 7]]}
NO_JSON = "The request is no JSON, or nested too deeply."
MASK = "00ff00ff" * 32


def pixels(address):
    kind, data = address.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., None]


def test_the_page_and_its_facts(page):
    for name in (*server.FILES, ""):
        status, text = page.ask(f"/{name}", b"", "GET")
        assert status == 200 and text == server.page_file(name or "index.html")
        assert "default-src 'none'; script-src 'self'" in page.headers["Content-Security-Policy"]
        assert page.headers["X-Content-Type-Options"] == "nosniff"
    status, text = page.ask("/data.js", b"", "GET")
    facts = json.loads(text.removeprefix("window.PAGE = ").rstrip(";\n"))
    assert facts["levels"] == [[1, 1], [2, 2], [4, 4], [4, 4]] and facts["mask"] == [32, 32]
    assert facts["settings"]["temperature"] == [1.6, 1.0, 0.8, 0.7]
    assert len(facts["palette"]) == facts["vocab_size"] == 32 and facts["reason"] == ""


def test_its_files_ask_for_nothing_from_elsewhere():
    for name in server.FILES:
        text = server.page_file(name)
        assert "http:" not in text and "https:" not in text and "innerHTML" not in text, name
    assert "style=" not in server.page_file("index.html")


def test_python_makes_the_same_picture(page):
    status, drawn = page.ask("/draw", DRAWING)
    assert status == 200
    assert [len(level["tokens"]) for level in drawn["levels"]] == [1, 4, 16, 16]
    check_python(drawn)


@pytest.mark.slow
def test_python_makes_the_same_painting(page):
    asked = {name: value for name, value in DRAWING.items() if name != "pins"}
    painting = {"drawing": asked, "mask": MASK, "label": 1, "seed": 2}
    status, painted = page.ask("/paint", painting)
    assert status == 200 and painted["image"] != page.ask("/draw", asked)[1]["image"]
    check_python(painted)


def check_python(answer):
    names = {}
    exec(answer["python"], names)
    assert np.abs(names["image"].astype(int) - pixels(answer["image"])).max() <= 1


def test_a_wrong_request_gets_a_sentence(page):
    for body, message in (
        ({"label": 3}, "seed is missing; give a whole number from 0 to 4294967295."),
        (b"{", NO_JSON),
        (b"\xff", NO_JSON),
        (b"[" * 30000, NO_JSON),
        (b'{"label": 3, "seed": NaN}', "seed is nan; give a whole number from 0 to 4294967295."),
    ):
        assert page.ask("/draw", body) == (400, {"error": message})
    assert page.ask("/draw", b" " * 2**17) == (413, {"error": "A request has 65536 bytes at most."})
    assert page.ask("/draw", DRAWING, Content_Type="text/plain")[0] == 415


def test_no_other_name_path_or_method_is_served(page):
    assert page.ask("/", b"", "GET", Host="evil.example")[0] == 400
    assert page.ask("/", b"", "GET", Host=f"localhost:{page.port}")[0] == 200
    for path in (
        "/../setup.py",
        "/%2e%2e/server.py",
        "/static/app.js",
        "//etc/passwd",
        "/app.js/..",
    ):
        assert page.ask(path, b"", "GET")[0] == 404
    assert page.ask("/draw", b"", "GET")[0] == 405
    assert page.ask("/app.js", DRAWING)[0] == 405


class Slow:
    """Answers that wait until they may go on."""

    def __init__(self, answers):
        self.explorer, self.facts = answers.explorer, answers.facts
        self.began, self.go_on = threading.Semaphore(0), threading.Event()

    def draw(self, drawing):
        self.began.release()
        self.go_on.wait()
        return {"seed": drawing.seed}

    paint = draw


def test_the_queue_is_bounded_and_each_gets_its_own_answer(answers, serve):
    slow, found = Slow(answers), {}
    queue = server.Queue(waiting=1)
    for page in serve(server.application(slow, queue=queue)):

        def ask(seed, page=page):
            found[seed] = page.ask("/draw", {"label": 0, "seed": seed})

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
        threads[0].start()
        slow.began.acquire()
        threads[1].start()
        while queue.inside < 2:  # Until the second waits.
            page.ask("/", b"", "GET")
        status, refused = page.ask("/draw", {"label": 0, "seed": 3})
        assert status == 503 and refused["error"].startswith("1 pictures are waiting already")
        slow.go_on.set()
        for thread in threads:
            thread.join()
        assert found == {seed: (200, {"seed": seed}) for seed in (1, 2)}
        assert page.ask("/draw", {"label": 0, "seed": 4}) == (200, {"seed": 4})


def test_what_takes_too_long_is_given_up_and_a_mistake_is_no_secret_of_the_server(answers, serve):
    slow = Slow(answers)
    for page in serve(server.application(slow, queue=server.Queue(seconds=0))):
        status, late = page.ask("/draw", {"label": 0, "seed": 1})
        assert status == 503 and late["error"].startswith("This took longer than 0 seconds")
        slow.go_on.set()

    class Broken(Slow):
        def draw(self, drawing):
            raise KeyError("secret")

    for page in serve(server.application(Broken(answers))):
        status, answer = page.ask("/draw", {"label": 0, "seed": 1})
        assert status == 500 and "secret" not in answer["error"]


def test_a_port_that_is_taken_is_told():
    bound = server.bind("127.0.0.1", 0)
    bound.listen()
    port = bound.getsockname()[1]
    with pytest.raises(ValueError, match=f"The page cannot be at 127.0.0.1:{port}"):
        server.bind("127.0.0.1", port)
    bound.close()
