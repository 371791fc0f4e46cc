import numpy as np
import pytest

from minijepa.backend import rng
from minijepa.data.augment import augment, draw_augmentation, draw_windows, resized_crop
from minijepa.errors import DtypeError, ShapeError


def reference(images, augmentation):
    """The same, an image at a time, with NumPy's own flip and reflect padding."""
    results = []
    for i, image in enumerate(images):
        if augmentation.flip[i]:
            image = image[:, :, ::-1]
        p, top, left = augmentation.padding, augmentation.top[i], augmentation.left[i]
        padded = np.pad(image, ((0, 0), (p, p), (p, p)), mode="reflect")
        results.append(padded[:, top : top + image.shape[1], left : left + image.shape[2]])
    return np.stack(results)


def random_images(batch_size=40, height=32, width=32):
    return rng(1, "images").integers(0, 256, (batch_size, 3, height, width), np.uint8)


@pytest.mark.parametrize("flip, crop_padding", [(True, 4), (True, 0), (False, 4), (False, 1), (True, 31)])
def test_equals_a_loop_over_images(flip, crop_padding):
    images = random_images()
    original = images.copy()
    augmentation = draw_augmentation(len(images), rng(0, "augment"), flip, crop_padding)
    result = augment(images, augmentation)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, reference(images, augmentation))
    np.testing.assert_array_equal(images, original)
    assert not np.array_equal(result, images)


def test_images_need_not_be_square_contiguous_or_bytes():
    images = random_images(height=20, width=24)[::2, :, ::-1, 4:]
    augmentation = draw_augmentation(len(images), rng(0, "augment"))
    for some in (images, images.astype(np.float32)):
        found = augment(some, augmentation)
        assert found.dtype == some.dtype
        np.testing.assert_array_equal(found, reference(some, augmentation))


def test_identity_returns_the_images_themselves():
    images = random_images()
    assert augment(images, draw_augmentation(len(images), rng(0, "augment"), flip=False, crop_padding=0)) is images


def test_draw_is_fair_and_covers_every_shift():
    augmentation = draw_augmentation(9000, rng(0, "augment"))
    assert abs(augmentation.flip.mean() - 0.5) < 0.02
    for shift in (augmentation.top, augmentation.left):
        counts = np.bincount(shift, minlength=9)
        assert len(counts) == 9
        assert counts.min() > 880 and counts.max() < 1120  # 1000 expected, standard deviation 30
    assert abs(np.corrcoef(augmentation.top, augmentation.left)[0, 1]) < 0.05


def test_draw_depends_on_the_generator_alone():
    first, again, other = (draw_augmentation(64, rng(0, "augment", step)) for step in (5, 5, 6))
    for name in ("flip", "top", "left"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_another_batch_size_too_much_padding_and_crops_of_bytes_are_refused():
    images = random_images(8, 6, 6)
    with pytest.raises(ShapeError, match="8 images, but an augmentation drawn for 7"):
        augment(images, draw_augmentation(7, rng(0, "augment")))
    with pytest.raises(ShapeError, match="padding 6 must be smaller"):
        augment(images, draw_augmentation(8, rng(0, "augment"), crop_padding=6))
    with pytest.raises(DtypeError, match="takes floats, was given uint8: normalise"):
        resized_crop(images, np.array([[0, 0, 1, 1]] * 8))


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
