"""``python -m minijepa.explain --step``: one training step of a tiny I-JEPA, narrated in order.

The step is that of ``training/trainer.py`` and ``training/lanes.py``, on one chunk and in float64, stopped after each
part to look.
"""

import inspect
import re
import textwrap

import numpy as np

from minijepa.autograd import Parameter
from minijepa.backend import rng
from minijepa.config import Config
from minijepa.data import MultiBlockMasker
from minijepa.data.shapes import make_shapes
from minijepa.gradcheck.check import TOLERANCE, gradient_error, numeric_gradient
from minijepa.gradcheck.watch import WatchingTape
from minijepa.models import IJEPA
from minijepa.training.ema import update_ema
from minijepa.training.optim import AdamW

TINY = dict(
    patch_size=8, encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=8,
    predictor_depth=1, predictor_num_heads=2, num_target_blocks=2, mlp_ratio=2.0, min_context=2,
)  # fmt: skip
IMAGES = 2
COLUMNS = 80  # even in a wider terminal, because docs/backward/step.md quotes it


def tiny_step():
    """(model, images, masks) for a step of the tiny network."""
    config = Config(**TINY)
    model = IJEPA(config, seed=0, dtype=np.float64)
    images = model.normalise(make_shapes(IMAGES)[0])
    return model, images, MultiBlockMasker.of(config).sample(IMAGES, rng(0, "masks"))


def told_step():
    """(text, passed): the whole story, and whether its gradients agree with finite differences."""
    model, images, masks = tiny_step()
    config = model.config
    story = [_batch(config, masks)]

    targets = model.targets(images, masks)
    story.append(_targets(config, targets))

    with WatchingTape() as tape:
        loss = model.distance(model.predictions(images, masks), targets)
    story.append(_recorded(tape, loss))

    on_tape = {x for entry in tape.entries for x in entry.inputs if isinstance(x, Parameter)}
    tape.backward(loss)
    table, passed = _gradient_table(model, lambda: model.loss(images, masks).data)
    story.append(_backward(table, model.target_flat.parameters.values(), on_tape, tape.reached))

    before, target_before = model.flat.data.copy(), model.target_flat.data.copy()
    AdamW(model.flat.data, model.flat.grad, model.decayed, config.weight_decay).step(config.base_lr)
    moved, by_adamw = model.flat.data - before, model.target_flat.data - target_before
    update_ema(model.target_flat.data, model.flat.data[: model.encoder_size], config.ema_momentum_start)
    story.append(_moves(model, moved, by_adamw, model.target_flat.data - target_before))

    text = "\n".join(f"\n{title}\n{'-' * len(title)}\n{body}" for title, body in story)
    return f"{text}\n\nRead on: docs/backward/step.md, and docs/backward/tape.md for the walk back.", passed


# -------------------------------------------------------------------------------- the parts of the story: (title, text)


def _batch(config, masks):
    contexts, blocks = (" and ".join(map(str, n.tolist())) for n in (masks.context_lengths, masks.target_lengths))
    return "1. The batch", _fill(
        f"{len(masks)} images of {config.num_patches} patches. Each has its own context, of {contexts} patches, and "
        f"its own {config.num_target_blocks} target blocks, of {blocks} patches. All tokens are stacked in one matrix, "
        f"without padding: {len(masks.context_index)} context tokens, {len(masks.target_index)} target tokens."
    )


def _targets(config, targets):
    rows, width = targets.shape
    return "2. The targets: no tape runs, so no gradient can flow", _fill(
        f"The target encoder sees all {config.num_patches} patches of each image. model.targets(images, masks) is "
        f"{rows}×{width}, with requires_grad = {targets.requires_grad}: that is the stop-gradient."
    )


def _recorded(tape, loss):
    return f"3. Predictions and loss: every operation is recorded on the tape; loss = {loss.item():.4f}", (
        "bytes: saved by this entry and by no earlier one (parameters and pixels are\n"
        "       kept anyway)\n"
        f"saved: forward's names of the saved arrays, and whose parameters went in\n\n{_tape_table(tape)}"
    )


def _backward(table, target, on_tape, reached):
    facts = (
        f"Of the target encoder's {len(target)} parameters, {len(on_tape & set(target))} are on the tape, "
        f"{len(reached & set(target))} were reached by backward, and {sum(p.grad is not None for p in target)} have a "
        "gradient."
    )
    return "4. Backward: the tape is walked from its end, and each parameter receives dL/dθ", (
        "norm:    of all gradients of a module together\n"
        "largest: the largest element of these gradients\n"
        "numeric: the same by finite differences: the whole loss, targets included, is\n"
        f"         recomputed with that one number slightly changed\n\n{table}\n\n{_fill(facts)}"
    )


