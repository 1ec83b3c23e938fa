"""A zip in a bucket is read by ranges, shards are put whole, and what goes wrong is one line."""

import http.server
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
import s3fs
from shardline_bucket import BUCKET, Store, content, serve, small_zip

from shardify.cli import main
from shardify.conversion.build import BuildReport, build
from shardify.conversion.survey import BuildOptions, survey
from shardify.dataset.manifest import Manifest
from shardify.dataset.verify import verify
from shardify.errors import OutputError, StoreError
from shardify.storage.paths import Url, as_path
from shardify.workers.pool import InlinePool


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serve() as running:
        yield running


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work in this process: quicker than starting workers, and the same otherwise."""
    for user in ("workers.factory", "dataset.verify"):
        monkeypatch.setattr(f"shardify.{user}.create_pool", lambda target, **_: InlinePool(target))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_zip(tmp_path_factory.mktemp("source") / "x.zip")


@pytest.fixture(scope="module")
def local(packed: Path) -> dict[str, bytes]:
    out = packed.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "shardify.workers.factory.create_pool", lambda target, **_: InlinePool(target)
        )
        run(packed, out)
    return content(out)


def run(source: "str | Path", out: "str | Path", **options: object) -> BuildReport:
    chosen = {"val": 0.25, "workers": 1, "shard_samples": 5} | options
    progress = chosen.pop("progress", None)
    return build([as_path(source)], as_path(out), BuildOptions(**chosen), progress=progress)  # type: ignore[arg-type]


def stop_after(shards: int) -> object:
    calls = iter(range(1, 1000))

    def progress(done: int, total: int) -> None:
        del done, total
        if next(calls) == shards:
            raise KeyboardInterrupt

    return progress


def interrupted(store: Store, packed: Path, out: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(packed, f"s3://{BUCKET}/{out}", progress=stop_after(2))
    assert {name.partition("/")[0] for name in store.content(out)} == {".shardify"}


def test_from_bucket_to_bucket_gives_the_bytes_of_a_local_build(
    store: Store, packed: Path, local: dict[str, bytes]
) -> None:
    source = store.put("in/x.zip", packed.read_bytes())
    out = f"s3://{BUCKET}/same"
    report = run(source, out)
    assert store.content("same") == local
    assert report.out == out
    put = [each.path for each in store.asked("PUT")]
    assert put[-1].endswith("/manifest.json")


@pytest.mark.usefixtures("inline")
def test_several_resolutions_stand_in_a_bucket_as_in_a_folder(
    store: Store, packed: Path, tmp_path: Path
) -> None:
    out = f"s3://{BUCKET}/sizes"
    run(packed, out, res=(8, 16))
    run(packed, tmp_path / "out", res=(8, 16))
    assert store.content("sizes") == content(tmp_path / "out")
    assert run(packed, out, res=(8, 16)).already
    checked = verify(as_path(out), deep=True)
    assert checked.problems == []
    assert checked.decoded == 24 * 3 * 2


@pytest.mark.usefixtures("inline")
def test_no_more_of_the_zip_is_fetched_than_is_used(store: Store, tmp_path: Path) -> None:
    ballast = 24 << 20
    packed = small_zip(tmp_path / "x.zip", lead=bytes(ballast))
    used = packed.stat().st_size - ballast
    source = store.put("large.zip", packed.read_bytes())
    survey([as_path(source)], BuildOptions(val=0.25))
    fetched = store.asked("GET", "large.zip")
    assert all(each.range for each in fetched)
    assert sum(each.bytes for each in fetched) < 1.5 * used + (1 << 17)
    store.log.clear()
    run(source, tmp_path / "out")
    fetched = store.asked("GET", "large.zip")
    assert all(each.range for each in fetched)
    # The directory, what settles doubts, every payload, and some backgrounds again.
    assert sum(each.bytes for each in fetched) < 3 * used + (1 << 17)
    assert max(each.bytes for each in fetched) < 1 << 17


@pytest.mark.usefixtures("inline")
def test_an_interrupted_build_keeps_its_shards(
    store: Store, packed: Path, local: dict[str, bytes]
) -> None:
    interrupted(store, packed, "cut")
    kept = [name for name in store.content("cut") if name.startswith(".shardify/train-")]
    assert kept
    store.log.clear()
    run(packed, f"s3://{BUCKET}/cut")
    put = {each.path.rpartition("/")[2] for each in store.asked("PUT", "cut/.shardify/")}
    for record in kept:
        assert Path(record).with_suffix(".tar").name not in put
    assert store.content("cut") == local


@pytest.mark.usefixtures("inline")
def test_a_build_interrupted_while_the_store_copies_is_finished_by_the_next(
    store: Store, packed: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(packed, f"s3://{BUCKET}/copied")
    assert {name.partition("/")[0] for name in store.content("copied")} == {".shardify"}
    run(packed, f"s3://{BUCKET}/copied")
    assert store.content("copied") == local


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("damage", ["lost", "shorter", "other index", "no record"])
def test_a_shard_that_is_not_as_recorded_is_put_again(
    store: Store, packed: Path, local: dict[str, bytes], damage: str
) -> None:
    out = f"hurt-{damage.replace(' ', '-')}"
    interrupted(store, packed, out)
    staged = ".shardify/staging"
    tars = [name for name in store.content(f"{out}/{staged}") if name.startswith("train-")]
    name = Path(min(tars)).stem
    if damage == "lost":
        store.client.delete_object(Bucket=BUCKET, Key=f"{out}/{staged}/{name}.tar")
    elif damage == "shorter":
        store.put(f"{out}/{staged}/{name}.tar", b"x")
    elif damage == "other index":
        store.put(f"{out}/{staged}/{name}.idx", b"x")
    else:
        store.client.delete_object(Bucket=BUCKET, Key=f"{out}/.shardify/{name}.json")
    run(packed, f"s3://{BUCKET}/{out}")
    assert store.content(out) == local


@pytest.mark.usefixtures("inline")
def test_nothing_of_others_is_deleted(store: Store, packed: Path, local: dict[str, bytes]) -> None:
    interrupted(store, packed, "shared")
    others = {
        "notes.txt": b"a",
        ".shardify/theirs.json": b"b",
        ".shardify/staging/theirs.tar": b"c",
        "deep/train-00000.tar": b"d",
    }
    for name, data in others.items():
        store.put(f"shared/{name}", data)
    run(packed, f"s3://{BUCKET}/shared")
    assert store.content("shared") == local | others


@pytest.mark.usefixtures("inline")
def test_a_prefix_that_holds_something_else_is_refused(store: Store, packed: Path) -> None:
    store.put("taken/cat.jpg", b"x")
    with pytest.raises(OutputError, match="holds something else"):
        run(packed, f"s3://{BUCKET}/taken")
    assert store.content("taken") == {"cat.jpg": b"x"}
    interrupted(store, packed, "other")
    with pytest.raises(OutputError, match=r"unfinished build .* with other options"):
        run(packed, f"s3://{BUCKET}/other", seed=1)


@pytest.mark.usefixtures("inline")
def test_verify_names_the_object_at_fault(
    store: Store, packed: Path, local: dict[str, bytes]
) -> None:
    del packed
    for name, data in local.items():
        store.put(f"checked/{name}", data)
    tar = bytearray(local["train-00001.tar"])
    tar[600] ^= 1
    store.put("checked/train-00001.tar", bytes(tar))
    store.client.delete_object(Bucket=BUCKET, Key="checked/val-00000.idx")
    store.put("checked/train-00099.tar", b"x")
    problems = verify(as_path(f"s3://{BUCKET}/checked"), workers=1).problems
    assert [each.partition(":")[0] for each in problems] == [
        "train-00001.tar",
        "val-00000.idx",
        "train-00099.tar",
    ]


@pytest.mark.usefixtures("inline")
def test_a_prefix_stands_for_the_zips_under_it(store: Store, packed: Path, tmp_path: Path) -> None:
    store.put("folder/x.zip", packed.read_bytes())
    store.put("folder/readme.md", b"x")
    run(f"s3://{BUCKET}/folder/", tmp_path / "out")
    assert verify(tmp_path / "out", workers=1).samples == 24


@pytest.mark.usefixtures("inline")
def test_memory_and_file_urls_are_places_too(
    packed: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/x.zip", packed.read_bytes())
    run("memory://x.zip", "memory://out/one")
    found = {
        name.removeprefix("/out/one/"): memory.cat_file(name) for name in memory.find("/out/one")
    }
    assert found == local
    assert verify(as_path("memory://out/one"), deep=True).decoded == 72
    run(f"file://{packed}", f"file://{tmp_path}/out")
    assert content(tmp_path / "out") == local
    memory.rm("/", recursive=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("inspect s3://nowhere/x.zip", "s3://nowhere/x.zip: no bucket 'nowhere'; expected"),
        ("inspect s3://photos/none.zip", "s3://photos/none.zip: cannot be read (no such object)"),
        ("build ZIP s3://nowhere/out", "no bucket 'nowhere'; expected"),
        ("verify s3://photos/none", "s3://photos/none: no manifest.json; expected"),
        ("inspect nosuch://a/x.zip", "nosuch://a/x.zip: Protocol not known: nosuch"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(
    store: Store, packed: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    del store
    assert said in refused(words.replace("ZIP", str(packed)), capsys)


def test_no_credentials_are_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del store
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "s3://photos/x.zip: no credentials; expected" in refused(
        "inspect s3://photos/x.zip", capsys
    )
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_refused_connection_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del store
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "s3://photos/x.zip: the store cannot be reached" in refused(
        "inspect s3://photos/x.zip", capsys
    )
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_denied_bucket_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del store

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    # One that is at hand already has a method of its own.
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "info", denied)
    assert "s3://photos/x.zip: access denied; expected" in refused(
        "inspect s3://photos/x.zip", capsys
    )


def test_a_missing_package_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, "s3", raising=False)
    assert "s3:// needs a package that is not installed; pip install s3fs" in refused(
        "inspect s3://photos/x.zip", capsys
    )


class _Whole(http.server.SimpleHTTPRequestHandler):
    """Knows nothing of ranges: gives whole files."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_ignores_ranges_is_refused(tmp_path: Path) -> None:
    small_zip(tmp_path / "x.zip", lead=bytes(1 << 20))
    handler = partial(_Whole, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.zip"
        with pytest.raises(StoreError, match="expected a server that gives ranges"):
            survey([as_path(url)], BuildOptions())
        server.shutdown()


def test_a_url_reads_like_a_path() -> None:
    url = as_path("s3://bucket/a.b/x.tar")
    assert isinstance(url, Url)
    assert (url.name, url.stem, str(url / "y")) == ("x.tar", "x", "s3://bucket/a.b/x.tar/y")
    assert str(url.with_suffix(".idx")) == "s3://bucket/a.b/x.idx"
    assert url / "" == url
    assert as_path("https://host/x.zip?key=1/2") == Url("https://host/x.zip?key=1/2")
    assert Url("https://host/x.zip?key=1/2").name == "x.zip"
    assert as_path("a/b") == Path("a/b")
    assert as_path("s3://bucket/out/") == Url("s3://bucket/out")


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    return error


def test_stats_report_and_verify_of_a_url_say_what_they_say_of_the_folder(
    store: Store,
    packed: Path,
    local: dict[str, bytes],
    inline: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del inline
    url = f"s3://{BUCKET}/looked"
    for name, data in local.items():
        store.put(f"looked/{name}", data)
    here = packed.parent / "out"
    said = []
    for out in (str(here), url):
        main(["stats", out, "--json"])
        said.append(json.loads(capsys.readouterr().out) | {"out": ""})
        store.log.clear()
        main(["report", out, "-o", str(tmp_path / f"{len(said)}.html")])
        asked = [each for each in store.asked("GET", "looked/") if each.range]
        main(["verify", out])
        capsys.readouterr()
    # What lies together is one range, and how many samples stand on a background is known.
    tars = sum(name.endswith(".tar") for name in local)
    assert tars <= len(asked) <= 2 * tars + 2
    assert not [each for each in asked if each.path.endswith(".idx")]
    assert said[0] == said[1]
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["stats", f"s3://{BUCKET}/nowhere"])
    assert stop.value.code == 1
    assert "no manifest.json" in capsys.readouterr().err
