"""The networks of I-JEPA."""

from minijepa.models.encoder import Classifier, ImageEncoder
from minijepa.models.ijepa import IJEPA
from minijepa.models.layout import TokenLayout
from minijepa.models.predictor import Predictor
from minijepa.models.vit import PatchEmbed, ViTEncoder, patchify

__all__ = ["IJEPA", "Classifier", "ImageEncoder", "PatchEmbed", "Predictor", "TokenLayout", "ViTEncoder", "patchify"]
