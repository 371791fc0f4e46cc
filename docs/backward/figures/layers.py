"""Figures of the later pages: slopes, a Jacobian, three paths to the loss, attention's shapes, who gets a gradient."""

import numpy as np
from engine import draws, gradients
from svg import EDGE, GRADIENT, INK, MOVED, MUTED, VALUE, Drawing, plain, shade

from minijepa import IJEPA, Config, MultiBlockMasker, Tape, ops
from minijepa.backend import rng
from minijepa.data import make_shapes


def gelu():
    d = Drawing(760, 380, "GELU and its slope")
    z = np.linspace(-4, 4, 161)
    y, slope = gradients(ops.gelu, 1, z)

    def at(x, y):
        return 60 + 80 * (x + 4), 300 - 62 * y

    d.arrow(at(-4.1, 0), at(4.3, 0), color=MUTED, width=1)
    d.arrow(at(0, -0.6), at(0, 4.3), color=MUTED, width=1)
    for k in range(-4, 5):
        d.line(at(k, 0.03), at(k, -0.03), color=MUTED, width=1)
        if k:
            d.text(at(k, 0)[0], 324, plain(k, 0), MUTED, 12)
    for k in range(1, 5):
        d.text(at(0, 0)[0] - 14, at(0, k)[1], str(k), MUTED, 12)
    d.line(at(0, 0), at(4, 4), color=MUTED, width=1, dash="4 4")
    d.line(at(0, 1), at(4, 1), color=MUTED, width=1, dash="4 4")
    d.line(*map(at, z, y), color=VALUE, width=2.5)
    d.line(*map(at, z, slope), color=GRADIENT, width=2.5)
    d.text(*at(2.75, 3.5), "y = GELU(z)", VALUE, anchor="end", bold=True)
    d.text(*at(3.2, 0.72), "its slope g", GRADIENT, bold=True)
    fine = np.linspace(-4, 4, 8001)
    slopes = gradients(ops.gelu, 1, fine)[1]
    for i, place, anchor in ((slopes.argmin(), (-1.41, -0.8), "middle"), (slopes.argmax(), (2.0, 1.42), "start")):
        x, y = at(fine[i], slopes[i])
        d.rect(x - 3, y - 3, 6, 6, fill=GRADIENT, stroke=GRADIENT)
        d.text(*at(*place), f"{plain(slopes[i])} at z = {plain(fine[i])}", GRADIENT, 12, anchor)
    d.text(*at(-2.5, 3.6), "g is not a step from 0 to 1:", MUTED, 13)
    d.text(*at(-2.5, 3.25), "below 0 at the left, where y still falls,", MUTED, 13)
    d.text(*at(-2.5, 2.9), "and above 1 at the right.", MUTED, 13)
    d.text(*at(-2.5, 2.45), "dx = g dy, element by element", GRADIENT, 13)
    return d


def softmax():
    d, normal = Drawing(760, 392, "The Jacobian of softmax, and dx as a sum over its rows"), draws("softmax")
    n, x, dy = 5, normal(5), normal(5)
    y, dx = gradients(ops.softmax, dy, x)
    jacobian = np.array([gradients(ops.softmax, np.eye(n)[j], x)[1] for j in range(n)])
    left, top = 210, 132
    d.matrix(left, 26, x, digits=1)
    d.matrix(left, 62, y)
    d.text(left - 12, 38, "x", VALUE, anchor="end", bold=True)
    d.text(left - 12, 74, "y = softmax(x)", VALUE, anchor="end", bold=True)
    d.text(left + 110, 114, "Jacobian: row j, column i is ∂y[j]/∂x[i]", VALUE, 13)
    d.matrix(left, top, jacobian, cell=(44, 30), marked=[(j, j) for j in range(n)])
    d.matrix(110, top, dy[:, None], "dy", GRADIENT, cell=(44, 30), digits=1)
    d.text(182, top + 75, "×", size=18)
    for i in range(n):
        d.arrow((left + 22 + 44 * i, 286), (left + 22 + 44 * i, 318), color=GRADIENT)
    d.matrix(left, 320, dx, color=GRADIENT)
    d.text(left - 12, 332, "dx", GRADIENT, anchor="end", bold=True)
    d.text(left - 12, 302, "Σ over j of dy[j] × row j", GRADIENT, 12, "end")
    words = (
        (150, "Framed: y[i] (1 − y[i]).", INK), (170, "Raising x[i] raises y[i] ...", MUTED),
        (206, "Elsewhere: −y[j] y[i].", INK), (226, "... and lowers all the others.", MUTED),
        (262, "Each row and column sums to 0.", INK), (332, "= y (dy − Σ dy y): no Jacobian is made", GRADIENT),
    )  # fmt: skip
    for height, text, color in words:
        d.text(left + 240, height, text, color, 13, "start")
    d.text(380, 372, "A full matrix: every output of the row depends on every input of it.", MUTED, 12)
    assert np.allclose(jacobian.sum(0), 0) and np.allclose(jacobian.sum(1), 0) and np.allclose(dy @ jacobian, dx)
    return d


