"""What may have happened to the files of a checkpoint's step."""

import os
import shutil


def truncate_array(folder):
    largest = max((folder / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def truncate_array_of_unlisted_files(folder):
    (folder / "files.json").unlink()
    for file in (folder / "state").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)


DAMAGE = {
    # What an interrupted copy leaves.
    "only_the_folder": lambda d: (shutil.rmtree(d), d.mkdir()),
    "no_list_no_arrays": lambda d: (
        (d / "files.json").unlink(),
        [f.unlink() for f in (d / "state").rglob("d/*")],
    ),
    "no_metadata_folder": lambda d: shutil.rmtree(d / "metadata"),
    "truncated": truncate_array,
    "truncated_unlisted": truncate_array_of_unlisted_files,
    "array_deleted": lambda d: shutil.rmtree(d / "state" / "ocdbt.process_0"),
    "state_deleted": lambda d: shutil.rmtree(d / "state"),
    "metadata_deleted": lambda d: (d / "metadata" / "metadata").unlink(),
    "metadata_cut": lambda d: (d / "metadata" / "metadata").write_text('{"config": '),
    "metadata_of_another_kind": lambda d: (d / "metadata" / "metadata").write_text("[1]"),
    "metadata_not_text": lambda d: (d / "metadata" / "metadata").write_bytes(b"\xff\xfe"),
    "index_of_another_kind": lambda d: (d / "state" / "_METADATA").write_text("[]"),
    "list_of_another_kind": lambda d: (d / "files.json").write_text("[3]"),
    "index_deleted": lambda d: (d / "state" / "_METADATA").unlink(),
    "index_cut": lambda d: (d / "state" / "_METADATA").write_text("{"),
    "list_cut": lambda d: (d / "files.json").write_text("{"),
    "manifest_deleted": lambda d: (d / "state" / "manifest.ocdbt").unlink(),
}
