#!/usr/bin/env python3
"""Which of many settings matter? All of them at once, in twelve or twenty runs: a Plackett-Burman design.

    python benchmarks/screen.py recipe                # twenty runs, two at a time, in runs/screen-recipe
    python benchmarks/screen.py refined --set epochs=4 --out runs/refined-4

In each of twenty runs half of the factors are off and half on, so arranged that between any two factors all four
combinations occur five times. The effect of a factor is the mean of its ten runs with it less the mean of the ten
without: ten against ten, where the same twenty runs spent on one factor after another would leave one against one.
Every run has a seed of its own. The columns of the design that carry no factor measure what chance does to such a
difference: their root mean square is the standard error. (Effects are those beside a mixture of all the others; two
factors that need each other look like two half effects. R. L. Plackett, J. P. Burman, The design of optimum
multifactorial experiments, 1946.)

The held-back images are probed, as in ablation.py, whose options this has and whose runs it restarts in the same way.
Writes OUT/screen.csv, and prints the effects.
"""

import sys
from pathlib import Path

import ablation

from minijepa.backend import resolve_device
from minijepa.errors import exit_status, tell

RECIPE = {  # name: (off, on)
    "normalised targets": (dict(target_norm="none"), dict(target_norm="layer_norm")),
    "smooth-L1 loss": (dict(loss="l2"), dict(loss="smooth_l1")),
    "patch gain 0.14": (dict(patch_embed_gain=1), dict(patch_embed_gain=0.14)),
    "tight masks": (
        dict(target_scale=(0.15, 0.25), context_scale=(0.75, 0.95)),
        dict(target_scale=(0.15, 0.2), context_scale=(0.85, 1.0)),
    ),
    "EMA from 0.98": (dict(ema_momentum_start=0.99), dict(ema_momentum_start=0.98)),
    "EMA to 0.999": (dict(ema_momentum_end=1.0), dict(ema_momentum_end=0.999)),
    "flips": (dict(augment_flip=False), dict(augment_flip=True)),
    "shifts by 4": (dict(augment_crop=0), dict(augment_crop=4)),
    "resized crops": (dict(augment_scale=(1, 1)), dict(augment_scale=(0.5, 1))),
    "rate x 2": (dict(), dict(base_lr=2.0)),  # times the base's
    "batches of 32": (dict(batch_size=64), dict(batch_size=32)),
    "beta2 0.95": (dict(adam_beta2=0.999), dict(adam_beta2=0.95)),
    "predictor of 4 blocks": (dict(predictor_depth=2), dict(predictor_depth=4)),
}
REFINED = {  # around what the first one found
    "patch gain 2": (dict(patch_embed_gain=1), dict(patch_embed_gain=2)),
    "rate x 0.5": (dict(), dict(base_lr=0.5)),
    "EMA from 0.96": (dict(ema_momentum_start=0.98), dict(ema_momentum_start=0.96)),
    "batches of 32": (dict(batch_size=64), dict(batch_size=32)),
    "resized crops": (dict(augment_scale=(1, 1)), dict(augment_scale=(0.5, 1))),
    "normalised targets": (dict(target_norm="none"), dict(target_norm="layer_norm")),
    "tight masks": RECIPE["tight masks"],
}
SCREENS = {"recipe": (19, RECIPE), "refined": (11, REFINED)}  # runs less one, a prime 4k - 1; factors
# A smaller network than `laptop`'s on fewer images, its weights as they were first: five minutes a run on one core.
REDUCED = ["encoder_embed_dim=96", "encoder_depth=4", "predictor_embed_dim=48", "max_train_images=35000", "epochs=2",
           "warmup_epochs=0.3", "knn_every=2", "augment_crop=0", "augment_flip=False", "init_std=0.02"]  # fmt: skip


def design(p):
    """The (p+1, p) matrix of ±1 with orthogonal, balanced columns of a prime p = 4k - 1 (Paley's construction)."""
    squares = {k * k % p for k in range(p)}
    return [[1 if (j - i) % p in squares else -1 for j in range(p)] for i in range(p)] + [[-1] * p]


def changes_of(run, factors, base):
    """The config fields of a run: ±1 for each factor."""
    changes = {}
    for (off, on), sign in zip(factors.values(), run):
        changes.update(on if sign > 0 else off)
    return ablation.scaled(changes, base)


def effects(values, runs):
    """The mean where a column is +1 less the mean where it is -1, for each column."""
    return [2 / len(runs) * sum(run[j] * value for run, value in zip(runs, values)) for j in range(len(runs[0]))]


def table(rows, runs, factors):
    """Effects and their standard errors, the largest on the probe first, as Markdown."""
    columns = {}
    for name, scale in (("linear_probe", 100), ("knn", 100), ("minutes", 1)):
        found = effects([scale * row[name] for row in rows], runs)
        chance = found[len(factors) :]
        columns[name] = found, (sum(e * e for e in chance) / len(chance)) ** 0.5
    lines = ["| factor | linear probe, points | kNN, points | minutes |", "|---|---|---|---|"]
    order = sorted(range(len(factors)), key=lambda j: -columns["linear_probe"][0][j])
    for j in order:
        lines.append("| " + " | ".join([list(factors)[j], *(f"{columns[c][0][j]:+.2f}" for c in columns)]) + " |")
    lines.append("| *standard error* | " + " | ".join(f"{columns[c][1]:.2f}" for c in columns) + " |")
    mean = [f"{sum(scale * row[c] for row in rows) / len(rows):.2f}" for c, scale in zip(columns, (100, 100, 1))]
    return "\n".join([*lines, "| *mean of all runs* | " + " | ".join(mean) + " |"])


def main(args):
    args.device = resolve_device(args.device)
    args.set = REDUCED + args.set
    args.out = args.out or f"runs/screen-{args.screen}"
    base = ablation.base_of(args)
    prime, factors = SCREENS[args.screen]
    runs = design(prime)
    rows = ablation.results(args, [(f"run {i}", i, changes_of(run, factors, base)) for i, run in enumerate(runs)])
    columns, written = ablation.COLUMNS[1:], []
    for signs, row in zip(runs, rows):
        on = {name: int(sign > 0) for name, sign in zip(factors, signs)}
        written.append({**on, **{name: row[name] for name in columns}})
    ablation.write_csv(Path(args.out) / "screen.csv", [*factors, *columns], written)
    tell(table(rows, runs, factors))
    return 0


if __name__ == "__main__":
    p = ablation.common_parser(__doc__.splitlines()[0], out=None)
    p.add_argument("screen", choices=SCREENS, help="which factors")
    args = p.parse_args()
    sys.exit(exit_status("screen.py", lambda: main(args)))
