"""Head maps: files that say how much of a head's attention goes where."""

from __future__ import annotations

import pytest

from flowcache.kv.head_map import HeadMap


def test_a_head_map_is_read_or_refused_in_one_message(tmp_path):
    file = tmp_path / "small.json"
    file.write_text('{"mass": [[[0.5, 0.25, 0.25]]], "chunk_frames": 1, "weights": "w"}', encoding="utf-8")
    read = HeadMap.read(file)
    assert (read.name, read.mass, read.chunk_frames, read.size) == ("small", (((0.5, 0.25, 0.25),),), 1, (1, 1))
    assert read.provenance == {"weights": "w"}
    assert read.described().keys() == {"heads", "sha256"}
    for text, why in (
        ("{", "cannot be read as a head map"),
        ('{"mass": [[[0.5, 0.5]]], "chunk_frames": 2}', "more frames than a chunk's 2, and tells of 2"),
        ('{"mass": [[[0.5, 0.2]]], "chunk_frames": 1}', "shares must add up to 1"),
        ('{"mass": [[[0.5, 0.5]], [[1.0]]], "chunk_frames": 1}', "layer 1 has other heads or frames"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=why):
            HeadMap.read(file)
