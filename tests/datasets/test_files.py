from __future__ import annotations

import functools
import hashlib
import http.server
import threading

import pytest

from pyronorm.datasets.files import (
    DATA_ROOT_VARIABLE,
    PublishedFile,
    fetch,
    find_data_root,
    find_folder,
    missing,
    read_verified,
)
from pyronorm.errors import DataError, MissingDataError, OptionError
from tests.datasets.builders import idx, write
from tests.datasets.test_mnist import IMAGES, LABELS, made_source


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(DATA_ROOT_VARIABLE, raising=False)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine; its folder and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_the_argument_comes_before_the_environment(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(tmp_path / "a"))
    assert find_data_root(None, "x") == tmp_path / "a"
    assert find_data_root(tmp_path / "b", "x") == tmp_path / "b"
    assert find_data_root(str(tmp_path / "b"), "x") == tmp_path / "b"


def test_no_data_root(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"mnist: .*data_root=.*PYRONORM_DATA"):
        find_data_root(None, "mnist")
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(
        MissingDataError, match=r"none \(environment variable PYRONORM_DATA\) is not"
    ):
        find_data_root(None, "mnist")
    with pytest.raises(MissingDataError, match=r"absent \(data_root\) is not a folder"):
        find_data_root(tmp_path / "absent", "mnist")
    assert find_data_root(tmp_path / "absent", "mnist", make=True).is_dir()


def test_the_first_folder_with_one_of_the_files(tmp_path):
    (tmp_path / "one").mkdir()
    write(tmp_path / "two" / "f", b"x")
    write(tmp_path / "three" / "f", b"x")
    assert find_folder(tmp_path, ("one", "two", "three"), ["e", "f"]) == tmp_path / "two"
    assert find_folder(tmp_path, ("one", "two"), ["e"]) is None


def test_the_error_of_a_missing_file_says_where_and_how(tmp_path):
    message = str(missing("mnist", "f.gz", [tmp_path / "a", tmp_path / "b"], "https://x.org"))
    for part in (
        "mnist",
        "f.gz",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "https://x.org",
        "download",
    ):
        assert part in message


def test_checksums(tmp_path):
    path = tmp_path / "f"
    md5 = write(path, b"content")
    assert md5 == hashlib.md5(b"content").hexdigest()
    assert read_verified(path, md5) == read_verified(path, None) == b"content"
    path.write_bytes(b"Content")
    with pytest.raises(
        DataError, match=f"expected MD5 {md5}, found [0-9a-f]{{32}} .7 bytes.*again"
    ):
        read_verified(path, md5)


def test_downloads_with_progress_and_checksum(server, tmp_path, capsys):
    pytest.importorskip("pooch")
    folder, url = server
    md5 = write(folder / "f.bin", bytes(100_000))
    file = PublishedFile("f.bin", md5, url + "f.bin")
    assert fetch(file, tmp_path / "new" / "x") == tmp_path / "new" / "x" / "f.bin"
    assert (tmp_path / "new" / "x" / "f.bin").read_bytes() == bytes(100_000)
    assert "100%" in capsys.readouterr().err
    (folder / "f.bin").unlink()  # what is there is not asked for again
    assert fetch(file, tmp_path / "new" / "x").is_file()


def test_a_download_that_fails_leaves_nothing(server, tmp_path):
    pytest.importorskip("pooch")
    folder, url = server
    md5 = write(folder / "f.bin", b"something else")
    wrong = PublishedFile("f.bin", "0" * 32, url + "f.bin")
    with pytest.raises(DataError, match=rf"f\.bin: no download from {url}.*{md5}"):
        fetch(wrong, tmp_path / "new", progress=False)
    with pytest.raises(DataError, match=r"no download from .*404"):
        fetch(PublishedFile("g", md5, url + "g"), tmp_path / "new", progress=False)
    assert not list((tmp_path / "new").iterdir())


def test_a_file_without_checksum_or_address_is_not_downloaded(tmp_path):
    pytest.importorskip("pooch")
    for file in (PublishedFile("f", "0" * 32), PublishedFile("f", None, "http://127.0.0.1/f")):
        with pytest.raises(OptionError, match="f: cannot be downloaded; place it in"):
            fetch(file, tmp_path)


def test_without_pooch_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(OptionError, match=r"pyronorm\[download\]"):
        fetch(PublishedFile("f", "0" * 32, "http://127.0.0.1/f"), tmp_path)


def test_mnist_format_from_a_server(server, tmp_path):
    """Missing files come; those that are there, also without gzip, stay."""
    pytest.importorskip("pooch")
    folder, url = server
    source = made_source(folder, base=url)
    target = tmp_path / "root"
    write(target / "made" / "train-labels", idx(LABELS["train"]))
    data = source.read(target, get=True, progress=False)
    assert sorted(path.name for path in (target / "made").iterdir()) == [
        "t10k-images.gz",
        "t10k-labels.gz",
        "train-images.gz",
        "train-labels",
    ]
    assert (data.train.x[:, 0] * 255).round().tolist() == IMAGES["train"].tolist()
