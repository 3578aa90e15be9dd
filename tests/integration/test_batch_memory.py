"""Peak memory of whole commands over large or many clips, each in a process of its own."""

from pathlib import Path

import pytest

from scripts.bench.memory import peak_mb, write_clips

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return [str(file) for file in write_clips(tmp_path_factory.mktemp("large"), 24, height=1080, width=1920, kinds=3)]


def test_a_batch_of_large_clips_takes_a_chunk_of_them_and_no_more(large):
    """Nine frames of 1080p are 224 MB in float32: all 24 are 5,400, a chunk 805 and the clip that ends it."""
    score = ["score", "--batch-size", "24", "--json"]
    one, all_of_them = peak_mb([*score, large[0]]), peak_mb([*score, *large])
    assert all_of_them - one < 805 + 224 + 200, (one, all_of_them)
    assert all_of_them < 2500


def test_a_ranking_of_many_clips_takes_as_much_as_one_of_a_few(tmp_path):
    """Nine frames of 854x480 are 44 MB in float32: those of 64 clips take 2,800."""
    files = [str(file) for file in write_clips(tmp_path / "many", 64, height=480, width=854, num_frames=9, kinds=4)]
    rank = ["rank", "--prompt", "a red circle", "--json", "--batch-size", "8"]
    few, many = peak_mb([*rank, *files[:4]]), peak_mb([*rank, *files])
    assert many - few < 150, (few, many)
