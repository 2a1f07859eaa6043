"""Tar files, read to their very end or not at all.

The standard library takes a header that is damaged or cut off for the end of the archive, so a
file that was copied halfway looks like a smaller one. Here an archive ends where its end mark
stands, with nothing behind it, or it is refused with the place.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import posixpath
import tarfile
from typing import BinaryIO

from etils import epath

from var_jax.data.class_folders import ending, is_hidden, printable

_BLOCK = tarfile.BLOCKSIZE
# Tar pads its last record with zeros, to 10 KiB by default. More than this are the unwritten part
# of a file whose space was set aside.
_MAX_PADDING = 2**21
_OTHER_FORMATS = (
    (b"\x1f\x8b", "compressed with gzip", "decompress it first (gzip -d)"),
    (b"BZh", "compressed with bzip2", "decompress it first (bzip2 -d)"),
    (b"\xfd7zXZ\0", "compressed with xz", "decompress it first (xz -d)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first (zstd -d)"),
    (b"PK", "a zip file", "unpack it and give the folder"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip file", "unpack it and give the folder"),
    (b"Rar!", "a rar file", "unpack it and give the folder"),
    (b"<", "a web page", "download the file itself, not the page about it"),
    (b"{", "a message in JSON", "download the file itself"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself (git lfs pull)"),
)
#: Endings of archives that are not read where they lie in another one.
PACKED = (".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
      name: its whole path in the archive.
      offset: where its bytes begin in the file that holds the archive.
      size: how many there are.
    """

    name: str
    offset: int
    size: int

    @property
    def base_name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.name)


@dataclasses.dataclass(frozen=True)
class Archive:
    """The files of an archive, in its order, links resolved; hidden ones are left out."""

    members: tuple[Member, ...]
    left_out: collections.Counter[str]

    def select(self, suffixes: tuple[str, ...]) -> list[Member]:
        """Those with one of the endings (in lower case); the others count as left out."""
        chosen = []
        for member in self.members:
            if member.name.lower().endswith(suffixes):
                chosen.append(member)
            else:
                self.left_out[ending(member.name)] += 1
        return chosen


def read_archive(path: epath.PathLike, within: Member | None = None) -> Archive:
    """Lists a tar file, or one that is a member of another.

    Args:
      path: a local file.
      within: the member of that file that is the archive to list.

    Raises:
      ValueError: no tar file, damaged or cut off, or something in it that cannot be read.
    """
    where = printable(os.fspath(path))
    if within is not None:
        where = f"{printable(within.name)} in {where}"
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size if within is None else within.size
        window = _Window(file, 0 if within is None else within.offset, size)
        _check_format(window.read(_BLOCK), where)
        window.seek(0)
        return _list(window, where)


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The bytes of a member of the archive that `file` is or holds.

    Raises:
      ValueError: the file has become shorter.
    """
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise ValueError(f"{printable(member.name)} is cut off at byte {file.tell()}.")
    return data


class _Window:
    """A part of a file as a file of its own: what lies behind it cannot be taken for its rest."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self.start, self.size, self._at = file, start, size, 0

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> int:
        self._at = place
        return place

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self._at)
        count = left if count < 0 else min(count, left)
        self._file.seek(self.start + self._at)
        data = self._file.read(count)
        self._at += len(data)
        return data


def _check_format(head: bytes, where: str) -> None:
    if not head:
        raise ValueError(f"{where} is an empty file; copy or download it again.")
    for magic, what, help_ in _OTHER_FORMATS:
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(magic):
            raise ValueError(f"{where} is {what} and no tar file; {help_}.")


def _list(window: _Window, where: str) -> Archive:
    found: dict[str, Member] = {}
    links: list[tuple[str, str]] = []
    left_out: collections.Counter[str] = collections.Counter()
    place, last = 0, "its beginning"
    try:
        tar = tarfile.TarFile(fileobj=window)
    except Exception as error:  # Besides its own errors, what numbers of nonsense lead to.
        raise ValueError(f"{where} is no tar file, or damaged at its beginning ({error}).") from (
            error
        )
    while True:
        try:
            info = tar.next()
        except Exception as error:
            raise _damaged(where, last, place, window.size, str(error)) from error
        if info is None:
            break
        name = posixpath.normpath(info.name.rstrip("/"))
        if info.size < 0 or info.offset < place or info.offset_data + info.size > window.size:
            raise _damaged(where, printable(name), info.offset, window.size, "it is not all there")
        place, last = tar.offset, printable(name)
        if info.isdir():
            continue
        if is_hidden(posixpath.basename(name)) or any(map(is_hidden, _folders(name))):
            left_out["hidden or system files"] += 1
        elif info.issym():
            links.append((name, posixpath.normpath(posixpath.join(name, "..", info.linkname))))
        elif info.islnk():
            links.append((name, posixpath.normpath(info.linkname)))
        elif info.issparse() or not info.isreg():
            raise ValueError(
                f"{last} of {where} is no plain file (sparse, of another volume, or a device), "
                "which is not read; pack the archive again."
            )
        elif name in found:
            raise ValueError(
                f"{where} holds {last} twice, so it is not clear which is meant; pack it again."
            )
        else:
            found[name] = Member(name, window.start + info.offset_data, info.size)
    _check_end(window, tar.offset, where, last)
    chain = dict(links)
    for name, target in links:
        seen = {name}
        while target in chain and target not in seen:
            seen.add(target)
            target = chain[target]
        if target not in found:
            raise ValueError(
                f"{printable(name)} of {where} is a link to {printable(target)}, which is not in "
                "it; pack the archive again, with the files themselves (tar --dereference)."
            )
        found[name] = dataclasses.replace(found[target], name=name)
    return Archive(tuple(found.values()), left_out)


def _folders(name: str) -> list[str]:
    return [part for part in posixpath.dirname(name).split("/") if part not in ("", ".", "..")]


def _check_end(window: _Window, place: int, where: str, last: str) -> None:
    """Checks that an end mark stands at `place`, and nothing but padding behind it."""
    window.seek(place)
    block = window.read(_BLOCK)
    if len(block) < _BLOCK:
        raise _damaged(where, last, place, window.size, "there is no end mark")
    if block.strip(b"\0"):
        raise _damaged(where, last, place, window.size, "what follows is no header")
    if window.size - place > _MAX_PADDING:
        reason = "what follows are zeros or another archive, not the padding of this one"
        raise _damaged(where, last, place, window.size, reason)
    if window.read().strip(b"\0"):
        raise ValueError(
            f"{where} goes on behind its end mark at byte {place}, as archives that were joined "
            "do; what follows would be missing: pack it as one archive."
        )


def _damaged(where: str, last: str, place: int, size: int, reason: str) -> ValueError:
    return ValueError(
        f"{where} is damaged or cut off at byte {place} of {size}, at or after {last} ({reason}); "
        "copy or download it again."
    )
