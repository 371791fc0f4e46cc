import hashlib
import http.server
import io
import itertools
import pickle
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import python_2_pickle
from tiny import Planted, contents

import minijepa.data
from minijepa.backend import rng
from minijepa.data import cifar10
from minijepa.data.cifar10 import download_cifar10, has_cifar10, has_some_cifar10, load_cifar10, unpack_cifar10
from minijepa.data.pixels import MEAN, STD, normalise
from minijepa.errors import ConfigError, DataError, DtypeError, ShapeError


def record_file(seed, records=2):
    """The bytes of a small file in the official layout."""
    data = rng(seed, "records").integers(0, 256, (records, cifar10.RECORD_BYTES), np.uint8)
    data[:, 0] %= 10
    return data.tobytes()


CONTENTS = {name: record_file(i) for i, name in enumerate(cifar10.ALL_FILES)}


@pytest.fixture
def folder(tmp_path):
    """``tmp_path/cifar-10-batches-bin`` with all six files."""
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(call, *args, **kwargs):
    """The message of the DataError that ``call`` raises: one line that names both remedies."""
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert "--dataset shapes" in message
    return message


# ---------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("split, names", cifar10.FILES.items())
def test_load_gives_every_record_in_order(folder, split, names):
    """Files may have different numbers of records."""
    contents = CONTENTS | {"data_batch_3.bin": record_file(9, records=5)}
    (folder / "data_batch_3.bin").write_bytes(contents["data_batch_3.bin"])
    images, labels = load_cifar10(folder.parent, split)
    content = b"".join(contents[name] for name in names)
    assert images.dtype == labels.dtype == np.uint8 and images.shape[1:] == (3, 32, 32) and labels.ndim == 1
    assert b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)) == content
    # channel, row, column of one pixel, counted by hand: byte 1 + 2 * 1024 + 5 * 32 + 7
    assert images[1, 2, 5, 7] == content[3073 + 2216]
    with pytest.raises(ConfigError, match="unknown split 'val'"):
        load_cifar10(folder.parent, "val")


def test_the_folder_itself_is_accepted(folder):
    np.testing.assert_array_equal(load_cifar10(folder, "test")[0], load_cifar10(str(folder.parent), "test")[0])
    assert has_cifar10(folder) and has_cifar10(folder.parent)
    (folder / folder.name).mkdir()  # an empty folder hides nothing
    assert has_cifar10(folder) and len(load_cifar10(folder, "test")[1])


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, "is missing"),
        (b"", "is empty"),
        (CONTENTS["data_batch_2.bin"][:-1], "is truncated: 6,145 bytes"),
        (record_file(0) + bytes([10]) + bytes(3072), "record 2 has label 10, not 0 to 9"),
    ],
)
def test_a_bad_file_is_named_with_the_remedy(folder, content, problem):
    path = folder / "data_batch_2.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = refusal(load_cifar10, folder.parent, "train")
    assert message.startswith(str(path)) and problem in message and f"into {folder}" in message
    assert len(load_cifar10(folder.parent, "test")[1]) == 2  # the other split is not concerned
    assert has_cifar10(folder.parent) == (content is not None)


# ------------------------------------------------------------------------------------------- what torchvision leaves


@pytest.fixture
def python_folder(tmp_path):
    """The same images as in ``folder``, as torchvision leaves them."""
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in CONTENTS.items():
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        (folder / name).with_suffix("").write_bytes(python_2_pickle(records))
    (folder / "batches.meta").write_bytes(b"")
    return folder


def test_the_pickle_of_these_tests_is_one_of_a_numpy_array():
    """So that what is read below is what Python 2 and NumPy meant by it."""
    records = np.frombuffer(CONTENTS["test_batch.bin"], np.uint8).reshape(-1, 3073)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy.core is numpy._core by now
        content = pickle.loads(python_2_pickle(records), encoding="bytes")
    np.testing.assert_array_equal(content[b"data"], records[:, 1:])
    assert content[b"data"].dtype == np.uint8 and content[b"labels"] == records[:, 0].tolist()


