import numpy as np
import pytest

from minijepa.data import load_dataset, split_validation
from minijepa.data.shapes import CLASSES, SHAPES, make_shapes
from minijepa.errors import ConfigError


@pytest.fixture(scope="module")
def many():
    return make_shapes(4000)


def test_shapes_dtypes_and_classes_in_no_fixed_order(many):
    images, labels = many
    assert images.shape == (4000, 3, 32, 32) and labels.shape == (4000,) and images.dtype == labels.dtype == np.uint8
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert len(np.unique(labels.reshape(-1, 10), axis=0)) > 390


@pytest.mark.parametrize("count", [0, 1, 17, 250, 251, 600])
def test_an_image_does_not_depend_on_the_count(many, count):
    np.testing.assert_equal(make_shapes(count), tuple(part[:count] for part in many))


def test_images_differ_from_each_other_and_between_seeds(many):
    images, _ = many
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    other, _ = make_shapes(250, seed=1)
    assert (other != images[:250]).mean() > 0.9


@pytest.mark.parametrize("count", [4000, 1234, 10, 3])
def test_classes_are_balanced(many, count):
    counts = np.bincount(many[1][:count], minlength=10)
    assert counts.sum() == count and counts.max() - counts.min() <= 1


def test_mean_colour_says_nothing_about_the_class(many):
    images, labels = many
    colour = images.mean(axis=(2, 3)) / 255.0
    for c in range(3):  # one-way analysis of variance: F(9, 3990) exceeds 3.1 once in a thousand
        groups = [colour[labels == k, c] for k in range(10)]
        between = sum(len(g) * (g.mean() - colour[:, c].mean()) ** 2 for g in groups) / 9
        within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (len(colour) - 10)
        assert between / within < 3.1
    inputs = np.concatenate([colour, np.ones((len(colour), 1))], axis=1)
    weights = np.linalg.lstsq(inputs[:2000], np.eye(10)[labels[:2000]], rcond=None)[0]
    accuracy = (np.argmax(inputs[2000:] @ weights, axis=1) == labels[2000:]).mean()
    assert accuracy < 0.12  # chance is 0.1 with a standard deviation of 0.007


def test_every_shape_stands_out_from_its_background():
    images, _ = make_shapes(500)
    # The two ends of an image along its own principal colour axis are at least about 0.5 · 255 apart, less texture.
    pixels = images.reshape(500, 3, -1).transpose(0, 2, 1).astype(np.float64)
    pixels -= pixels.mean(axis=1, keepdims=True)
    axis = np.linalg.eigh(pixels.transpose(0, 2, 1) @ pixels)[1][:, :, -1]
    along = (pixels @ axis[:, :, None])[..., 0]
    spread = np.percentile(along, 99, axis=1) - np.percentile(along, 1, axis=1)
    assert spread.min() > 70


GRID = np.linspace(-1.2, 1.2, 481)


@pytest.mark.parametrize("name", CLASSES)
def test_distance_functions(name):
    """Inside the unit circle, of visible size, and never steeper than 1: else edges would be aliased or blurred."""
    x, y = np.meshgrid(GRID, GRID)
    distance = SHAPES[name](x, y)
    inside = distance < 0
    assert np.hypot(x, y)[inside].max() < 1.02
    assert 0.15 < inside.mean() * 2.4**2 / np.pi < 0.85
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() < 1.001 * (GRID[1] - GRID[0])


def test_which_shapes_cover_a_point():
    """Points that tell the ten classes apart."""
    seen = dict.fromkeys(CLASSES, "")
    for x, y, expected in [
        (0.0, 0.0, {"disc", "square", "triangle", "cross", "star", "stripes", "hourglass"}),
        (0.0, 0.3, {"disc", "square", "triangle", "cross", "star", "hourglass"}),
        (0.0, 0.9, {"ring", "triangle", "cross", "star", "crescent"}),
        (-0.6, 0.0, {"disc", "ring", "square", "frame", "cross", "crescent", "stripes"}),
        (0.65, 0.65, {"ring", "square", "frame", "stripes"}),
        (0.3, 0.28, {"disc", "square", "triangle", "star"}),
        (0.6, 0.1, {"disc", "ring", "square", "frame", "cross", "star", "stripes"}),
    ]:
        covered = {name for name, shape in SHAPES.items() if shape(np.array([x]), np.array([y]))[0] < 0}
        assert covered == expected, (x, y)
        seen = {name: code + str(name in covered) for name, code in seen.items()}
    assert len(set(seen.values())) == 10


def test_load_dataset_shapes(tmp_path):
    data = load_dataset("shapes", tmp_path / "nowhere")
    assert data.name == "shapes" and data.classes == CLASSES
    assert data.train_images.shape == (10_000, 3, 32, 32) and data.test_images.shape == (2_000, 3, 32, 32)
    assert data.train_labels.shape == (10_000,) and data.test_labels.shape == (2_000,)
    np.testing.assert_array_equal(data.train_images[:100], make_shapes(100, seed=0)[0])
    np.testing.assert_array_equal(data.test_images[:100], make_shapes(100, seed=1)[0])
    for c in range(3):
        channel = data.train_images[:, c]
        assert abs(data.mean[c] - channel.mean() / 255.0) < 5.1e-5
        assert abs(data.std[c] - channel.std() / 255.0) < 5.1e-5
    assert all(isinstance(value, float) and value == round(value, 4) for value in data.mean + data.std)
    assert not (tmp_path / "nowhere").exists()


def test_load_dataset_refuses_an_unknown_name(tmp_path):
    with pytest.raises(ConfigError, match="unknown dataset 'mnist': choose cifar10 or shapes"):
        load_dataset("mnist", tmp_path)


# ------------------------------------------------------------------------------------------------ validation split


def numbered(count):
    """Images that carry their own number, so that a split can be followed."""
    return np.arange(count).reshape(-1, 1, 1, 1), make_shapes(count)[1]


def test_split_parts_are_disjoint_complete_and_in_order():
    images, labels = numbered(500)
    train_images, train_labels, val_images, val_labels = split_validation(images, labels, 120)
    assert len(train_images) == 380 and len(val_images) == 120
    train, val = train_images.ravel(), val_images.ravel()
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(500))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    np.testing.assert_array_equal(train_labels, labels[train])
    np.testing.assert_array_equal(val_labels, labels[val])


@pytest.mark.parametrize("val_size", [1, 10, 55, 200, 499])
def test_split_is_balanced(val_size):
    counts = np.bincount(split_validation(*numbered(500), val_size)[3], minlength=10)
    assert counts.sum() == val_size and counts.max() - counts.min() <= 1


def test_split_copes_with_unequal_classes():
    labels = np.array([0] * 3 + [1] * 30, np.uint8)
    val_labels = split_validation(np.arange(33), labels, 10)[3]
    assert np.bincount(val_labels).tolist() == [3, 7]


def test_split_is_fixed_random_and_nested():
    images, labels = numbered(500)
    small, again, large = (set(split_validation(images, labels, n)[2].ravel()) for n in (50, 50, 80))
    assert small == again and small < large
    assert max(small) > 400 and min(small) < 100


def test_split_of_nothing_and_of_too_much():
    images, labels = numbered(20)
    parts = split_validation(images, labels, 0)
    assert [len(part) for part in parts] == [20, 20, 0, 0]
    for val_size in (-1, 20):
        with pytest.raises(ConfigError, match=f"val_size {val_size} must be"):
            split_validation(images, labels, val_size)
