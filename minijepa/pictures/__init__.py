"""Pictures, drawn with Pillow: arrays in, a PNG out, independent of any network.

Each function returns a `PIL.Image.Image`, and writes it as a PNG if it is given a path. The same input gives the same
bytes.
"""

from minijepa.pictures.confusion import confusion_picture
from minijepa.pictures.curves import Curves, curves_picture
from minijepa.pictures.masks import masks_picture
from minijepa.pictures.sheets import neighbours_picture, own_images_picture, pca_picture, predictions_picture
