"""A store that speaks S3 on the loopback and counts what is asked of it; and a small zip."""

import os
import threading
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from shardline_scenes import background, composite, depth, mask
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "photos"


@dataclass(frozen=True)
class Request:
    """What the store was asked, and how much it gave."""

    method: str
    path: str
    range: str
    bytes: int


class Store:
    """The server's record, and the objects as they are."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.log: list[Request] = []
        self.client = boto3.client("s3")

    def put(self, key: str, data: bytes) -> str:
        """Put an object without counting it. Returns its URL."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)
        self.log.clear()
        return f"s3://{BUCKET}/{key}"

    def asked(self, method: str, prefix: str = "") -> list[Request]:
        """Requests since the last ``put``, by method and by the beginning of the key."""
        lead = f"/{BUCKET}/{prefix}"
        return [each for each in self.log if each.method == method and each.path.startswith(lead)]

    def content(self, prefix: str) -> dict[str, bytes]:
        """Name below the prefix -> bytes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): self.client.get_object(Bucket=BUCKET, Key=key)[
                "Body"
            ].read()
            for key in keys
        }


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[Store]:
    """A store with one bucket; the environment names it and its credentials."""
    application = DomainDispatcherApplication(create_backend_app)

    def counting(environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        size = 0
        for block in application(environment, start):
            size += len(block)
            yield block
        store.log.append(
            Request(
                environment["REQUEST_METHOD"],
                environment["PATH_INFO"],
                environment.get("HTTP_RANGE", ""),
                size,
            )
        )

    server = make_server("127.0.0.1", 0, counting, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "reader")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "open sesame")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store(server.server_port)
        # Moto keeps buckets in the process, and an earlier store of it may have left some.
        urllib.request.urlopen(f"{store.endpoint}/moto-api/reset", data=b"").close()
        store.client.create_bucket(Bucket=BUCKET)
        try:
            yield store
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            store.client.close()
            server.shutdown()
            thread.join()
            server.server_close()


def small_zip(path: Path, samples: int = 24, backgrounds: int = 4, lead: bytes = b"") -> Path:
    """A zip with a folder for each background, and ``lead`` bytes before its first entry."""

    path.write_bytes(lead)
    with zipfile.ZipFile(path, "a" if lead else "w", zipfile.ZIP_DEFLATED) as file:

        def add(name: str, data: bytes) -> None:
            file.writestr(zipfile.ZipInfo(f"data_all/{name}"), data, zipfile.ZIP_DEFLATED)

        for number in range(1, backgrounds + 1):
            add(f"bg/park{number}.jpg", background(number))
        for number in range(samples):
            back = number % backgrounds + 1
            folder = f"bg_{back:03d}"
            stem = f"fg_{number % 3:03d}_{folder}_{number:06d}"
            add(f"fg_bg/{folder}/{stem}.jpg", composite(number, back))
            add(f"fg_bg_mask/{folder}/mask_{stem}.jpg", mask(number))
            add(f"fg_bg_depth/{folder}/depth_{stem}.png", depth(number))
    return path


def content(out: Path) -> dict[str, bytes]:
    """Name below the folder -> bytes."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
