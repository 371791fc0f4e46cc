"""All settings of a run, in one frozen dataclass that checks them, and the presets."""

import ast
import dataclasses
import math
import numbers
import reprlib
import warnings

from minijepa.cli import suggestion
from minijepa.data.masking import MultiBlockMasker, checked_range
from minijepa.errors import ConfigError
from minijepa.models.ijepa import LOSSES


@dataclasses.dataclass(frozen=True, repr=False)
class Config:
    """The settings of a run. The defaults are the specification's section 9, without augmentation.

    Raises ConfigError, in one line, for a bad value or an impossible combination.
    """

    # Data
    image_size: int = 32
    patch_size: int = 4
    val_size: int = 0  # training images held back, for choosing settings: probe.py --split val
    augment_flip: bool = False  # mirror half of the images
    augment_crop: int = 0  # shift each image by up to this many pixels in both directions; 0: off
    augment_scale: tuple = (1.0, 1.0)  # crop a part with this share of the image's area and enlarge it; (1, 1): off

    # Context and target encoder
    encoder_embed_dim: int = 192
    encoder_depth: int = 6
    encoder_num_heads: int = 6
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    patch_embed_gain: float = 1.0  # patch projection ~ Normal(0, gain / √(3 p²))
    init_std: float = 0.02  # weights of all linear layers ~ Normal(0, init_std), cut at two deviations

    # Predictor
    predictor_embed_dim: int = 96
    predictor_depth: int = 4
    predictor_num_heads: int = 6

    # Masks
    num_target_blocks: int = 4
    target_scale: tuple = (0.15, 0.25)
    target_aspect_ratio: tuple = (0.75, 1.5)
    context_scale: tuple = (0.75, 0.95)
    min_context: int = 4

    # Loss
    loss: str = "l2"  # "l2": the specification's section 7; "smooth_l1": Meta's code
    target_norm: str = "none"  # "layer_norm": each target to mean 0 and variance 1 over D, as in Meta's code

    # Training
    epochs: int = 100
    batch_size: int = 256
    base_lr: float = 1e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 10
    weight_decay: float = 0.05
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    ema_momentum_start: float = 0.996
    ema_momentum_end: float = 1.0
    seed: int = 0

    # Reporting
    knn_every: int = 5  # epochs between two kNN evaluations; 0: never
    keep_every: int = 0  # epochs between two checkpoints that are kept; 0: only the last one
    max_train_images: int = 0  # use only the first so many training images; 0: all

    num_patches = property(lambda self: (self.image_size // self.patch_size) ** 2)
    grid = property(lambda self: (self.image_size // self.patch_size,) * 2)

    @property
    def num_encoder_parameters(self):
        """Parameters of one encoder."""
        dim = self.encoder_embed_dim
        return (3 * self.patch_size**2 + 1) * dim + self._of_transformer(dim, self.encoder_depth)

    @property
    def num_parameters(self):
        """Trained parameters: those of the context encoder and of the predictor."""
        dim, narrow = self.encoder_embed_dim, self.predictor_embed_dim
        ends = (dim + 2) * narrow + (narrow + 1) * dim  # projections from the encoder and back, and the mask token
        return self.num_encoder_parameters + ends + self._of_transformer(narrow, self.predictor_depth)

    def _of_transformer(self, dim, depth):
        """Parameters of position embeddings, blocks and the last norm."""
        hidden = int(dim * self.mlp_ratio)
        block = 4 * dim * dim + 2 * dim * hidden + 9 * dim + hidden
        return self.num_patches * dim + depth * block + 2 * dim

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked_type(field, getattr(self, field.name)))
        _check_values(self)

    @classmethod
    def preset(cls, name, **changes):
        """One of PRESETS, with some fields changed.

        If fewer ``epochs`` leave no room for the preset's warm-up, it keeps its share of them (unless changed): 10 of
        100 epochs become 0.5 of 5.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}: choose {', '.join(PRESETS)}")
        own, epochs = cls.from_dict(PRESETS[name]), changes.get("epochs")
        if "warmup_epochs" not in changes and _is_number(epochs) and 0 < epochs <= own.warmup_epochs:
            changes["warmup_epochs"] = round(epochs * own.warmup_epochs / own.epochs, 3)
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values):
        """A Config from {field: value}; an unknown field is a ConfigError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                remedy = suggestion(name, known, "docs/settings.md explains them all")
                raise ConfigError(f"unknown setting {reprlib.repr(name)}: {remedy}")
        return cls(**values)

    def __repr__(self):
        """The fields that differ from the defaults, as Python code for the same Config."""
        fields = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)]
        return f"Config({', '.join(f'{f.name}={value!r}' for f, value in fields if value != f.default)})"

    def _repr_html_(self):
        from minijepa.pictures.notebook import config_html

        return config_html(self)

    def to_dict(self):
        """{field: value}, with lists for tuples, as JSON has them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def parse_changes(given):
    """{field: value} from pairs (option, "key=value"). Raises ConfigError for a field that is given twice."""
    changes, options = {}, {}
    for option, text in given:
        name, value = parse_assignment(text)
        if name in changes:
            raise ConfigError(f"{name} is given twice, by {options[name]} and {option}: leave one out")
        changes[name], options[name] = value, option
    return changes


def parse_assignment(text):
    """``"key=value"`` -> (key, value), the value read as a Python literal if it is one: 3, true, (0.1, 0.2)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, got {reprlib.repr(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's SyntaxWarnings about "\\d" or "1if"
            literal = ast.literal_eval(value.strip())
            repr(literal)  # a ValueError for 0x... of more digits than Python writes, so no message could show it
            return key.strip(), literal
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return key.strip(), {"true": True, "false": False}.get(value.strip().lower(), value.strip())


def _is_number(value):
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def _checked_type(field, value):
    """The value in the field's type, or a ConfigError. Whole floats count as ints, ints as floats, lists as tuples."""
    if field.type is int and _is_number(value) and value == int(value):
        return int(value)
    if field.type is float and _is_number(value):
        return float(value)
    if field.type is tuple and isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value)):
        return tuple(float(v) for v in value)
    if field.type in (bool, str) and isinstance(value, field.type):
        return value
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", tuple: "two numbers"}
    raise ConfigError(f"{field.name} must be {wanted[field.type]}, got {reprlib.repr(value)}")


LARGEST = dict(  # so that a typo gives an error, not an hour of filling memory or an overflow
    image_size=1024, encoder_embed_dim=4096, encoder_depth=64, predictor_embed_dim=4096, predictor_depth=64,
    mlp_ratio=16, patch_embed_gain=1000, init_std=10, num_target_blocks=64, batch_size=2**20, epochs=10**6,
    warmup_epochs=10**6, num_patches=4096, num_parameters=2**28, seed=2**64 - 1,
)  # fmt: skip


def _check_values(c):
    def require(condition, message):
        if not condition:
            raise ConfigError(message)

    positive = (
        "image_size patch_size encoder_embed_dim encoder_depth encoder_num_heads mlp_ratio layer_norm_eps "
        "patch_embed_gain init_std predictor_embed_dim predictor_depth predictor_num_heads num_target_blocks "
        "min_context epochs batch_size base_lr adam_eps"
    )
    for name in positive.split():
        require(getattr(c, name) > 0, f"{name} must be above 0, got {getattr(c, name)}")
    for name, largest in LARGEST.items():
        require(getattr(c, name) <= largest, f"{name} must be at most {largest:,}, got {getattr(c, name):,}")
    not_negative = "val_size augment_crop min_lr warmup_epochs weight_decay seed knn_every keep_every max_train_images"
    for name in not_negative.split():
        require(getattr(c, name) >= 0, f"{name} must not be negative, got {getattr(c, name)}")
    require(
        c.image_size % c.patch_size == 0,
        f"patch_size must divide image_size, got {c.patch_size} for images of {c.image_size}",
    )
    for part in ("encoder", "predictor"):
        dim, heads = getattr(c, f"{part}_embed_dim"), getattr(c, f"{part}_num_heads")
        require(dim % heads == 0, f"{part}_num_heads must divide {part}_embed_dim, got {heads} heads for {dim}")
    require(int(c.encoder_embed_dim * c.mlp_ratio) > 0 and int(c.predictor_embed_dim * c.mlp_ratio) > 0,
            f"mlp_ratio {c.mlp_ratio} leaves no hidden features")  # fmt: skip
    checked_range("augment_scale", c.augment_scale, 1.0)
    require(c.loss in LOSSES, f"loss must be {' or '.join(LOSSES)}, got {reprlib.repr(c.loss)}")
    norm = reprlib.repr(c.target_norm)
    require(c.target_norm in ("none", "layer_norm"), f"target_norm must be none or layer_norm, got {norm}")
    for name in ("adam_beta1", "adam_beta2"):
        require(0 <= getattr(c, name) < 1, f"{name} must be in [0, 1), got {getattr(c, name)}")
    require(
        0 <= c.ema_momentum_start <= c.ema_momentum_end <= 1,
        f"EMA momentum must rise within [0, 1], got {c.ema_momentum_start} to {c.ema_momentum_end}",
    )
    require(c.min_lr <= c.base_lr, f"min_lr {c.min_lr} must not exceed base_lr {c.base_lr}")
    require(
        c.warmup_epochs < c.epochs or c.warmup_epochs == 0,
        f"warmup_epochs {c.warmup_epochs:g} must be below epochs {c.epochs}: lower it too, or set it to 0",
    )
    require(c.augment_crop < c.image_size, f"augment_crop must be below image_size, got {c.augment_crop}")
    MultiBlockMasker.of(c)  # checks the masks' ranges too, and refuses settings that hardly ever give a mask


PRESETS = {
    "cifar10": {},
    # The specification, and what is usual for CIFAR-10: each image mirrored or not, and shifted.
    "best": dict(augment_flip=True, augment_crop=4),
    # 2 cores, half an hour: a smaller network, many small steps for few images, and what makes it learn sooner.
    "laptop": dict(
        encoder_depth=3, predictor_embed_dim=48, predictor_depth=2, predictor_num_heads=4, patch_embed_gain=2,
        init_std=0.08, augment_flip=True, augment_scale=(0.5, 1.0), target_norm="layer_norm", target_scale=(0.15, 0.2),
        context_scale=(0.85, 1.0), batch_size=64, base_lr=1.5e-3, epochs=18, warmup_epochs=1, knn_every=1,
    ),
    # A minute: does everything work?
    "smoke": dict(
        encoder_embed_dim=96, encoder_depth=3, encoder_num_heads=4, predictor_embed_dim=48, predictor_depth=2,
        predictor_num_heads=4, target_norm="layer_norm", batch_size=64, epochs=3, warmup_epochs=1,
        max_train_images=4000, ema_momentum_start=0.99, knn_every=2,
    ),
}  # fmt: skip

# For train.py --help: the time on 2 CPU cores, and the linear probe on CIFAR-10's test images.
MEASURED = {
    "cifar10": ("6.5 hours", "65.8%"),
    "best": ("6.5 hours", "66.3%"),
    "laptop": ("31 minutes", "61.1%"),
    "smoke": ("a minute", "near chance"),
}
