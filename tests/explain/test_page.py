"""The page that walks the tape: its numbers are the engine's, it marks the right lines, and a browser plays it."""

import inspect
import json
import re

import numpy as np
import pytest
from browser import needs_browser, told
from tiny import command, differentiate, refusal

from minijepa.explain.__main__ import main
from minijepa.explain.lines import gradient_lines
from minijepa.explain.operation import function_of, input_names
from minijepa.explain.page import MARK, recorded
from minijepa.explain.walk import network_of, network_of_step
from minijepa.gradcheck.cases import CASES, cases_of
from minijepa.gradcheck.check import compare_gradients
from minijepa.ops.attention import Attention
from minijepa.ops.elementwise import Mul
from minijepa.ops.layer_norm import LayerNorm
from minijepa.ops.matmul import Linear
from minijepa.ops.reductions import Mean
from minijepa.ops.shaping import Concat
from minijepa.ops.softmax import Softmax


def array(data, reference):
    shape, number = reference
    return np.array(data["arrays"][number], float).reshape(shape)


def gradients_of(data):
    """{name: the gradient that the page shows at the end of the walk}"""
    found = {}
    for visit in data["walk"]:
        for place, slot in zip(data["entries"][visit["entry"]]["inputs"], visit["slots"]):
            if slot:
                found[data["values"][place]["name"]] = array(data, slot["total"])
    return found


def engine_gradients(network):
    """{name: gradient} of a network's leaves, by an ordinary tape."""
    differentiate(network.forward)
    return {name: x.grad for x, name in network.named.items() if x._mark is None and x.grad is not None}


@pytest.mark.parametrize("op", CASES)
def test_what_is_recorded_is_what_the_engine_computes(op):
    data, passed = recorded(network_of(op))
    assert passed
    names = input_names(function_of(op), len(CASES[op][0].arrays))[: len(CASES[op][0].arrays)]
    assert not {"start", "c", "z", "s", "t", "L"} & {*names}
    shown, engine = gradients_of(data), engine_gradients(network_of(op))
    assert {"start", *names[1:]} == engine.keys() <= shown.keys()
    for name, gradient in engine.items():
        np.testing.assert_array_equal(shown[name], gradient)
    for visit in data["walk"][1:]:  # dy is the sum of all that came before
        output = data["values"][data["entries"][visit["entry"]]["output"]]["name"]
        np.testing.assert_array_equal(array(data, visit["dy"]), shown[output])
    case = cases_of(op)[0]  # the terminal's live check: there, x lacks the sum's gradient of 1
    for i, (name, comparison) in enumerate(zip(names, compare_gradients(case.fn, *case.arrays))):
        np.testing.assert_allclose(shown[name], comparison.analytic + (i == 0), atol=1e-12)


def test_a_value_that_is_used_twice_receives_a_sum():
    data, _ = recorded(network_of("linear"))
    x = next(i for i, value in enumerate(data["values"]) if value["name"] == data["twice"] == "x")
    visits = [(w["slots"], data["entries"][w["entry"]]["inputs"]) for w in data["walk"]]
    by_sum, by_linear = [slot for slots, inputs in visits for slot, i in zip(slots, inputs) if i == x]
    assert (array(data, by_sum["dx"]) == 1).all()
    np.testing.assert_array_equal(array(data, by_linear["total"]), 1 + array(data, by_linear["dx"]))
    through_linear, through_sum = (array(data, use) for use in data["uses"])
    np.testing.assert_allclose(through_linear, array(data, by_linear["dx"]), rtol=1e-9)
    np.testing.assert_allclose(through_sum, 1, rtol=1e-9)


def marked(op, inputs):
    source = inspect.getsource(op.backward).splitlines()
    return [[source[n].strip() for n in lines] for lines in gradient_lines(op, inputs)]


def test_the_lines_of_each_gradient_are_found():
    dx, dw, db = marked(Linear, 3)
    assert dx == ["dx = backend.matmul(rows, w).reshape(x.shape) if ctx.needs[0] else None"]
    assert dw[0].startswith("dw = ") and db[0].startswith("db = ") and len(dw) == len(db) == 1
    dx, dw, db = marked(LayerNorm, 3)
    assert [line.split()[0] for line in dx] == ["xp.multiply(dy_,", "dx_", "dx_", "dx_"]
    assert (dw, db) == (["dw += column_sums(dy_xhat)"], ["db += column_sums(dy_)"])
    (dqkv,) = marked(Attention, 1)
    assert [re.search(r"out=(\w+)|dqkv", line)[0] for line in dqkv] == ["out=dv_", "out=dq_", "out=dk_", "dqkv"]
    assert marked(Softmax, 1) == [["return (y * (dy - row_sums(dy * y)),)"]]
    assert marked(Mul, 2)[0] == marked(Mul, 2)[1]
    assert [line.split()[0] for line in marked(Mean, 1)[0]] == ["dy", "return"]
    assert marked(Concat, 2) == [["return tuple(xp_of(dy).split(dy, ctx.ends[:-1], axis=ctx.axis))"]] * 2
    for op in CASES:
        function = function_of(op)
        names = input_names(function, len(CASES[op][0].arrays))
        lines = inspect.getsource(function.backward).splitlines()
        assert all(found and max(found) < len(lines) for found in gradient_lines(function, len(names))), op


