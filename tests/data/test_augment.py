import numpy as np
import pytest

from minijepa.backend import rng
from minijepa.data.augment import augment, draw_windows, resized_crop
from minijepa.errors import DtypeError


def reference(images, draw, flip, shift):
    """The same, an image at a time, with NumPy's own flip and reflect padding."""
    flips = draw.random(len(images)) < 0.5 if flip else np.zeros(len(images), bool)
    top, left = (draw.integers(2 * shift + 1, size=len(images)) for _ in range(2))
    results = []
    for b, image in enumerate(images):
        padded = np.pad(image[:, :, :: -1 if flips[b] else 1], ((0, 0), (shift,) * 2, (shift,) * 2), mode="reflect")
        results.append(padded[:, top[b] : top[b] + image.shape[1], left[b] : left[b] + image.shape[2]])
    return np.stack(results)


def random_images(batch_size=40, height=32, width=32):
    return rng(1, "images").integers(0, 256, (batch_size, 3, height, width), np.uint8)


@pytest.mark.parametrize("flip, shift", [(True, 4), (True, 0), (False, 4), (False, 1), (True, 31), (False, 0)])
def test_equals_a_loop_over_images(flip, shift):
    images = random_images()
    original = images.copy()
    result = augment(images, rng(0, "augment"), flip, shift)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, reference(images, rng(0, "augment"), flip, shift))
    np.testing.assert_array_equal(images, original)
    assert np.array_equal(result, images) == (not flip and not shift)


def test_images_need_not_be_square_contiguous_or_bytes():
    images = random_images(height=20, width=24)[::2, :, ::-1, 4:]
    for some in (images, images.astype(np.float32)):
        found = augment(some, rng(0, "augment"), True, 4)
        assert found.dtype == some.dtype
        np.testing.assert_array_equal(found, reference(some, rng(0, "augment"), True, 4))


def test_flips_are_fair_and_every_shift_is_as_likely():
    """Where the middle of an 11 × 11 image of different pixels comes from tells the shift, its neighbour the flip."""
    image = np.arange(121).reshape(1, 1, 11, 11)
    found = augment(np.repeat(image, 9000, axis=0), rng(0, "augment"), True, 4)[:, 0, 5]
    assert abs((found[:, 5] < found[:, 4]).mean() - 0.5) < 0.02
    row, column = np.divmod(found[:, 5], 11)
    for place in (row, column):
        counts = np.bincount(place - 1, minlength=9)
        assert len(counts) == 9
        assert counts.min() > 880 and counts.max() < 1120  # 1000 expected, standard deviation 30
    assert abs(np.corrcoef(row, column)[0, 1]) < 0.05


def test_crops_of_bytes_are_refused():
    with pytest.raises(DtypeError, match="takes floats, was given uint8: normalise"):
        resized_crop(random_images(8, 6, 6), np.array([[0, 0, 1, 1]] * 8))


def bilinear(image, top, left, height, width):
    """One plane, pixel by pixel: a mean of the four neighbours, weighted by nearness."""
    size_y, size_x = image.shape
    result = np.empty(image.shape)
    for i in range(size_y):
        for j in range(size_x):
            y = np.clip(size_y * top + (i + 0.5) * height - 0.5, 0, size_y - 1)
            x = np.clip(size_x * left + (j + 0.5) * width - 0.5, 0, size_x - 1)
            y0, x0 = min(int(y), size_y - 2), min(int(x), size_x - 2)
            f, g = y - y0, x - x0
            rows = (1 - f) * image[y0] + f * image[y0 + 1]
            result[i, j] = (1 - g) * rows[x0] + g * rows[x0 + 1]
    return result


def test_resized_crops_equal_a_loop_over_pixels():
    images = rng(2, "floats").standard_normal((4, 2, 9, 12))
    windows = np.concatenate([draw_windows(3, rng(0, "windows"), (0.2, 0.9)), [[0, 0, 1, 1]]])
    result = resized_crop(images, windows)
    for b, window in enumerate(windows):
        for c in range(2):
            np.testing.assert_allclose(result[b, c], bilinear(images[b, c], *window), atol=1e-12)
    np.testing.assert_allclose(result[3], images[3], atol=1e-12)  # the whole image
    assert resized_crop(images.astype(np.float32), windows).dtype == np.float32


def test_windows_lie_inside_and_have_the_areas_and_shapes_asked_for():
    windows = draw_windows(20_000, rng(0, "windows"), (0.3, 0.5))
    top, left, height, width = windows.T
    assert windows.min() >= 0 and (top + height).max() <= 1 and (left + width).max() <= 1
    assert (height * width).min() >= 0.3 and (height * width).max() <= 0.5
    assert abs((height * width).mean() - 0.4) < 0.002
    assert (width / height).min() >= 3 / 4 and (width / height).max() <= 4 / 3
    assert abs(np.log(width / height).mean()) < 0.01
    assert abs(top.mean() - ((1 - height) / 2).mean()) < 0.005
