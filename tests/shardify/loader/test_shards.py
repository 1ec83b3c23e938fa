import tarfile
from pathlib import Path

import numpy as np
import pytest
from shardline_samples import write_data_set

from shardify.dataset.manifest import Manifest, StoredResolution
from shardify.errors import DataError
from shardify.loader.cpu_kernels import parse_numbers
from shardify.loader.shards import background_payloads, find_samples, load_manifest, open_split


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("shards") / "data")


@pytest.fixture
def own(tmp_path) -> Path:
    """A data set that the test may damage."""
    return write_data_set(tmp_path / "data", train=20, val=0, per_shard=8)


def open_train(folder: Path, **options: object):
    return open_split(folder, Manifest.load(folder), "train", **options)


@pytest.mark.parametrize("cache", ["disk", "ram"])
def test_payloads_are_the_bytes_of_the_tar(data, cache) -> None:
    shards = open_train(data, cache=cache)
    assert len(shards) == 40
    picked = np.array([39, 0, 17])
    for role, extension in (("fg_bg", "png"), ("mask", "png"), ("depth", "png"), ("bg", "cls")):
        for index, payload in zip(picked, shards.payloads(picked, role), strict=True):
            key = shards.keys(np.array([index]))[0]
            with tarfile.open(data / shards.files[index // 16].name) as tar:
                assert key == f"s{index:05d}"
                stream = tar.extractfile(f"{key}.{role}.{extension}")
                assert stream is not None
                assert payload.tobytes() == stream.read()
    assert shards.backgrounds(picked, count=3).tolist() == [0, 0, 2]


def test_payloads_are_views_that_nobody_can_write_to(data) -> None:
    payload = open_train(data).payloads(np.array([3]), "fg_bg")[0]
    assert payload.base is not None
    with pytest.raises(ValueError, match="read-only"):
        payload[0] = 1


def test_fingerprint_follows_the_bytes(data, tmp_path) -> None:
    same = write_data_set(tmp_path / "same")
    other = write_data_set(tmp_path / "other", train=39)
    assert open_train(same).fingerprint == open_train(data).fingerprint
    assert open_train(other).fingerprint != open_train(data).fingerprint


def test_missing_shard_is_named(own) -> None:
    (own / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"train-00001\.tar: missing; .*8 samples"):
        open_train(own)


def test_cut_shard_is_named(own) -> None:
    path = own / "train-00002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-00002\.tar: \d+ bytes; the manifest says \d+"):
        open_train(own)


@pytest.mark.parametrize("how", [{"cache": "ram"}, {"verify": True}])
def test_changed_shard_is_named_where_its_bytes_are_read_anyway(own, how) -> None:
    path = own / "train-00001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    open_train(own)
    with pytest.raises(DataError, match=r"train-00001\.tar: its bytes are not those"):
        open_train(own, **how)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v1.2 8", "v1.2 9", "expected 'v1.2 8'"),
        ("v1.2 8", "v1.1 8", "expected 'v1.2 8'"),
        ("mask.png", "", "words; expected EXTENSION OFFSET SIZE NAME"),
        ("mask.png", "deep.png", "line 2, s00008: its members are not"),
        ("s00010.mask.png", "s00011.mask.png", "line 4, s00010: its members are not"),
        ("bg.cls ", "bg.cls 99", "line 2, s00008: its members are not"),
        ("fg_bg.png 512", "fg_bg.png 513", "line 2, s00008: its members are not"),
        ("fg_bg.png 512", "fg_bg.png x12", "expected whole numbers"),
    ],
)
def test_index_that_cannot_be_is_named_with_the_sample(own, old, new, message) -> None:
    rewrite(own / "train-00001.idx", old, new)
    with pytest.raises(DataError, match=message) as caught:
        open_train(own)
    assert "train-00001.idx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_index_is_named(own) -> None:
    (own / "train-00000.idx").unlink()
    with pytest.raises(DataError, match=r"train-00000\.idx: cannot be read"):
        open_train(own)


def test_background_number_that_is_none_is_named(own) -> None:
    shards = open_train(own)
    with pytest.raises(DataError, match=r"train-00000\.tar: s00002: bg.cls holds b'00002'"):
        shards.backgrounds(np.array([0, 1, 2]), count=2)


def test_missing_and_changed_backgrounds_are_named(own) -> None:
    manifest = Manifest.load(own)
    assert len(background_payloads(own, manifest)) == 3
    path = own / "backgrounds.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"backgrounds\.tar: b0\.png: not the bytes"):
        background_payloads(own, manifest)
    path.unlink()
    with pytest.raises(DataError, match=r"backgrounds\.tar: cannot be read"):
        background_payloads(own, manifest)


def test_split_and_manifest_that_are_not_there_are_named(own, tmp_path) -> None:
    with pytest.raises(DataError, match=r"no samples in split 'val'; it has train \(20\)"):
        open_split(own, Manifest.load(own), "val")
    with pytest.raises(DataError, match=r"no manifest\.json"):
        load_manifest(tmp_path, res=64)


def test_the_smallest_resolution_that_suffices_is_chosen(own, tmp_path) -> None:
    top = Manifest.load(own)
    listed = [StoredResolution(res=res, path=f"res-{res:03d}") for res in (128, 64)]
    for one in listed:
        (tmp_path / one.path).mkdir()
        top.save(tmp_path / one.path)
    Manifest(
        created_by="t", source=[], options={}, layout={}, roles={}, backgrounds=[], splits={},
        resolutions=listed,
    ).save(tmp_path)  # fmt: skip
    for res, name in ((32, "res-064"), (64, "res-064"), (65, "res-128"), (512, "res-128")):
        assert load_manifest(tmp_path, res=res)[0].name == name


def test_samples_are_chosen_by_key(data) -> None:
    shards = open_train(data)
    assert find_samples(shards, ["s00007", "s00002"]).tolist() == [2, 7]
    assert find_samples(shards, []).tolist() == []
    with pytest.raises(DataError, match="no sample 'nobody'"):
        find_samples(shards, ["s00002", "nobody"])


def test_a_background_is_a_number_in_digits_and_nothing_else() -> None:
    texts = [b"00007", b"0", b"9" * 18, b"9" * 19, b"", b"1 ", b"-1", b"12a", b"/", b":"]
    memory = np.frombuffer(b"".join(texts) + b"!", np.uint8)
    sizes = np.array([len(text) for text in texts])
    begins = memory.__array_interface__["data"][0] + np.cumsum([0, *sizes[:-1]])
    found = np.zeros(len(texts), np.int64)
    parse_numbers(begins, sizes, found)
    assert found.tolist() == [7, 0, 10**18 - 1, -1, -1, -1, -1, -1, -1, -1]
