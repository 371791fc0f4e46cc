"""Is the network learning, or collapsing? Figures for the training log, from training images alone."""

import contextlib
import math

import numpy as np

from minijepa.backend import rng, to_device, to_numpy
from minijepa.errors import DataError
from minijepa.evaluation.neighbours import knn_accuracy
from minijepa.evaluation.probing import content_r2, feature_std, rank_me
from minijepa.models.chunks import chunks

WATCHED, FEWEST = 512, 10  # images of the collapse monitors, and the fewest for a warning
LOWEST_STD, LOWEST_RANK = 0.05, 3.0  # below: collapse; `smoke` begins near 0.8 and 6, `laptop` near 0.6 and 40
LOWEST_R2, FROM = 0.02, 0.3  # below this, after this part of the run: positions without content
BANK, QUERIES = 5000, 1000  # labelled images for the kNN, and images that it classifies


class Monitors:
    """Figures on fixed, unaugmented training images.

    ``collapse``: standard deviation and RankMe of the target encoder's pooled features of 512 images, and content R² of
    the predictor on fixed masks of them. ``knn``: k = 20 nearest neighbours among up to 5,000 training images, for
    1,000 images of the held-back part if there is one, else of the training images that follow those.
    """

    def __init__(self, model, masker, images, labels, val_images, val_labels, threads):
        self.model, self.threads = model, threads
        self.watched = images[:WATCHED]
        self.masks = masker.sample(len(self.watched), rng(0, "monitor masks"))
        if len(val_images):
            queries, query_labels, bank = val_images[:QUERIES], val_labels[:QUERIES], min(BANK, len(images))
        else:
            bank = min(BANK, max(1, len(images) * 4 // 5))
            queries, query_labels = images[bank : bank + QUERIES], labels[bank : bank + QUERIES]
        self.bank, self.bank_labels = images[:bank], labels[:bank]
        self.queries, self.query_labels = queries, query_labels

    def collapse(self):
        """{"feature_std", "rank_me", "content_r2"}"""
        features = self.model.features(self.watched, threads=self.threads)
        predictions, targets = [], []
        for part in chunks(len(self.watched), self.model.device):
            images = self.model.normalise(to_device(self.watched[part], self.model.device))
            prepared = self.model.prepare(images, self.masks.select(part))
            predictions.append(to_numpy(self.model.predictions_of(*prepared).data))
            targets.append(to_numpy(self.model.targets_of(*prepared).data))
        r2 = content_r2(
            np.concatenate(predictions), np.concatenate(targets), self.masks.target_index, self.model.config.num_patches
        )
        return {"feature_std": feature_std(features), "rank_me": rank_me(features), "content_r2": r2}

    def knn(self):
        """Accuracy of k = 20 nearest neighbours with the target encoder's pooled features; None without a query."""
        if not len(self.queries):
            return None
        bank = self.model.features(self.bank, threads=self.threads)
        queries = self.model.features(self.queries, threads=self.threads)
        classes = int(max(self.bank_labels.max(), self.query_labels.max())) + 1
        return knn_accuracy(bank, self.bank_labels, queries, self.query_labels, classes)

    def levels(self, classes):
        """Before the first step: {figure: number} of the untrained network, and of chance, to compare with."""
        levels = {"chance": 1 / classes}
        with contextlib.suppress(DataError), np.errstate(all="ignore"):  # initial weights that are far too large
            levels |= self.collapse() | ({"knn": self.knn()} if self.model.config.knn_every else {})
        return {name: value for name, value in levels.items() if value is not None and math.isfinite(value)}


def warning(feature_std, rank_me, content_r2, done, config):
    """A warning of the collapse monitors, with what to try, or None. ``done``: the part of the run that is over."""
    normalise_targets = [] if config.target_norm == "layer_norm" else ["target_norm=layer_norm"]
    larger_weights = [] if config.patch_embed_gain >= 2 else ["patch_embed_gain=2"]
    larger_weights += [] if config.init_std >= 0.06 else ["init_std=0.06"]
    if feature_std < LOWEST_STD:
        sees = "the features are collapsing: all images look alike to the encoder"
        remedies = [*normalise_targets, "a lower --lr", "an ema_momentum_start nearer to 1"]
    elif rank_me < LOWEST_RANK:
        sees = "the features are collapsing: images differ in only one or two directions"
        remedies = [*normalise_targets, *larger_weights, "a lower --lr", "an ema_momentum_start nearer to 1"]
    elif content_r2 < LOWEST_R2 and done >= FROM:
        sees = "the predictor knows where a block is, but not what is in it"
        more = ["a higher --lr", "smaller targets (target_scale)", "a larger context (context_scale)"]
        remedies = [*larger_weights, *more]
    else:
        return None
    found = f"deviation {feature_std:.3f}, RankMe {rank_me:.1f}, content R² {content_r2:+.3f}"
    return f"warning: {sees} ({found}): try {', '.join(remedies[:-1])} or {remedies[-1]}"
