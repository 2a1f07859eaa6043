"""A local folder whose files a thread copies to a bucket, so that nobody waits for an upload."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import threading
import time

from absl import logging
from etils import epath

from var_jax.checkpoint.files import one_line

#: Seconds before each attempt to copy what is left at the end.
_LAST_PAUSES = (0, 1, 5)


class Mirror:
    """Copies the files of a new local folder that have changed to a bucket, every few minutes.

    An object takes the place of the old one when it is complete. What cannot be uploaded is
    warned of and tried again the next time.

    Args:
      target: gs:// folder; what is there and not in the local folder stays.
      every: seconds between two copies.
      patience: seconds that `close` waits for the last one.
    """

    def __init__(self, target: epath.Path, every: float = 120.0, patience: float = 60.0) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="var_jax-"))
        self._target = target
        self._every, self._patience = every, patience
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
        self._failure: str | None = None
        self._wake, self._ending = threading.Event(), threading.Event()
        # A daemon: an upload that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def copy_soon(self) -> None:
        """Asks for a copy now, without waiting for it."""
        self._wake.set()

    def close(self) -> None:
        """Copies what is left and removes the folder; if that fails, it stays and is named."""
        self._ending.set()
        self._wake.set()
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._failure = f"the upload did not end within {self._patience:.0f} s"
        if self._failure is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            logging.error(
                "The newest metrics and pictures are not in %s: %s; they lie in %s, copy them from "
                "there.",
                self._target,
                self._failure,
                self.folder,
            )

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(self._every)
            self._wake.clear()
            if self._ending.is_set():
                break
            self._copy()
            if self._failure is not None:
                logging.warning(
                    "Could not copy metrics and pictures to %s: %s; trying again in %.0f s.",
                    self._target,
                    self._failure,
                    self._every,
                )
        for pause in _LAST_PAUSES:
            time.sleep(pause)
            self._copy()
            if self._failure is None:
                break

    def _copy(self) -> None:
        self._failure = None
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            try:
                stat = file.stat()
                # Taken before the copy: what is written meanwhile goes up the next time.
                state = stat.st_size, stat.st_mtime_ns
                if self._uploaded.get(file) != state:
                    target = self._target / file.relative_to(self.folder).as_posix()
                    target.write_bytes(file.read_bytes())
                    self._uploaded[file] = state
            except Exception as error:
                self._failure = one_line(error)
