"""Files that are whole or absent, also after a power cut."""

import os
import stat

from eval.atomic import atomic_path


def test_the_file_and_then_its_new_name_are_on_the_disk(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def note(descriptor):
        synced.append(("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_path(path) as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert synced == [("file", False), ("folder", True)]
