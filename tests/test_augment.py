import numpy as np
import pytest

from minijepa.backend import rng
from minijepa.data.augment import Augmentation, augment, draw_augmentation
from minijepa.errors import ShapeError


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


def test_images_need_not_be_square_or_contiguous():
    images = random_images(height=20, width=24)[::2, :, ::-1, 4:]
    augmentation = draw_augmentation(len(images), rng(0, "augment"))
    np.testing.assert_array_equal(augment(images, augmentation), reference(images, augmentation))


def test_float_images_keep_their_dtype():
    images = random_images().astype(np.float32)
    assert augment(images, draw_augmentation(len(images), rng(0, "augment"))).dtype == np.float32


def test_identity_returns_the_images_themselves():
    images = random_images()
    assert augment(images, draw_augmentation(len(images), rng(0, "augment"), flip=False, crop_padding=0)) is images


def test_unshifted_unflipped_images_are_unchanged():
    images = random_images(2)
    centred = np.array([4, 4])
    result = augment(images, Augmentation(np.array([False, True]), centred, centred, 4))
    np.testing.assert_array_equal(result[0], images[0])
    np.testing.assert_array_equal(result[1], images[1, :, :, ::-1])


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


def test_refuses_another_batch_size_and_too_much_padding():
    images = random_images(8, 6, 6)
    with pytest.raises(ShapeError, match="8 images, but an augmentation drawn for 7"):
        augment(images, draw_augmentation(7, rng(0, "augment")))
    with pytest.raises(ShapeError, match="padding 6 must be smaller"):
        augment(images, draw_augmentation(8, rng(0, "augment"), crop_padding=6))
