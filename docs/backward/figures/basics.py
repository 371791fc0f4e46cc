"""Figures of the first pages: what a gradient is, how a tape is walked, where transposes and sums come from."""

import numpy as np
from engine import draws, gradients
from svg import EDGE, GRADIENT, INK, MUTED, VALUE, Drawing, plain, shade

from minijepa import Parameter, ops
from minijepa.explain.walk import RecordingTape


def start():
    d = Drawing(760, 300, "The graph of L = (x w) c with its values and gradients, and that of L = x x")
    _, dx, dw, dc = gradients(lambda x, w, c: x * w * c, 1, *map(np.float64, (2, 3, 4)))
    _, du = gradients(lambda u: u * 4.0, 1, np.float64(6))
    d.text(250, 26, "L = (x w) c", bold=True)
    places = {"x": (74, 80), "w": (74, 190), "c": (242, 235), "u": (242, 135), "L": (420, 185)}
    names = {"x": "x = 2", "w": "w = 3", "c": "c = 4", "u": "u = x w = 6", "L": "L = u c = 24"}
    found = {"x": dx, "w": dw, "c": dc, "u": du, "L": 1}
    for a, b, port in (("x", "u", -9), ("w", "u", 9), ("u", "L", -9), ("c", "L", 9)):
        (x0, y0), (x1, y1) = places[a], places[b]
        d.arrow((x0 + 54, y0 - 4), (x1 - 55, y1 + port - 4), color=VALUE)
        d.arrow((x1 - 55, y1 + port + 3), (x0 + 54, y0 + 5), color=GRADIENT)
    for name, (x, y) in places.items():
        d.box(x - 52, y - 17, 104, 34, names[name], color=VALUE)
        d.text(x, y + 30, f"d{name} = {plain(found[name], 0)}", GRADIENT)
    d.text(80, 278, "blue: forward", VALUE, 12)
    d.text(400, 278, "orange: backward", GRADIENT, 12)
    d.line((510, 20), (510, 280), color=EDGE)
    _, dx = gradients(lambda x: x * x, 1, np.float64(3))
    d.text(635, 26, "L = x x", bold=True)
    for side in (-1, 1):
        d.arrow((635 + 10 * side, 102), (635 + 22 * side, 134), (635 + 10 * side, 164), color=VALUE)
        d.arrow((635 + 30 * side, 165), (635 + 42 * side, 134), (635 + 30 * side, 102), color=GRADIENT)
        d.text(635 + 66 * side, 134, "+ 3", GRADIENT)
    d.box(583, 66, 104, 34, "x = 3", color=VALUE)
    d.box(583, 167, 104, 34, "L = x x = 9", color=VALUE)
    d.text(635, 214, "dL = 1", GRADIENT)
    d.text(635, 50, f"dx = 3 + 3 = {plain(dx, 0)}", GRADIENT)
    d.text(635, 250, "Each use sends a gradient back,", MUTED, 13)
    d.text(635, 268, "and they are added.", MUTED, 13)
    return d


def linear():
    d, normal = Drawing(760, 430, "y = x wᵀ and its two backward products, as matrices"), draws("linear")
    x, w, dy = normal(3, 4), normal(2, 4), normal(3, 2)
    y, dx, dw = gradients(ops.linear, dy, x, w)
    row, column = [(1, j) for j in range(4)], [(j, 0) for j in range(4)]
    product(d, 44, (x, "x (t, i)", VALUE, row), (w.T, "wᵀ (i, o)", VALUE, column), (y, "y (t, o)", VALUE, [(1, 0)]),
            "forward:", "y = x wᵀ", "summed over i")  # fmt: skip
    product(d, 186, (dy, "dy (t, o)", GRADIENT, [(1, 0), (1, 1)]), (w, "w (o, i)", VALUE, [(0, 2), (1, 2)]),
            (dx, "dx (t, i)", GRADIENT, [(1, 2)]),
            "backward:", "dx = dy w", "summed over o:", "x has no o")  # fmt: skip
    product(d, 304, (dy.T, "dyᵀ (o, t)", GRADIENT, [(0, j) for j in range(3)]),
            (x, "x (t, i)", VALUE, [(j, 3) for j in range(3)]), (dw, "dw (o, i)", GRADIENT, [(0, 3)]),
            "", "dw = dyᵀ x", "summed over t:", "w has no t")  # fmt: skip
    d.text(380, 408, "Framed: one element of each product, with the row and the column that make it.", MUTED, 12)
    return d