def _moves(model, moved, target_by_adamw, target_moved):
    c, (adamw, on_target, ema) = model.config, map(_count, (moved, target_by_adamw, target_moved))
    rest = 1 - c.ema_momentum_start
    optimizer = (
        f"AdamW moved {adamw:,} of {moved.size:,} numbers of the context encoder and the predictor, and {on_target} of "
        f"the target encoder's. The other {moved.size - adamw} have gradient 0: positions of patches that nobody saw, "
        f"and the keys' bias, which softmax does not see. The first step is about lr = {c.base_lr} for each number "
        f"whose gradient is well above AdamW's eps = {c.adam_eps:.0e}, and less near it."
    )
    average = (
        f"The EMA, target ← {c.ema_momentum_start} target + {rest:.3f} context, moved {ema:,} of the target encoder's "
        f"{target_moved.size:,} numbers. Both encoders started equal, so the target moved {rest:.3f} times as far as "
        "the context encoder. Nothing follows the predictor."
    )
    return "5. AdamW moves what has a gradient, and then the EMA moves the target encoder", (
        f"{_fill(optimizer)}\n\n{_fill(average)}\n\n{_move_table(model, moved, target_moved)}"
    )


def _fill(text):
    return textwrap.fill(text, COLUMNS)


def _count(differences):
    """How many numbers moved by more than rounding."""
    return int((np.abs(differences) > 1e-10).sum())


# ----------------------------------------------------------------------------------------------------------- the tables


def _tape_table(tape):
    """The tape with what each entry saved, and whose parameters it used."""
    lines, network, rows = [("#", "operation", "inputs", "output", "bytes", "saved")], None, tape.lines()
    for number, (entry, (name, inputs, output, saved)) in enumerate(zip(tape.entries, rows)):
        what = saved_names(entry.op)
        parameters = [x for x in entry.inputs if isinstance(x, Parameter)]
        if parameters:
            owner, module = _module(parameters[0].name)
            what = f"{what:<8}  {module.removeprefix('predictor_')}"
            if owner != network:
                network = owner
                lines.append(network)
        lines.append((str(number), name, inputs, output, f"{saved:,}", what))
    lines.append(("", "", "", "", f"{sum(row[3] for row in rows):,}", "bytes in all"))
    return _table(lines, "><<<><")


def saved_names(op):
    """Forward's names of the arrays that it saves: LayerNorm's are "xhat r w"."""
    names = re.findall(r"ctx\.save\((.*)\)", inspect.getsource(op.forward))  # the array code's come last
    return names[-1].replace("*", "").replace(",", "") if names else ""


def _gradient_table(model, loss):
    """(table, passed): each module's gradient norm, and its largest element by the tape and by differences."""
    lines = [("module", "numbers", "norm", "largest", "numeric", "error")]
    worst = 0.0
    for module, parameters in _modules(model, lines):
        parameter = max(parameters, key=lambda p: np.abs(p.grad).max())
        position = int(np.abs(parameter.grad).argmax())
        analytic = parameter.grad.reshape(-1)[[position]]
        numeric = numeric_gradient(loss, parameter.data, entries=[position])
        worst = max(worst, gradient_error(analytic, numeric))
        norm = np.sqrt(sum((p.grad**2).sum() for p in parameters))
        numbers = (f"{norm:.5f}", f"{analytic[0]:.7f}", f"{numeric[0]:.7f}", f"{analytic[0] - numeric[0]:.0e}")
        lines.append((module, f"{sum(p.size for p in parameters):,}", *numbers))
    passed = worst <= TOLERANCE
    verdict = f"largest relative difference {worst:.0e}, tolerance {TOLERANCE:.0e}: {'passed' if passed else 'FAILED'}"
    return f"{_table(lines, '<>>>>>')}\n{verdict}", passed


def _move_table(model, moved, target_moved):
    """How far AdamW moved each module, and the EMA its copy in the target encoder: norms of the differences."""
    lines = [("module", "moved by AdamW", "each on average", "target, by EMA")]
    for module, parameters in _modules(model, lines):
        slices = [model.flat.slices[p.name] for p in parameters]
        numbers = np.concatenate([moved[s] for s in slices])
        copy = "-"
        if "predictor" not in lines:  # the target's vector has the order of the context encoder's
            copy = f"{np.linalg.norm(np.concatenate([target_moved[s] for s in slices])):.7f}"
        lines.append((module, f"{np.linalg.norm(numbers):.5f}", f"{np.abs(numbers).mean():.5f}", copy))
    return _table(lines, "<>>>")


def _module(name):
    """The network and the module that a parameter belongs to."""
    network, _, rest = name.removesuffix(".weight").removesuffix(".bias").partition(".")
    return network, rest


def _modules(model, lines):
    """Yield (module, its parameters), as they were made; before a network's first, its name goes to ``lines``."""
    modules = {}
    for network in ("context_encoder", "predictor"):
        for name, parameter in getattr(model, network).named_parameters(f"{network}."):
            modules.setdefault(_module(name), []).append(parameter)
    for (network, module), parameters in modules.items():
        if network not in lines:
            lines.append(network)
        yield f"  {module}", parameters


def _table(lines, align):
    """Rows of strings as a table with columns of minimal width; a lone string is a heading."""
    widths = [max(map(len, column)) for column in zip(*(line for line in lines if isinstance(line, tuple)))]
    row = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths))
    return "\n".join(line if isinstance(line, str) else row.format(*line).rstrip() for line in lines)