def test_a_wrong_backward_is_written_and_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Softmax, "backward", staticmethod(lambda ctx, dy: (ctx.saved[0] * dy,)))
    assert main(["softmax", "--html", str(tmp_path / "page.html")]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert "FAILED" in (tmp_path / "page.html").read_text(encoding="utf-8")
    monkeypatch.setattr(Softmax, "backward", staticmethod(lambda ctx, dy: (dy * np.nan,)))
    assert main(["softmax", "--html", str(tmp_path / "page.html")]) == 1
    assert "difference inf, tolerance 1e-06: FAILED" in capsys.readouterr().out
    assert '"NaN"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    monkeypatch.setattr(Softmax, "backward", staticmethod(lambda ctx, dy: (dy[..., :1],)))
    assert main(["softmax", "--html", str(tmp_path / "other.html")]) == 1
    assert capsys.readouterr().out.startswith("no page: softmax: backward returned shape (2, 1)")
    assert not (tmp_path / "other.html").exists()


def test_a_page_is_replaced_and_nothing_else(tmp_path, capsys):
    page, notes = tmp_path / "page.html", tmp_path / "notes.html"
    page.touch()  # empty, as mktemp makes one
    for _ in range(2):
        assert main(["exp", "--html", str(page)]) == 0
        assert capsys.readouterr().out.startswith(f"{page}: largest relative difference")
    assert MARK in page.read_text(encoding="utf-8") and list(tmp_path.iterdir()) == [page]
    notes.write_bytes(b"\xff mine")
    assert "notes.html exists and is not a page of this command" in refusal(capsys, main, "exp", "--html", str(notes))
    assert notes.read_bytes() == b"\xff mine"


def test_where_no_page_can_be_written_one_line_says_so(tmp_path, capsys):
    assert "No such file" in refusal(capsys, main, "exp", "--html", str(tmp_path / "none" / "page.html"))
    assert "it is not a plain file" in refusal(capsys, main, "exp", "--html", str(tmp_path))
    assert "unknown operation" in refusal(capsys, main, "exq", "--html", str(tmp_path / "page.html"))
    assert command(capsys, main, "--html", tmp_path / "page.html")[0] == 2 and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def step_page(tmp_path_factory):
    page = tmp_path_factory.mktemp("step") / "page.html"
    assert main(["--step", "--html", str(page)]) == 0
    return page


def test_a_step_shows_every_gradient_and_folds_by_module(step_page):
    text = step_page.read_text(encoding="utf-8")
    assert "://" not in text and not re.search(r"<(script|link|img)[^>]* (src|href)=\"(?!data:|\$)", text)  # no network
    data = json.loads(re.search(r'<script id="tape" type="application/json">(.*)</script>', text)[1])
    engine, shown = engine_gradients(network_of_step()), gradients_of(data)
    assert len(engine) > 30 and not any("target_encoder" in name for name in shown)
    for name, gradient in engine.items():
        np.testing.assert_array_equal(shown[name], gradient)
    groups = [entry["group"] for entry in data["entries"]]
    assert [groups.count(f"{part}blocks.0") for part in ("context_encoder.", "predictor.predictor_")] == [10, 12]
    assert "".join(groups).endswith("predictor.predictor_proj") and groups[-1] == ""  # the loss is of no module


WALK = """<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("load", () => {
  const headings = [], shown = {};
  for (let n = 0; n < END + 2; n++) {
    headings.push($("now").querySelector("h2").textContent);
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  }
  V.forEach((value, v) => {
    if (value.kind === "constant") return;
    $("numbers").innerHTML = numbers(state(), v);
    shown[value.name] = [...$("numbers").querySelectorAll(".analytic")].map(cell => cell.textContent);
  });
  const textContent = JSON.stringify({position, headings, shown, errors});
  document.body.append(Object.assign(document.createElement("pre"), {id: "walked", textContent}));
});
</script>"""


@needs_browser
@pytest.mark.parametrize("op", ["layer_norm", "--step"])
def test_a_browser_walks_to_the_end_and_shows_the_gradients(op, step_page, tmp_path):
    """By the arrow key."""
    page, network, entries = step_page, network_of_step(), 40
    if op != "--step":
        page, network, entries = tmp_path / "page.html", network_of(op), 6
        assert main([op, "--html", str(page)]) == 0
    walked, text = tmp_path / "walked.html", page.read_text(encoding="utf-8")
    walked.write_text(text.replace("<title>", f"{WALK}<title>", 1), encoding="utf-8")
    seen, engine = told(walked, "walked", tmp_path / "profile"), engine_gradients(network)
    assert seen["errors"] == []
    assert seen["position"] == 2 * entries + 1
    assert seen["headings"][entries].startswith(f"Forward {entries} of {entries}: ")
    assert seen["headings"][-1].startswith(f"Backward {entries} of {entries}: ")
    assert len(set(seen["headings"])) == len(seen["headings"]) - 1  # the last key finds the walk at its end
    assert engine.keys() <= seen["shown"].keys()
    for name, gradient in engine.items():
        shown = [float(text.replace("−", "-")) for text in seen["shown"][name]]
        if op == "--step":
            gradient = gradient.flat[[np.abs(gradient).argmax()]]
        np.testing.assert_allclose(shown, gradient.ravel(), rtol=1e-6, atol=6e-9)