def product(d, y, a, b, c, *words):
    """A line a b = c of three matrices, behind some words."""
    for i, text in enumerate(words):
        d.text(24, y + 6 + 20 * i, text, INK if i == 1 else MUTED, 14 if i == 1 else 13, "start", bold=i == 1)
    x, height = 150, max(len(m[0]) for m in (a, b, c)) * 24
    for (array, label, color, marked), sign in zip((a, b, c), ("", "·", "=")):
        x += 30 if sign else 0
        top = y + (height - len(array) * 24) / 2
        d.text(x - 15, y + height / 2, sign, size=18) if sign else None
        x, _ = d.matrix(x, top, array, label, color, digits=2 if sign == "=" else 1, marked=marked)


def broadcasting():
    d, normal = Drawing(760, 366, "b is copied forward, and the gradients of its copies are summed"), draws("copies")
    a, b, dy = normal(3, 4), normal(4), normal(3, 4)
    y, _, db = gradients(lambda a, b: a * b, dy, a, b)
    d.text(24, 75, "forward:", MUTED, 13, "start")
    d.text(24, 95, "y = a b", bold=True, anchor="start")
    d.matrix(112, 60, a, "a (t, n)", digits=1)
    d.text(302, 96, "×", size=18)
    d.matrix(318, 60, np.tile(b, (3, 1)), "b (n), copied", digits=1, ghost=(1, 2))
    d.text(508, 96, "=", size=18)
    d.matrix(524, 60, y, "y (t, n)")
    d.text(24, 215, "backward:", MUTED, 13, "start")
    d.text(24, 235, "a dy, then Σ", bold=True, anchor="start")
    d.matrix(112, 200, a, "a (t, n)", digits=1)
    d.text(302, 236, "×", size=18)
    d.matrix(318, 200, dy, "dy (t, n)", GRADIENT, digits=1)
    d.text(508, 236, "=", size=18)
    d.matrix(524, 200, a * dy, "for each copy", GRADIENT)
    for j in range(4):
        d.arrow((546 + 44 * j, 274), (546 + 44 * j, 306), color=GRADIENT)
    d.matrix(524, 308, db, color=GRADIENT)
    d.text(512, 290, "Σ over t", GRADIENT, anchor="end")
    d.text(512, 320, "db (n)", GRADIENT, anchor="end", bold=True)
    d.text(24, 346, "b[j] is in every row, so it reaches L along every row: the paths add.", MUTED, 12, "start")
    return d


def rows():
    d = Drawing(760, 300, "Rows 1, 1, 3, 1 and 0 are copied forward; backward, the copies' gradients are added")
    normal, index = draws("rows"), [1, 1, 3, 1, 0]
    x, dy = normal(4, 2), normal(5, 2)
    y, dx = gradients(lambda x: ops.rows(x, np.array(index)), dy, x)
    for left, title, a, b, names, color in (
        (50, "forward: y[t] = x[index[t]]", x, y, ("x", "y"), VALUE),
        (430, "backward: dx[i] = Σ dy[t] of its copies", dx, dy, ("dx", "dy"), GRADIENT),
    ):
        d.text(left + 140, 26, title, bold=True, size=13)
        d.matrix(left, 92, a, names[0], color, cell=(44, 30), digits=1)
        d.matrix(left + 212, 77, b, names[1], color, cell=(44, 30), digits=1)
        for t, n in enumerate(index):
            ends = (left + 92, 107 + 30 * n), (left + 196, 92 + 30 * t)
            d.arrow(*(ends if color == VALUE else ends[::-1]), color=color)
            d.text(left + 204, 92 + 30 * t, str(n), MUTED, 11)
        for n in range(4):
            d.text(left - 10, 107 + 30 * n, str(n), MUTED, 11)
    d.line((392, 20), (392, 250), color=EDGE)
    d.text(196, 252, "Row 1 is copied three times, row 2 never.", MUTED, 12)
    d.text(576, 252, "Row 1 gets three gradients, added; row 2 gets 0.", MUTED, 12)
    d.text(380, 280, "dx[index] = dy would keep one of the three and drop the others.", MUTED, 12)
    return d


