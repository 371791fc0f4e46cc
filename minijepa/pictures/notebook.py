"""A tensor, a tape, a model and its settings in a notebook: an HTML table each, for light and dark pages."""

import dataclasses
import html

import numpy as np

from minijepa.backend import to_numpy
from minijepa.cli import counted

ROWS, COLUMNS = 8, 12  # of a tensor


def table(title, rows, header=(), note=""):
    """``rows`` of cells, each a text or (text, CSS)."""

    def cell(content, tag="td"):
        text, style = content if isinstance(content, tuple) else (content, "")
        return f'<{tag} style="padding:1px 6px;text-align:right;{style}">{html.escape(str(text))}</{tag}>'

    lines = ["".join(cell(name, "th") for name in header), *("".join(map(cell, row)) for row in rows)]
    body = "".join(f"<tr>{line}</tr>" for line in lines if line)
    title, note = html.escape(title), html.escape(note)
    body = f'<table style="color:inherit">{body}</table>'
    return f"<div><b>{title}</b>{body}<small>{note}</small></div>"


def tensor_html(tensor):
    """The first values, blue above and orange below zero, and a summary of all of them."""
    x = to_numpy(tensor.data)
    shape = "×".join(map(str, x.shape)) or "scalar"
    words = [type(tensor).__name__, getattr(tensor, "name", None), shape, str(x.dtype)]
    title = " ".join(filter(None, words)) + (", requires a gradient" if tensor.requires_grad else "")
    if not x.size:
        return table(title, [], note="no elements")
    finite = x[np.isfinite(x)]
    largest = np.abs(finite).max(initial=0) or 1
    shown = x.reshape(-1, x.shape[-1] if x.ndim else 1)

    def cell(value):
        strength = 0.6 * abs(float(np.nan_to_num(value / largest, posinf=1, neginf=-1)))
        colour = "213,94,0" if value < 0 else "0,104,190"
        return f"{value:.4g}", f"background:rgba({colour},{strength:.2f})"

    rows = [[*map(cell, row[:COLUMNS]), *["…"] * (len(row) > COLUMNS)] for row in shown[:ROWS]]
    rows += [["…"]] * (len(shown) > ROWS)
    note = f"{x.size - finite.size} of {x.size:,} are not finite"
    if len(finite) == x.size:
        note = f"mean {x.mean():.4g}, deviation {x.std():.4g}, from {x.min():.4g} to {x.max():.4g}"
    return table(title, rows, note=note)


def tape_html(found):
    """One line per operation, as in ``print(tape)``. ``found``: the tape's rows, None if it was used up."""
    if found is None:
        return table("Tape: used up by backward", [])
    rows = [(i, *words, f"{saved:,}") for i, (*words, saved) in enumerate(found)]
    note = f"{sum(row[-1] for row in found):,} bytes saved, each array once"
    title = f"Tape of {counted(len(rows), 'operation')}"
    return table(title, rows, ("", "operation", "inputs", "output", "bytes saved"), note)


def model_html(model):
    """One line per network: its width, depth and parameters."""
    c, sizes = model.config, {}
    for name, parameter in model.named_parameters():
        network = name.partition(".")[0]
        sizes[network] = sizes.get(network, 0) + parameter.size
    rows = []
    for network, size in sizes.items():
        part = "predictor" if network == "predictor" else "encoder"
        wide, deep, heads = (getattr(c, f"{part}_{what}") for what in ("embed_dim", "depth", "num_heads"))
        how = "moving average" if network == "target_encoder" else "trained"
        rows.append((network, wide, deep, heads, f"{size:,}", how))
    note = f"images {c.image_size}×{c.image_size} in patches of {c.patch_size}; {model.device}, {model.dtype}"
    return table(type(model).__name__, rows, ("", "width", "blocks", "heads", "parameters", ""), note)


def config_html(config):
    """The settings that differ from the specification's."""
    fields = [(f.name, getattr(config, f.name), f.default) for f in dataclasses.fields(config)]
    changed = [map(str, field) for field in fields if field[1] != field[2]]
    note = f"{len(fields) - len(changed)} other settings are the specification's"
    return table("Config", changed, ("setting", "here", "specification"), note)
