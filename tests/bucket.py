"""A bucket on localhost: a GCS endpoint in a process of its own, and what points commands at it.

The emulator lacks two things that clients need, and gets them here: the header
x-goog-generation beside an object's content (tensorstore refuses an answer without it), and
objects.moveTo (gcsfs retries for half a minute before it falls back to copying).
"""

import contextlib
import re
import subprocess
import sys
import time
import urllib.request

NAME = "bucket"


def main(port: int) -> None:
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def download_with_generation(request, response, storage, *args, **kwargs):
        download(request, response, storage, *args, **kwargs)
        with contextlib.suppress(objects.NotFound):
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]

    # The server takes the handler when it is imported.
    objects.download = download_with_generation
    from gcp_storage_emulator import server, settings

    def move(request, response, storage, *args, **kwargs):
        request.params["dest_bucket_name"] = request.params["bucket_name"]
        objects.copy(request, response, storage)
        objects.delete(request, server.Response(None), storage)

    route = (
        rf"^{re.escape(settings.API_ENDPOINT)}/b/(?P<bucket_name>[-.\w]+)/o/"
        r"(?P<object_id>.*[^/]+)/moveTo/o/(?P<dest_object_id>.*[^/]+)$"
    )
    server.HANDLERS = ((route, {"POST": move}), *server.HANDLERS)
    server.create_server("localhost", port, in_memory=True, default_bucket=NAME).run()


@contextlib.contextmanager
def serve(port: int):
    """Runs the endpoint; yields the environment that points commands and this process at it."""
    url = f"http://localhost:{port}"
    # It speaks of every request, and of every client that hangs up.
    with subprocess.Popen(
        [sys.executable, __file__, str(port)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            while True:
                assert process.poll() is None, "The endpoint ended; run this file to see why."
                with contextlib.suppress(OSError), urllib.request.urlopen(url):
                    break
                time.sleep(0.1)
            yield {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                # Which kind of bucket it is cannot be asked of an emulator: a warning a call.
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
        finally:
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
