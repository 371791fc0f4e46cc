"""The verdict on a probe's figures, in words."""

import math

OURS, UNTRAINED, PIXELS = "I-JEPA features", "random-init encoder", "raw pixels"


def verdict(accuracies, count):
    """One sentence from the linear probes' accuracies {row: 0 to 1} on ``count`` images.

    Differences count if they exceed two standard errors, of √(p(1 − p)/n + q(1 − q)/n): this is conservative, because
    both classifiers see the same images.
    """
    gain, chance = _difference(accuracies, UNTRAINED, count)
    lead, noise = _difference(accuracies, PIXELS, count)
    if abs(gain) <= chance:
        return (
            f"no better than the untrained encoder ({gain:+.1f} points, where up to {chance:.1f} is chance on "
            f"{count:,} images): nothing was learnt that a linear classifier can use"
        )
    if gain < 0:
        return (
            f"{-gain:.1f} points below the untrained encoder: training made the features worse; RankMe and deviation "
            "in metrics.csv show whether they collapsed"
        )
    text = f"{gain:.1f} points above the untrained encoder"
    if lead > noise:
        return f"{text} and {lead:.1f} above raw pixels: it has learnt"
    if lead < -noise:
        return f"{text}, so it has learnt; but raw pixels are {-lead:.1f} points better still: train longer"
    return f"{text}, so it has learnt; but no better than raw pixels ({lead:+.1f} points): train longer"


def _difference(accuracies, baseline, count):
    """(points by which our features beat the baseline, points that may be chance)"""
    p, q = accuracies[OURS], accuracies[baseline]
    return 100 * (p - q), 200 * math.sqrt((p * (1 - p) + q * (1 - q)) / count)
