"""Images, augmentation and masks; independent of any model."""

from dataclasses import dataclass

import numpy as np

from minijepa.backend import rng
from minijepa.data import cifar10, shapes
from minijepa.data.augment import augment, draw_windows, resized_crop
from minijepa.data.cifar10 import download_cifar10, has_cifar10, has_some_cifar10, load_cifar10, unpack_cifar10
from minijepa.data.folder import read_folder
from minijepa.data.masking import Masks, MultiBlockMasker
from minijepa.data.pixels import MEAN, STD, normalise
from minijepa.data.shapes import make_shapes
from minijepa.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, 3, S, S), labels uint8 (N,) that index ``classes``; ``mean`` and ``std`` for ``normalise``.

    ``name``: its key in DATASETS, by which a checkpoint finds its images again.
    """

    name: str
    classes: tuple
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: tuple
    std: tuple


def load_dataset(name, data_dir, download=True):
    """The :class:`Dataset` called ``name``, read from ``data_dir``, or downloaded into it unless ``download`` is False.

    Raises ConfigError for an unknown name, DataError if the data are missing or broken and can't be downloaded.
    """
    if name not in DATASETS:
        raise ConfigError(f"unknown dataset {name!r}: choose {' or '.join(DATASETS)}")
    return DATASETS[name](data_dir, download)


def _cifar10(data_dir, download):
    """CIFAR-10; its archive is unpacked if ``data_dir`` has nothing else of it."""
    if not has_cifar10(data_dir) and not unpack_cifar10(data_dir) and download:
        download_cifar10(data_dir)
    train, test = load_cifar10(data_dir, "train"), load_cifar10(data_dir, "test")
    return Dataset("cifar10", cifar10.CLASSES, *train, *test, MEAN, STD)


def _shapes(data_dir, download):
    """10,000 training and 2,000 test images, generated and always the same."""
    train, test = make_shapes(10_000, seed=0), make_shapes(2_000, seed=1)
    return Dataset("shapes", shapes.CLASSES, *train, *test, *channel_statistics(train[0]))


DATASETS = {"cifar10": _cifar10, "shapes": _shapes}


def training_images(config, dataset):
    """(training images, labels, held-back images, labels), by ``val_size`` and ``max_train_images``."""
    size = dataset.train_images.shape[-1]
    if size != config.image_size:
        raise ConfigError(f"image_size is {config.image_size}, but {dataset.name} has images of {size}×{size}")
    parts = split_validation(dataset.train_images, dataset.train_labels, config.val_size)
    limit = config.max_train_images or None
    return parts[0][:limit], parts[1][:limit], parts[2], parts[3]


def split_validation(images, labels, val_size):
    """Hold ``val_size`` images back: (train_images, train_labels, val_images, val_labels), each in the given order.

    The split depends on ``labels`` and ``val_size`` alone, so that runs with different seeds use the same images. Every
    class gives the same number (to within one, as long as it has enough), and a smaller validation set is part of every
    larger one. Raises ConfigError if ``val_size`` is negative or leaves nothing to train on.
    """
    if not 0 <= val_size < len(labels):
        raise ConfigError(f"val_size {val_size} must be at least 0 and less than the {len(labels)} training images")
    order = rng(0, "validation split").permutation(len(labels))
    held_back = np.zeros(len(labels), bool)
    held_back[order[one_of_each_class(labels[order], val_size)]] = True
    return images[~held_back], labels[~held_back], images[held_back], labels[held_back]


def one_of_each_class(labels, count):
    """Indices of ``count`` images: the first of each class, then the second of each, and so on."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts
    return np.lexsort((labels, rank))[:count]


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), pixels in [0, 1], to 4 digits."""
    channels = [images[:, c].astype(np.float32) / 255.0 for c in range(images.shape[1])]
    mean = tuple(round(float(x.mean(dtype=np.float64)), 4) for x in channels)
    std = tuple(round(float(x.std(dtype=np.float64)), 4) for x in channels)
    return mean, std