def rest():
    d, normal = Drawing(760, 410, "A slice, concat and max: elements go forward, dy comes back"), draws("rest")
    for k, (title, fn, lengths, moves) in enumerate((
        ("y = x[1::2]", lambda x: x[1::2], [5], [(0, 1), (0, 3)]),
        ("y = concat([a, b])", lambda a, b: ops.concat([a, b]), [2, 3], [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]),
        ("y = max(x)", lambda x: ops.max(x).reshape(1), [5], [(0, None)]),
    )):  # fmt: skip
        left, arrays = 62 + 240 * k, [normal(n) for n in lengths]
        dy = normal(len(moves))
        y, *gradients_of = gradients(fn, dy, *arrays)
        moves = [(a, int(arrays[a].argmax()) if i is None else i) for a, i in moves]
        d.text(left + 88, 26, title, bold=True)
        for top, columns, result, color in ((72, arrays, y, VALUE), (250, gradients_of, dy, GRADIENT)):
            mark = "d" if color == GRADIENT else ""
            tops = [top + 26 * sum(lengths[:a]) + 14 * a for a in range(len(columns))]
            for a, column in enumerate(columns):
                d.matrix(left, tops[a], column[:, None], "", color, cell=(44, 26), digits=1)
                name = mark + ("x" if len(columns) == 1 else "ab"[a])
                d.text(left - 16, tops[a] + 13 * len(column), name, color, bold=True)
            middle = top + 13 * (5 - len(result)) + 7 * (len(columns) - 1)
            d.matrix(left + 132, middle, result[:, None], "", color, cell=(44, 26), digits=1)
            d.text(left + 194, middle + 13 * len(result), f"{mark}y", color, bold=True)
            for j, (a, i) in enumerate(moves):
                ends = (left + 48, tops[a] + 13 + 26 * i), (left + 128, middle + 13 + 26 * j)
                d.arrow(*(ends if color == VALUE else ends[::-1]), color=color)
    d.text(18, 50, "forward", VALUE, 12, "start")
    d.text(18, 228, "backward", GRADIENT, 12, "start")
    return d


def tape():
    d = Drawing(760, 372, "A tape of four entries, written forward and read backward")
    x = Parameter(np.array([1.0, 2.0]))
    with RecordingTape() as tape:
        u = x * x
        v = u * 3
        p = u * v
        loss = p.sum()
    tape.backward(loss)
    names = {x: "x", u: "u", v: "v", p: "p", loss: "L"}
    sums = {names[value]: numbers(total) for value, total in tape.totals.items()}
    inputs, went = ("x, x", "u, 3", "u, v", "p"), {}
    for visit in tape.walk:
        given = zip(tape.recorded[visit["entry"]].inputs, visit["slots"])
        went[visit["entry"]] = ",  ".join(f"{numbers(slot['dx'])} to {names[x]}" for x, slot in given if slot)
    d.text(238, 26, "written while forward runs", VALUE, 13)
    d.text(560, 26, "read backward: what each entry gives", GRADIENT, 13)
    d.arrow((48, 100), (48, 336), color=VALUE, width=2)
    d.arrow((732, 336), (732, 60), color=GRADIENT, width=2)
    d.rect(70, 46, 336, 34, fill="#ffffff", stroke=VALUE, rx=6, dash="4 3")
    d.text(112, 63, "the leaf x", anchor="start", bold=True)
    d.text(394, 63, numbers(x.data), VALUE, anchor="end")
    d.text(428, 63, f"dx = {sums['x']}", GRADIENT, 13, "start", bold=True)
    for i, entry in enumerate(tape.recorded):
        top, output = 96 + 62 * i, names[entry.output]
        d.rect(70, top, 336, 46, fill=shade(VALUE, 0.12), stroke=VALUE, rx=6)
        d.text(90, top + 23, str(i), MUTED)
        d.text(112, top + 23, f"{output} = {entry.op.op_name}({inputs[i]})", anchor="start", bold=True)
        d.text(394, top + 23, numbers(entry.output.data), VALUE, anchor="end")
        d.text(428, top + 12, f"d{output} = {sums[output]}", GRADIENT, 13, "start", bold=True)
        d.text(428, top + 34, went[i], GRADIENT, 13, "start")
    d.text(380, 354, "u is used by entries 1 and 2: both are read, and du is complete, before entry 0 is reached.",
           MUTED, 12)  # fmt: skip
    return d


def numbers(array):
    array = np.asarray(array)
    return f"[{', '.join(plain(a, 0) for a in array)}]" if array.ndim else plain(array, 0)