def test_what_torchvision_leaves_is_read(folder, python_folder):
    for data_dir in (python_folder.parent, python_folder):
        assert has_cifar10(data_dir) and has_some_cifar10(data_dir)
        for split in ("train", "test"):
            np.testing.assert_equal(load_cifar10(data_dir, split), load_cifar10(folder, split))
    (python_folder / "data_batch_3").unlink()
    assert not has_cifar10(python_folder.parent) and has_some_cifar10(python_folder.parent)
    message = refusal(minijepa.data.load_dataset, "cifar10", python_folder.parent)
    assert message.startswith(f"{python_folder / 'data_batch_3'} is missing, though the folder exists")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Planted(), protocol=2), "mkdir, which CIFAR-10 does not use"),
        (pickle.dumps({"labels": [Planted()], "data": 1}, protocol=2), "mkdir, which CIFAR-10 does not use"),
        (pickle.dumps({b"labels": [1], b"data": np.zeros((1, 3072), np.uint8)}, protocol=2), "does not use"),
        (pickle.dumps({"labels": [1]}, protocol=2), "it is not a pickle of CIFAR-10"),
        (pickle.dumps(Planted()), "it is not a pickle of CIFAR-10"),  # an operation of a later protocol
        (pickle.dumps([1, 2], protocol=2), "it is not a pickle of CIFAR-10"),
        (b"\x80\x05\x96" + bytes([0, 0, 0, 0, 4, 0, 0, 0]) + b".", "it is not a pickle of CIFAR-10 (150)"),  # 16 GB
        (b"\x80\x02}r\xff\xff\xff\x7fK\x01K\x02s.", "it is not a pickle of CIFAR-10"),  # a memo of two billion
        (b"no pickle", "it is not a pickle of CIFAR-10"),
        (b"", "it is not a pickle of CIFAR-10"),
        (python_2_pickle(np.zeros((2, 3073), np.uint8))[:-100], "it is not a pickle of CIFAR-10"),
        (python_2_pickle(np.zeros((2, 3073), np.uint8)).replace(b"\x02u1", b"\x02i1"), "its data are not uint8 images"),
        (python_2_pickle(np.full((2, 3073), 10, np.uint8)), "record 0 has label 10, not 0 to 9"),
        (python_2_pickle(np.zeros((0, 3073), np.uint8)), "is empty"),
    ],
)
def test_a_pickle_is_read_and_not_run(python_folder, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (python_folder / "test_batch").write_bytes(content)
    message = refusal(load_cifar10, python_folder.parent, "test")
    assert message.startswith(f"{python_folder / 'test_batch'} is") and words in message
    assert f"into {python_folder.with_name(cifar10.FOLDER)}" in message
    assert not (tmp_path / "planted").exists()


# ---------------------------------------------------------------------------------------------------- normalisation


def test_normalise_is_the_formula():
    images = rng(0, "images").integers(0, 256, (5, 3, 32, 32), np.uint8)
    for statistics in ((MEAN, STD), ((0.0, 0.1, 0.5), (0.5, 0.1, 1.0))):
        y = normalise(images, *statistics)
        assert y.dtype == np.float32 and y.shape == images.shape
        mean, std = (np.array(values).reshape(3, 1, 1) for values in statistics)
        np.testing.assert_allclose(y, (images / 255.0 - mean) / std, atol=2e-6)
        np.testing.assert_array_equal(normalise(images[2], *statistics), y[2])
    np.testing.assert_array_equal(normalise(images), normalise(images, MEAN, STD))


def test_normalise_refuses_floats_and_other_layouts():
    with pytest.raises(DtypeError, match="got float32: is it normalised already"):
        normalise(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(ShapeError, match=r"got images \(4, 32, 32, 3\)"):
        normalise(np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(ShapeError, match="3 means and 2 deviations"):
        normalise(np.zeros((4, 3, 32, 32), np.uint8), std=(1.0, 1.0))


# --------------------------------------------------------------------------------------------------------- download


def member(name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def official_members():
    files = CONTENTS | {"batches.meta.txt": b"airplane\n", "readme.html": b"<a/>"}
    folder = member(cifar10.FOLDER, kind=tarfile.DIRTYPE)
    return [folder, *(member(f"{cifar10.FOLDER}/{name}", content) for name, content in files.items())]


def pack(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = pack(official_members())


class Server(http.server.ThreadingHTTPServer):
    requests = 0

    def serve(self, answer):
        """Serve a file, or what ``answer(handler)`` writes, from now on; return the address."""
        self.answer = answer if callable(answer) else sends(answer)
        return f"http://127.0.0.1:{self.server_port}/cifar.tar.gz"

    def handle_error(self, request, client_address):
        pass  # a client that hangs up early is part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.server.answer(self)

    def log_message(self, *args):
        pass


def sends(*parts, claim=None, pause=0.0, forever=False):
    """An answer of some parts, under a Content-Length of ``claim`` bytes; or of the parts again and again."""

    def answer(handler):
        handler.send_response(200)
        if not forever:
            handler.send_header("Content-Length", str(claim or sum(map(len, parts))))
        handler.end_headers()
        for part in itertools.cycle(parts) if forever else parts:  # until the client hangs up
            handler.wfile.write(part)
            time.sleep(pause)

    return answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download(data_dir, url, archive=ARCHIVE, **changes):
    """``download_cifar10``, told to expect ``archive``."""
    expected = {"md5": hashlib.md5(archive).hexdigest(), "archive_bytes": len(archive)}
    return download_cifar10(data_dir, url, **(expected | changes))


def test_download_gives_the_files_and_leaves_nothing_else(server, tmp_path, capsys):
    data_dir = tmp_path / "new" / "data"
    assert download(data_dir, server.serve(ARCHIVE)) == data_dir / cifar10.FOLDER
    assert [path.name for path in data_dir.iterdir()] == [cifar10.FOLDER]
    assert contents(data_dir / cifar10.FOLDER) == CONTENTS
    assert load_cifar10(data_dir, "train")[0].shape == (10, 3, 32, 32)
    assert capsys.readouterr() == ("", "")  # no progress bar where nobody watches


def test_download_leaves_the_files_that_are_there_alone_and_names_one_that_is_not(server, folder):
    url = server.serve(ARCHIVE)
    for data_dir in (folder.parent, folder):
        assert download(data_dir, url) == folder
    (folder / "data_batch_4.bin").unlink()
    for data_dir in (folder.parent, folder):
        assert refusal(download, data_dir, url).startswith(f"{folder / 'data_batch_4.bin'} is missing")
    assert server.requests == 0 and len(list(folder.iterdir())) == 5


ARCHIVE_BYTES = f"{len(ARCHIVE):,} bytes"
NOT_GZIP, CUT, NO_SUCH_BLOCK = b"<html>please log in</html>", ARCHIVE[: len(ARCHIVE) // 2], ARCHIVE[:10] + b"\x07"


@pytest.mark.parametrize(("answer", "reason", "changes"), [
    (ARCHIVE, "expected 123abc", {"md5": "123abc"}),
    (sends(ARCHIVE[:1000]), f"broke off after 1,000 of {ARCHIVE_BYTES}", {}),
    (sends(ARCHIVE[:1000], claim=len(ARCHIVE)), f"broke off after 1,000 of {ARCHIVE_BYTES}", {}),
    (sends(bytes(1 << 16), forever=True), f"sends more than the {ARCHIVE_BYTES} expected", {}),
    (lambda handler: handler.send_error(404), "404", {}),
    (lambda handler: time.sleep(1), "timed out", {"timeout": 0.1}),
    (sends(b"?", pause=0.01, forever=True), "are too slow", {"timeout": 0.1}),  # each byte comes in time
    (lambda handler: handler.wfile.write(b"nonsense\n"), "can't be downloaded", {}),
    *((archive, "the archive is damaged", {"archive": archive}) for archive in (NOT_GZIP, CUT, NO_SUCH_BLOCK)),
], ids=["checksum", "short", "broken off", "endless", "404", "silent", "slow", "not HTTP", "not gzip", "cut",
        "no such block"])  # fmt: skip
def test_a_failed_download_is_one_line_and_leaves_nothing(server, tmp_path, answer, reason, changes):
    message = refusal(download, tmp_path / "new" / "data", server.serve(answer), **changes)
    assert reason in message and f"into {tmp_path / 'new' / 'data' / cifar10.FOLDER}" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:port/x", "gopher://127.0.0.1/x", "http://127.0.0.1:0/x"])
def test_an_address_that_leads_nowhere_is_named(tmp_path, monkeypatch, url):
    monkeypatch.setenv("no_proxy", "*")
    assert url in refusal(download, tmp_path, url)


def test_nothing_is_written_but_the_six_files(tmp_path):
    """Whatever else an archive of the right checksum held."""
    others = [
        member("../escaped.bin"), member("/tmp/escaped.bin"), member(f"{cifar10.FOLDER}/../../escaped.bin"),
        member("data_batch_1.bin", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member(f"{cifar10.FOLDER}/test_batch.bin", kind=tarfile.FIFOTYPE),
    ]  # fmt: skip
    archive, unpacked = tmp_path / "archive.tar.gz", tmp_path / "unpacked"
    archive.write_bytes(pack([*official_members(), *others]))
    unpacked.mkdir()
    cifar10._unpack(archive, unpacked, unpacked)
    assert contents(unpacked) == CONTENTS
    assert sorted(tmp_path.iterdir()) == [archive, unpacked]


def test_a_data_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    message = refusal(download, tmp_path / "file" / "data", server.serve(ARCHIVE))
    assert f"can't be stored in {tmp_path / 'file' / 'data'}" in message
    assert server.requests == 0


def test_two_downloads_at_once(server, tmp_path):
    both_started = threading.Barrier(2, timeout=10)

    def answer(handler):
        both_started.wait()
        sends(ARCHIVE)(handler)

    url = server.serve(answer)
    results = ThreadPoolExecutor(2).map(lambda _: download(tmp_path, url), range(2))
    assert list(results) == [tmp_path / cifar10.FOLDER] * 2 and server.requests == 2
    assert [path.name for path in tmp_path.iterdir()] == [cifar10.FOLDER]
    assert load_cifar10(tmp_path, "train")[0].shape == (10, 3, 32, 32)


# ---------------------------------------------------------------------------------------- an archive in the data folder


def unpack(data_dir, archive=ARCHIVE):
    return unpack_cifar10(data_dir, len(archive), hashlib.md5(archive).hexdigest())


def test_an_archive_in_the_data_folder_is_unpacked_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(minijepa.data, "download_cifar10", None)  # calling it would fail
    monkeypatch.setattr(minijepa.data, "unpack_cifar10", unpack)
    assert not has_some_cifar10(tmp_path) and not unpack(tmp_path)
    (tmp_path / cifar10.ARCHIVE).write_bytes(ARCHIVE)
    assert has_some_cifar10(tmp_path) and not has_cifar10(tmp_path)
    for download in (False, True):
        assert len(minijepa.data.load_dataset("cifar10", tmp_path, download).train_labels) == 10
    files = contents(tmp_path / cifar10.FOLDER)
    assert files == CONTENTS and (tmp_path / cifar10.ARCHIVE).read_bytes() == ARCHIVE
    assert len(list(tmp_path.iterdir())) == 2 and not unpack(tmp_path)
    (tmp_path / cifar10.FOLDER / "data_batch_4.bin").unlink()  # nor does it touch files that are there
    assert not unpack(tmp_path) and len(list((tmp_path / cifar10.FOLDER).iterdir())) == 5


@pytest.mark.parametrize("content", [ARCHIVE[:-1], bytes([0]) + ARCHIVE[1:], b""])
def test_another_archive_is_refused_by_name(tmp_path, content):
    (tmp_path / cifar10.ARCHIVE).write_bytes(content)
    message = refusal(unpack, tmp_path)
    assert message.startswith(f"{tmp_path / cifar10.ARCHIVE} is not the official archive: {len(content):,} bytes")
    assert "remove it to have it downloaded" in message
    assert [path.name for path in tmp_path.iterdir()] == [cifar10.ARCHIVE]


def test_a_file_as_data_dir_names_its_folder(tmp_path):
    (tmp_path / cifar10.ARCHIVE).write_bytes(ARCHIVE)
    for call in (has_cifar10, has_some_cifar10, unpack_cifar10, lambda path: load_cifar10(path, "test")):
        message = refusal(call, tmp_path / cifar10.ARCHIVE)
        assert f" is a file: give the folder that it is in, --data-dir {tmp_path}, or" in message


def test_the_archive_of_the_python_version_is_named(tmp_path):
    (tmp_path / cifar10.PYTHON_ARCHIVE).write_bytes(b"")
    message = refusal(minijepa.data.load_dataset, "cifar10", tmp_path, download=False)
    assert f"unpack {tmp_path / cifar10.PYTHON_ARCHIVE} there (tar xzf), or put" in message


# ----------------------------------------------------------------------------------------------------- load_dataset


def test_load_dataset_downloads_only_if_allowed_and_takes_what_is_there(server, tmp_path, monkeypatch):
    assert not has_cifar10(tmp_path) and not has_cifar10(tmp_path / "nowhere")
    url = server.serve(ARCHIVE)
    monkeypatch.setattr(minijepa.data, "download_cifar10", lambda data_dir: download(data_dir, url))
    message = refusal(minijepa.data.load_dataset, "cifar10", tmp_path, download=False)
    assert message.startswith(f"{tmp_path / cifar10.FOLDER / 'data_batch_1.bin'} is missing") and server.requests == 0
    for _ in range(2):
        data = minijepa.data.load_dataset("cifar10", tmp_path)
    assert server.requests == 1
    assert (data.name, data.classes, data.mean, data.std) == ("cifar10", cifar10.CLASSES, MEAN, STD)
    arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    np.testing.assert_equal(arrays, load_cifar10(tmp_path, "train") + load_cifar10(tmp_path, "test"))