def cross_entropy():
    d = Drawing(760, 320, "The gradient of cross-entropy: the predicted probabilities minus the truth")
    x, truth = np.array([1.2, 0.3, 2.0, -0.5, 0.9]), np.eye(5)[0]
    y, dx = gradients(lambda x: ops.cross_entropy(x, np.array([0])), 1, x[None])
    p = np.exp(x) / np.exp(x).sum()
    panels = (50, "P = softmax(x)", p, VALUE), (300, "the label: [j = c]", truth, MUTED), (550, "dx", dx[0], GRADIENT)
    for left, title, bars, color in panels:
        d.text(left + 80, 26, title, color, bold=True)
        for j, bar in enumerate(bars):
            height = 100 * abs(bar)
            if height > 0.1:
                d.rect(left + 32 * j + 3, 166 - height if bar > 0 else 166, 26, height, shade(color, 0.8), color)
            d.text(left + 32 * j + 16, 166 - height - 10 if bar >= 0 else 166 + height + 11, plain(bar), color, 12)
            d.text(left + 32 * j + 16, 276, str(j) if j else "c = 0", MUTED if j else INK, 12)
        d.line((left - 4, 166), (left + 164, 166), color=MUTED, width=1)
    d.text(257, 120, "−", size=22)
    d.text(507, 120, "=", size=22)
    d.text(380, 302, f"One row (N = 1), dy = 1, and the loss is −ln P[c] = {plain(y)}. dx sums to 0.", MUTED, 12)
    assert np.allclose(p - truth, dx[0])
    return d


def layer_norm():
    d, normal = Drawing(760, 408, "LayerNorm: three paths from x to the loss, and what each adds to dx"), draws("norm")
    x, w, dy = normal(6), normal(6), normal(6)
    _, dx, _, _ = gradients(lambda x, w, b: ops.layer_norm(x, w, b), dy, x, w, np.zeros(6))
    r = 1 / np.sqrt(x.var() + 1e-6)
    xhat, g = (x - x.mean()) * r, w * dy
    parts = r * g, -r * g.mean() * np.ones(6), -r * xhat * (g * xhat).mean()
    d.box(60, 84, 90, 40, "x", color=VALUE)
    d.box(300, 30, 150, 36, "μ = mean(x)", color=VALUE)
    d.box(300, 142, 150, 36, "r = 1/√(var + eps)", color=VALUE)
    d.box(560, 84, 140, 40, "x̂ = (x − μ) r", color=VALUE)
    d.arrow((152, 104), (557, 104), color=VALUE)
    for y in (48, 160):
        d.arrow((152, 104 + (y - 104) / 5), (297, y), color=VALUE)
        d.arrow((453, y), (557, 104 + (y - 104) / 5), color=VALUE)
    d.text(222, 92, "1. itself", MUTED, 12)
    d.text(210, 50, "2. the mean", MUTED, 12)
    d.text(210, 158, "3. the scale", MUTED, 12)
    d.text(630, 146, "then y = w x̂ + b", MUTED, 12)
    d.line((24, 204), (736, 204), color=EDGE)
    rows = (
        ("g = w dy", g, "the gradient of x̂"), ("1.  r g", parts[0], "x̂[i] moves with x[i]"),
        ("2.  − r mean(g)", parts[1], "μ rises, so every x̂ falls"),
        ("3.  − r x̂ mean(g x̂)", parts[2], "the row's spread changes, so r does"),
        ("dx = 1 + 2 + 3", dx, "sums to 0"),
    )  # fmt: skip
    for i, (label, array, meaning) in enumerate(rows):
        top = 222 + 34 * i + (10 if i == 4 else 0)
        d.text(200, top + 12, label, GRADIENT, anchor="end", bold=i == 4)
        d.matrix(216, top, array, color=GRADIENT)
        d.text(496, top + 12, meaning, MUTED, 13, "start")
    assert np.allclose(sum(parts), dx) and abs(dx.sum()) < 1e-9
    return d


