from pathlib import Path

import pytest

from shardify.storage.atomic_write import draft, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_what_a_block_wrote_takes_its_place_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "maps.png"
    path.write_text("old")
    with draft(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["maps.png"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [True, False])
def test_after_an_error_the_old_file_stands_and_no_half_of_the_new(
    tmp_path: Path, error: type[BaseException], begun: bool
) -> None:
    path = tmp_path / "maps.png"
    path.write_text("old")
    with pytest.raises(error), draft(path) as temporary:
        if begun:
            temporary.write_text("ne")
        raise error
    assert [each.name for each in tmp_path.iterdir()] == ["maps.png"]
    assert path.read_text() == "old"


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "Größe")
    assert (tmp_path / "page.html").read_bytes() == "Größe".encode()
