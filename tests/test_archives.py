"""Archives of pictures: reproducible, and refused when they are damaged or would write outside their folder."""

import pickle
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.datasets.archives import PictureArchives, checked_member_name, open_archive, read_member, write_archive

MEMBERS = [("a.jpg", b"first" * 100), ("folder/b.jpg", b"second" * 100)]
BAD_NAMES = ["../x", "a/../../x", "/etc/passwd", "..\\x", "\\x", "C:\\x", "C:x", ""]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "train-000.zip"
    write_archive(path, MEMBERS)
    return path


def test_there_and_back(archive: Path) -> None:
    with open_archive(archive) as opened:
        assert [(name, read_member(opened, name)) for name in opened.namelist()] == MEMBERS
        assert all(member.compress_type == zipfile.ZIP_STORED for member in opened.infolist())
        assert all(stat.S_IMODE(member.external_attr >> 16) == 0o600 for member in opened.infolist())


def test_equal_content_is_equal_bytes(archive: Path, tmp_path: Path) -> None:
    assert write_archive(tmp_path / "again.zip", iter(MEMBERS)) == 2
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"wanted a relative path without '\.\.'"):
        write_archive(tmp_path / "x.zip", [("good", b""), (name, b"")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_an_archive_with_such_a_name_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as foreign:
        foreign.writestr("good", b"")
        foreign.writestr(name, b"evil")
    with pytest.raises(ValueError, match="do not use it"), open_archive(tmp_path / "x.zip"):
        pass


@pytest.mark.parametrize("name", ["a..b/x.jpg", "...", "a/.hidden", "ä b.jpg"])
def test_harmless_names_are_kept(name: str) -> None:
    assert checked_member_name(name, Path("x.zip")) == name


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got the member 'a' twice"):
        write_archive(tmp_path / "x.zip", [("a", b"1"), ("a", b"2")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as foreign:
        foreign.writestr("a", b"1")
        foreign.writestr("a", b"2")
    with pytest.raises(ValueError, match="got the member 'a' twice"), open_archive(tmp_path / "x.zip"):
        pass


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def members():
        yield "a", b"1"
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        write_archive(tmp_path / "x.zip", members())
    assert list(tmp_path.iterdir()) == []


def test_an_archive_truncated_anywhere_is_refused(archive: Path) -> None:
    whole = archive.read_bytes()
    for size in range(0, len(whole), 7):
        archive.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole zip archive"), open_archive(archive):
            pass


def test_what_is_no_archive_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="not a whole zip archive"), open_archive(tmp_path / "x.zip"):
        pass
    with pytest.raises(ValueError, match="no such archive"), open_archive(tmp_path / "y.zip"):
        pass


def test_a_damaged_member_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[data.index(b"second") + 20] ^= 1
    archive.write_bytes(data)
    with open_archive(archive) as opened:
        assert read_member(opened, "a.jpg") == MEMBERS[0][1]
        with pytest.raises(ValueError, match=r"'folder/b.jpg' is damaged \(Bad CRC-32"):
            read_member(opened, "folder/b.jpg")
        with pytest.raises(ValueError, match=r"has no member 'c.jpg'"):
            read_member(opened, "c.jpg")


@given(st.data())
def test_any_flipped_byte_gives_the_same_content_or_a_value_error(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flipped") / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as foreign:
        for name, content in MEMBERS:
            foreign.writestr(name, content)
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        with open_archive(path) as opened:
            contents = [read_member(opened, name) for name in opened.namelist()]
    except ValueError:
        return
    assert contents == [content for _, content in MEMBERS][: len(contents)]


def test_pictures_are_read_by_archive_and_member(archive: Path) -> None:
    pictures = PictureArchives(archive.parent)
    assert pictures.read("train-000.zip/folder/b.jpg").read() == MEMBERS[1][1]
    copy = pickle.loads(pickle.dumps(pictures))
    assert copy.read("train-000.zip/a.jpg").read() == pictures.read("train-000.zip/a.jpg").read()


def test_pictures_that_are_not_there_or_damaged_are_refused(archive: Path) -> None:
    pictures = PictureArchives(archive.parent)
    with pytest.raises(ValueError, match=r"no such archive of pictures; run `dvc repro fetch`"):
        pictures.read("val-000.zip/a.jpg")
    with pytest.raises(ValueError, match=r"has no member 'b.jpg'"):
        pictures.read("train-000.zip/b.jpg")
    (archive.parent / "broken.zip").write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a whole zip archive"):
        pictures.read("broken.zip/a.jpg")
