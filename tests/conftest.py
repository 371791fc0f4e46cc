import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_cifar(parent, per_file, test, spread=0):
    """A data folder with a CIFAR-10 of noise around a grey that tells the class, up to ``spread``."""
    draw = np.random.default_rng(1)
    folder = parent / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, count in [*((f"data_batch_{i}", per_file) for i in range(1, 6)), ("test_batch", test)]:
        labels = draw.permutation(np.arange(count) % 10)
        grey = labels * 15 + draw.integers(0, spread + 1, count)
        pixels = (grey[:, None] + draw.integers(0, 40, (count, 3072))).astype(np.uint8)
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder.parent


@pytest.fixture
def cifar_folder(tmp_path):
    """5 × 16 training and 20 test images."""
    return write_cifar(tmp_path, 16, 20)


@pytest.fixture
def overlapping_cifar_folder(tmp_path):
    """5 × 80 training and 40 test images whose classes overlap, as those of real features do."""
    return write_cifar(tmp_path, 80, 40, spread=60)