def attention():
    d, normal = Drawing(860, 408, "Attention's arrays and their shapes, forward and backward"), draws("attention")
    q, k, v, dy = (normal(4, 2) for _ in range(4))
    y, dq, dk, dv = gradients(lambda *qkv: ops.attention(ops.concat(qkv, axis=1), [4], 1), dy, q, k, v)
    s = 1 / np.sqrt(2)
    p = gradients(ops.softmax, 0, s * q @ k.T)[0]
    da = gradients(ops.softmax, dy @ v.T, s * q @ k.T)[1]
    assert np.allclose(y, p @ v) and np.allclose(dq, s * da @ k) and np.allclose(dk, s * da.T @ q)
    columns = (  # left edge, forward, backward: (array, label, formula or None, number of decimals)
        (24, (q, "q (n, d)", "", 1), (dq, "dq (n, d)", "s dA k", 2)),
        (126, (k.T, "kᵀ (d, n)", "", 1), (dk, "dk (n, d)", "s dAᵀ q", 2)),
        (300, (s * q @ k.T, "A (n, n)", "s q kᵀ", 2), (da, "dA (n, n)", "P (dP − Σ dP P)", 2)),
        (484, (p, "P (n, n)", "softmax(A)", 2), (dy @ v.T, "dP (n, n)", "dy vᵀ", 2)),
        (660, (v, "v (n, d)", "", 1), (dv, "dv (n, d)", "Pᵀ dy", 2)),
        (764, (y, "y (n, d)", "P v", 2), (dy, "dy (n, d)", "given", 1)),
    )
    for left, forward, backward in columns:
        width = 36 * forward[0].shape[1]
        for top, (array, label, formula, digits), color in ((58, forward, VALUE), (242, backward, GRADIENT)):
            x, y0 = left + (width - 36 * array.shape[1]) / 2, top + 12 * (4 - len(array))
            d.matrix(x, y0, array, label, color, cell=(36, 24), digits=digits)
            d.text(left + width / 2, top + 112, formula, INK, 12)
    for x, sign in ((111, "·"), (285, "→"), (464, "→"), (644, "·"), (750, "=")):
        d.text(x, 106, sign, size=18)
    d.text(24, 26, "forward", VALUE, anchor="start", bold=True)
    d.arrow((90, 26), (834, 26), color=VALUE)
    d.text(836, 212, "backward", GRADIENT, anchor="end", bold=True)
    d.arrow((760, 212), (26, 212), color=GRADIENT)
    d.text(430, 384, "One head of one sequence: n = 4 tokens, d = 2. A gradient has the shape of its value.", MUTED, 12)
    return d


def step():
    d = Drawing(760, 392, "A step of I-JEPA: who receives a gradient, and who an average")
    config = Config(
        encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=8, predictor_depth=1,
        predictor_num_heads=2,
    )  # fmt: skip
    model = IJEPA(config, dtype=np.float64)
    masks = MultiBlockMasker.of(config).sample(1, rng(0, "figure step"))
    with Tape() as tape:
        loss = model.loss(model.normalise(make_shapes(1)[0]), masks)
    tape.backward(loss)
    norm = {"context_encoder": 0.0, "predictor": 0.0, "target_encoder": 0.0}
    for name, gradient in model.gradients().items():
        norm[name.partition(".")[0]] += (gradient**2).sum()
    given = {name: f"gradient of norm {np.sqrt(total):.2g}" if total else "no gradient" for name, total in norm.items()}
    _patches(d, 28, 58, "the context", {n: shade(VALUE, 0.9) for n in masks.context[0]})
    _patches(d, 28, 232, "all; targets framed", {n: shade(VALUE, 0.9) for n in range(64)}, masks.targets[0])
    d.box(170, 72, 160, 68, "context encoder θ", given["context_encoder"], "then AdamW", color=VALUE)
    d.box(408, 72, 160, 68, "predictor φ", given["predictor"], "then AdamW", color=VALUE)
    d.box(170, 246, 160, 68, "target encoder θ̄", given["target_encoder"], "then EMA", color=MOVED)
    d.box(650, 160, 84, 66, "L", f"= {plain(loss.item())}", color=INK)
    for points in ((128, 106), (167, 106)), ((332, 98), (405, 98)), ((570, 98), (702, 98), (702, 157)), \
            ((128, 280), (167, 280)), ((332, 280), (692, 280), (692, 229)), ((488, 42), (488, 69)):  # fmt: skip
        d.arrow(*points, color=VALUE)
    d.arrow((682, 158), (682, 114), (571, 114), color=GRADIENT)
    d.arrow((406, 114), (333, 114), color=GRADIENT)
    d.arrow((250, 142), (250, 243), color=MOVED, width=2, dash="5 4")
    d.line((664, 258), (720, 258), color=GRADIENT, width=4)
    for x, y, text, color in (
        (369, 84, "z", VALUE), (369, 130, "dz", GRADIENT), (626, 84, "p", VALUE), (626, 130, "dp", GRADIENT),
        (490, 266, "q, at the target blocks", VALUE), (488, 30, "positions of the target blocks", VALUE),
    ):  # fmt: skip
        d.text(x, y, text, color, 13)
    d.text(264, 182, "EMA, after AdamW:", MOVED, 13, "start")
    d.text(264, 202, "θ̄ ← m θ̄ + (1 − m) θ", MOVED, 13, "start", bold=True)
    d.text(680, 300, "the gradient stops:", GRADIENT, 13)
    d.text(680, 318, "q is a constant", GRADIENT, 13)
    d.text(380, 372, "Gradients flow through the predictor into the context encoder, and nowhere else.", MUTED, 12)
    return d


def _patches(d, left, top, label, filled, blocks=()):
    """The 8 × 8 patches of an image, some of them filled, with the frames of target blocks."""
    for n in range(64):
        d.rect(left + 12 * (n % 8), top + 12 * (n // 8), 12, 12, fill=filled.get(n, "#ffffff"), stroke=EDGE)
    for block in blocks:
        x, y = block % 8, block // 8
        width, height = x.max() - x.min() + 1, y.max() - y.min() + 1
        d.rect(left + 12 * x.min(), top + 12 * y.min(), 12 * width, 12 * height, stroke=INK, line=2)
    d.text(left + 48, top + 112, label, MUTED, 12)
