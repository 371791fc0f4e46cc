"""CIFAR-10: load the official files, and unpack or download them if needed.

A record is 1 label byte and 3,072 pixel bytes: the red, the green and the blue plane of a 32x32 image, row by row. The
official archive holds 10,000 records in each of six files, five of training images and one of test images.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import http.client
import shutil
import tarfile
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minijepa.data import cifar10_python
from minijepa.errors import ConfigError, DataError
from minijepa.files import new_folder, open_plain, shell_word

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_BYTES = 170_052_171
DRAWN = "train on drawn shapes: train.py --dataset shapes"
SLOWEST = 10_000  # bytes a second; the download would take five hours

IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
FOLDER = "cifar-10-batches-bin"
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
ALL_FILES = FILES["train"] + FILES["test"]
PYTHON_FOLDER, PYTHON_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"  # what torchvision leaves


# ---------------------------------------------------------------------------------------------------------- loading


def load_cifar10(data_dir, split):
    """uint8 images (N, 3, 32, 32) and uint8 labels (N,) of ``split`` ("train" or "test"), in the order of the files.

    ``data_dir`` holds ``cifar-10-batches-bin/`` or, as torchvision leaves it, ``cifar-10-batches-py/``, or is that
    folder itself. A file may have any whole number of records. Raises DataError for a file that is missing, empty,
    truncated or mislabelled, ConfigError for an unknown split.
    """
    if split not in FILES:
        raise ConfigError(f"unknown split {split!r} of CIFAR-10: choose train or test")
    folder, suffix = _find(data_dir)
    records = np.concatenate([_read_records((folder / name).with_suffix(suffix)) for name in FILES[split]])
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, *IMAGE_SHAPE), records[:, 0].copy()


def has_cifar10(data_dir):
    """Whether all six files are in ``data_dir``, or in its ``cifar-10-batches-bin`` or ``cifar-10-batches-py``."""
    return len(_present(*_find(data_dir))) == len(ALL_FILES)


def has_some_cifar10(data_dir):
    """Whether at least one of the six files, or their archive, is there: then the user means CIFAR-10."""
    return bool(_present(*_find(data_dir))) or (Path(data_dir) / ARCHIVE).is_file()


def _present(folder, suffix):
    """Those of the six files that are in ``folder``."""
    return tuple(name for name in ALL_FILES if (folder / name).with_suffix(suffix).is_file())


def _find(data_dir):
    """The folder of the six files and their suffix: ".bin", or "" for those of the Python version.

    The folder that has the most of them; the official subfolder of ``data_dir`` if none has any.
    """
    home = Path(data_dir)
    if home.is_file():
        folder = shell_word(home.parent)
        raise DataError(f"{home} is a file: give the folder that it is in, --data-dir {folder}, or {DRAWN}")
    places = [(home / FOLDER, ".bin"), (home, ".bin"), (home / PYTHON_FOLDER, ""), (home, "")]
    return max(places, key=lambda place: len(_present(*place)))  # max keeps the first of equals


def _read_records(path):
    """The records of one file, uint8 (n, 3073), checked."""

    def refusal(reason):
        return DataError(f"{path} {reason}: {_remedy(path.parent)}")

    if not path.is_file():
        raise refusal("is missing")
    try:
        if path.suffix:
            data = np.fromfile(path, np.uint8)
        else:
            with open_plain(path, "rb") as file:
                data = cifar10_python.read_records(file).ravel()
    except OSError as error:
        raise refusal(f"can't be read ({error.strerror})") from error
    except ValueError as error:
        raise refusal(f"is not a CIFAR-10 file: {error}") from None
    if data.size == 0:
        raise refusal("is empty")
    if data.size % RECORD_BYTES:
        raise refusal(f"is truncated: {data.size:,} bytes are not a whole number of {RECORD_BYTES}-byte records")
    records = data.reshape(-1, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if wrong.size:
        raise refusal(f"is not a CIFAR-10 file: record {wrong[0]} has label {records[wrong[0], 0]}, not 0 to 9")
    return records


def _remedy(folder):
    named = folder.with_name(FOLDER) if folder.name == PYTHON_FOLDER else folder
    archive = named.parent / PYTHON_ARCHIVE
    unpack = f"unpack {archive} there (tar xzf), or " if archive.is_file() else ""
    return f"{unpack}put CIFAR-10's binary files ({ALL_FILES[0]} to {ALL_FILES[-1]}) into {named}, or {DRAWN}"


# --------------------------------------------------------------------------------------------------------- download


def unpack_cifar10(data_dir, archive_bytes=ARCHIVE_BYTES, md5=ARCHIVE_MD5):
    """Unpack the official archive if ``data_dir`` has it and nothing else of CIFAR-10; return whether it did.

    Raises DataError for an archive that is not the official one.
    """
    archive, folder = Path(data_dir) / ARCHIVE, Path(data_dir) / FOLDER
    if _present(*_find(data_dir)) or not archive.is_file():
        return False
    try:
        size = archive.stat().st_size
        with open_plain(archive, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if (size, found) != (archive_bytes, md5):
            raise DataError(
                f"{archive} is not the official archive: {size:,} bytes with MD5 {found}, not {archive_bytes:,} with "
                f"{md5}: remove it to have it downloaded, or {_remedy(folder)}"
            )
        with new_folder(folder) as unpacked:
            _unpack(archive, unpacked, folder)
    except OSError as error:
        if not has_cifar10(data_dir):  # else another process was faster, with the same files
            raise DataError(f"{archive} can't be unpacked ({error.strerror or error}): {_remedy(folder)}") from error
    return True


def download_cifar10(data_dir, url=URL, md5=ARCHIVE_MD5, archive_bytes=ARCHIVE_BYTES, timeout=30.0):
    """Download and unpack CIFAR-10 into ``data_dir/cifar-10-batches-bin``; do nothing if it is there.

    The archive's size and MD5 are compared before it is opened. ``timeout``: seconds that the server may be silent, or
    slower than SLOWEST. The finished folder gets its name in one step: an interrupted download leaves nothing, and two
    at once do not disturb each other. Returns the folder. Raises DataError if there is no network, the archive is not
    the expected one, or the folder exists but is incomplete (it is the user's, so it is left alone).
    """
    folder, suffix = _find(data_dir)
    try:
        if _present(folder, suffix) or (folder.is_dir() and any(folder.iterdir())):
            if missing := [name for name in ALL_FILES if name not in _present(folder, suffix)]:
                path = (folder / missing[0]).with_suffix(suffix)
                remedy = f"add the file, or move the folder away to have it downloaded, or {DRAWN}"
                raise DataError(f"{path} is missing, though the folder exists: {remedy}")
            return folder
        with new_folder(folder) as unpacked:
            archive = unpacked.parent / "archive.tar.gz"
            _fetch(url, archive, md5, archive_bytes, timeout, folder)
            _unpack(archive, unpacked, folder)
    except OSError as error:
        if not has_cifar10(data_dir):  # else another process was faster, with the same files
            reason = error.strerror or error
            raise DataError(f"CIFAR-10 can't be stored in {data_dir} ({reason}): {_remedy(folder)}") from error
    return folder


def _fetch(url, path, md5, archive_bytes, timeout, folder):
    """Stream ``url`` into the file ``path``; refuse another size or checksum."""
    checksum, received = hashlib.md5(usedforsecurity=False), 0
    progress = tqdm(total=archive_bytes, desc="CIFAR-10", unit="B", unit_scale=True, disable=None)  # None: off in files
    with open(path, "wb") as file, progress:
        for chunk in _receive(url, timeout, folder):
            received += len(chunk)
            if received > archive_bytes:
                raise DataError(f"{url} sends more than the {archive_bytes:,} bytes expected: {_remedy(folder)}")
            file.write(chunk)
            checksum.update(chunk)
            progress.update(len(chunk))
    if received < archive_bytes:
        raise DataError(f"{url} broke off after {received:,} of {archive_bytes:,} bytes: retry, or {_remedy(folder)}")
    if checksum.hexdigest() != md5:
        raise DataError(f"{url} has MD5 {checksum.hexdigest()}, expected {md5}: try again, or {_remedy(folder)}")


def _receive(url, timeout, folder):
    """Yield the bytes of ``url`` in pieces. Whatever fails inside is the network's fault: DataError."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            since, received = time.monotonic(), 0
            while chunk := response.read1(1 << 18):  # read1 returns what has arrived; read would wait for all of it
                yield chunk
                received += len(chunk)
                if (seconds := time.monotonic() - since) > timeout:
                    if received < SLOWEST * seconds:
                        raise TimeoutError(f"{received:,} bytes in {seconds:.0f} seconds are too slow")
                    since, received = time.monotonic(), 0
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()).strip("<>")
        raise DataError(f"CIFAR-10 can't be downloaded from {url} ({reason}): {_remedy(folder)}") from error


def _unpack(archive, unpacked, folder):
    """Write the six files of a checked archive into the folder ``unpacked``."""
    wanted = {f"{FOLDER}/{name}": unpacked / name for name in ALL_FILES}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isreg() and member.name in wanted:
                    with tar.extractfile(member) as content, open(wanted[member.name], "wb") as target:
                        shutil.copyfileobj(content, target)
    except (tarfile.TarError, EOFError, zlib.error) as error:  # damaged on disk after the checksum
        raise DataError(f"the archive is damaged ({error}): {_remedy(folder)}") from error
