from pathlib import Path

import pytest

from capsprune.files import replacing, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "f.bin"
    with replacing(target) as partial:
        partial.write_bytes(b"new")
        assert not target.exists()
        assert partial.parent == tmp_path  # the same file system, so that renaming is one step
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_was_there_outlives_a_failure(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "f.txt"
    write_text(target, "old")
    with pytest.raises(stop), replacing(target) as partial:
        partial.write_text("ne")
        raise stop
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
