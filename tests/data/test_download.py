"""Downloads from a server on this machine, and how soon one that is not there is told."""

import dataclasses
import functools
import http.server
import re
import threading
import time

import pytest
from tensorflow_datasets.core.download import checksums

from abd_jax import data
from abd_jax.data import download, prepared
from tests.data import originals

EXPECTED = originals.arrays(20, 12, (28, 28, 1), 10)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    place = originals.write_idx(tmp_path / "served", EXPECTED)
    handler = functools.partial(Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def info(server):
    mnist = originals.tiny("mnist", 20, 12)
    return dataclasses.replace(mnist, files=tuple(f"{server}/{name}" for name in mnist.files))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(monkeypatch, info, digest):
    """Lets TFDS know an SHA-256 for every file."""
    known = {
        url: checksums.UrlInfo(size=size, checksum=checksum, filename=name)
        for name, url in download.urls(info).items()
        for size, checksum in [digest(name)]
    }
    monkeypatch.setattr(download, "published", lambda _: known)


def test_what_is_served_is_prepared(info, cache, tmp_path, monkeypatch):
    def digest(name):
        found = checksums.compute_url_info(tmp_path / "served" / name)
        return found.size, found.checksum

    publish(monkeypatch, info, digest)
    data.prepare(info)
    originals.equal(prepared.load(info).arrays, EXPECTED)
    assert [path.name for path in cache.iterdir()] == ["mnist"]  # the downloads are gone


def test_another_checksum_than_the_published_is_refused(info, cache, monkeypatch):
    publish(monkeypatch, info, lambda name: (1000, "0" * 64))
    with pytest.raises(ValueError, match="has wrong checksum"):
        data.prepare(info)
    assert list(cache.iterdir()) == []


def test_a_file_that_is_not_served(info, cache, tmp_path):
    (tmp_path / "served" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(OSError, match=r"mnist: the download failed .*404"):
        data.prepare(info)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_server_that_is_not_there_is_told_at_once(cache, address):
    gone = dataclasses.replace(originals.tiny("mnist", 20, 12), files=(f"{address}/x.gz",))
    started = time.perf_counter()
    with pytest.raises(OSError, match=r"cannot be reached .*without network: --from DIR"):
        data.prepare(gone)
    assert time.perf_counter() - started < download.SECONDS + 5
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", [name for name, info in data.CATALOG.items() if info.read])
def test_every_file_has_an_address_and_tfds_its_checksum(name):
    addresses = download.urls(data.info(name))
    published = download.published(data.info(name))
    assert len(addresses) == len(data.info(name).files)
    for file, address in addresses.items():
        assert address.endswith(f"/{file}")
        if name == "gtsrb":
            assert not published
        else:
            assert re.fullmatch("[0-9a-f]{64}", published[address].checksum)
