"""The CUDA path: on a card where there is one, and everywhere on a stand-in, whose arrays refuse to mix with NumPy's
and count how often the host waits (strict_device.py)."""

import emulator
import numpy as np
import pytest
from devices import DEVICES, counts, no_cublas, prepare
from strict_device import CUPY_HAS, StrictCupy
from tiny import DEEPER, differentiate, noise, normal_like, values_and_gradients

from minijepa import Config, Tensor, WatchingTape, backend, ops
from minijepa.data import draw_windows, resized_crop
from minijepa.errors import DeviceError, TapeError, TrainingError
from minijepa.evaluation.patches import central_blocks, extract_patches, predicted_blocks, target_patches
from minijepa.gradcheck.__main__ import main as gradcheck_command
from minijepa.gradcheck.cases import CASES
from minijepa.kernels import cublas, graph, launcher
from minijepa.training import checkpoint
from minijepa.training import trainer as trainer_module
from minijepa.training.trainer import Trainer

ALL = [pytest.param(case, id=f"{op}: {case.name}") for op, cases in CASES.items() for case in cases]
FUSED = "attention gelu l2_loss layer_norm linear rows smooth_l1_loss".split()
USED = {  # kernels of a training step
    "adamw", "attention_backward", "attention_forward", "column_sums", "ema", "gather", "gather_sum", "gelu_backward",
    "gelu_forward", "layer_norm_backward", "layer_norm_forward", "loss_backward", "loss_forward", "sum_of_squares",
    "sum_partials",
}  # fmt: skip
SETTINGS = DEEPER | dict(
    batch_size=4, epochs=3, warmup_epochs=1, augment_flip=True, augment_crop=4, target_norm="layer_norm",
)  # fmt: skip


@pytest.fixture(params=DEVICES)
def cupy(request, monkeypatch):
    return prepare(request.param, monkeypatch)


@pytest.fixture(params=["array code", "kernels"])
def bodies(request, cupy, monkeypatch):
    """Both bodies of the operations."""
    if request.param == "kernels" and not launcher.enabled:
        pytest.skip("kernels are emulated on Linux")
    monkeypatch.setattr(launcher, "enabled", request.param == "kernels")
    return request.param


def test_the_stand_in_is_strict():
    cupy = StrictCupy()
    x = cupy.asarray(np.ones((2, 3), np.float32))
    for mix in (
        lambda: x + np.ones(3), lambda: np.ones(3) + x, lambda: x[np.array([0])], lambda: cupy.multiply(x, np.ones(3)),
        lambda: x.__setitem__(0, np.ones(3)), lambda: np.asarray(x), lambda: cupy.matmul(x, np.ones((3, 1))),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(AttributeError, match="CuPy has no vecdot"):
        cupy.vecdot(x, x)
    assert cupy.synchronisations == 0
    assert float(x.sum()) == 6 and bool(x.max() == 1) and cupy.asnumpy(x).shape == (2, 3)
    assert cupy.synchronisations == 3


def test_cupy_has_what_the_stand_in_has():
    cupy = pytest.importorskip("cupy")
    assert [name for name in CUPY_HAS if not hasattr(cupy, name)] == []


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_the_precision_reaches_both_kinds_of_products(precision, monkeypatch):
    cupy = pytest.importorskip("cupy")
    from cupy._core import _routines_linalg as linalg

    asked = []
    monkeypatch.setattr(linalg, "set_compute_type", lambda *args: asked.append(args))
    monkeypatch.setattr(cublas.Cublas, "compute", None)
    backend.set_precision(precision)
    kind = {"fp32": linalg.COMPUTE_TYPE_FP32, "tf32": linalg.COMPUTE_TYPE_TF32}[precision]
    assert asked == [(cupy.dtype("float32"), kind)]
    assert cublas.Cublas.compute == {"fp32": 68, "tf32": 77}[precision]


def run(case, convert, dtype):
    """Value and gradients."""
    arrays = [convert(np.asarray(a, dtype)) for a in case.arrays]
    return [backend.to_numpy(a) for a in values_and_gradients(case.fn, arrays, lambda y: convert(normal_like(y)))]


@pytest.mark.parametrize("case", ALL)
def test_every_operation_gives_the_same_on_the_device(case, cupy):
    for here, there in zip(run(case, np.asarray, np.float64), run(case, cupy.asarray, np.float64)):
        np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-11 * max(1.0, np.abs(here).max(initial=0)))


@pytest.mark.parametrize("case", [p for p in ALL if p.id.partition(":")[0] in FUSED])
def test_every_fused_operation_gives_the_same_on_the_device(case, cupy):
    for here, there in zip(run(case, np.asarray, np.float32), run(case, cupy.asarray, np.float32)):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-6 + 1e-4 * np.abs(here).max(initial=0))


def test_tensors_as_values_on_the_device(cupy):
    x = Tensor(cupy.asarray(np.array([[1, 2], [3, 4]], np.float32)))
    for mask in (x > 2, np.array([[False, False], [True, True]])):
        assert backend.to_numpy(x[mask].data).tolist() == [3, 4]
    assert backend.to_numpy((x @ [1, 2]).data).tolist() == [5, 11] and backend.xp_of(x == 3) is cupy
    assert 3.0 in x and f"{np.sum(x):.1f}" == "10.0"
    with pytest.raises(DeviceError, match=r"is on a GPU: minijepa\.backend\.to_numpy\(tensor\.data\) copies it"):
        np.asarray(x)


def test_a_change_in_place_is_noticed_on_the_device(bodies, cupy):
    x, w, b = (Tensor(cupy.asarray(np.ones(shape, np.float32)), requires_grad=True) for shape in ((2, 3), 3, 3))
    for changed in (None, w, x):
        with WatchingTape() as tape:
            loss = ops.l2_loss(ops.layer_norm(x * x, w, b), 0.0 * x.detach())
        if changed is None:
            tape.backward(loss)
            continue
        changed.data[...] = 2
        with pytest.raises(TapeError, match=f"{'layer_norm: its input 1' if changed is w else 'mul: its input 0'}"):
            tape.backward(loss)


def test_gradients_can_be_checked_on_the_device(cupy, capsys):
    assert gradcheck_command(["layer_norm", "rows", "l2_loss", "mul", "--device", "cuda"]) == 0
    assert "all passed" in capsys.readouterr().out


def trainer(device, **changes):
    return Trainer(Config(**SETTINGS | changes), noise(12), device)


def test_training_steps_give_the_same_on_the_device(bodies):
    """Whole steps: data, augmentation, masks, both branches, backward, AdamW and EMA."""
    here, there = trainer("cpu"), trainer("cuda")
    for step in range(3):
        for t in (here, there):
            t.collect(step, t.train_step(step))
        if step == 0:  # before rounding grows
            assert_same_gradients(here.model, there.model)
    there.read()
    assert there.progress.sums == pytest.approx(here.progress.sums, rel=1e-4)
    assert set(emulator.launches) == (USED if bodies == "kernels" else set())
    # Adam divides by a gradient's own size, so where that is rounding alone (a key's bias) its sign is a matter of luck
    assert_same_state(there.model.state_dict(), here.model.state_dict(), atol=0.05 * here.learning_rate(2))


def assert_same_gradients(here, there):
    for name, wanted in here.gradients().items():
        found, keys = there.gradients()[name], slice(0)
        if name.endswith("qkv.bias"):
            keys = slice(len(wanted) // 3, 2 * len(wanted) // 3)  # whose gradient is 0, and rounding alone
        size = np.abs(wanted).max()
        wanted[keys] = found[keys] = 0
        np.testing.assert_allclose(found, wanted, atol=1e-4 * size, err_msg=name)


def test_what_the_kernels_need_to_know_of_an_index_or_a_packing_is_made_once(cupy):
    index, packing = ops.RowIndex([0, 2, 0], "cuda"), ops.Packing([2, 1])
    for uploads in (3, 0):  # offsets, starts and members
        x, dy = (cupy.asarray(np.ones((3, width), np.float32)) for width in (48, 16))
        x, before = Tensor(x, requires_grad=True), counts(cupy)[1]
        differentiate(lambda x=x: ops.attention(ops.rows(x, index), packing, 1), dy)
        assert counts(cupy) == (0, before + uploads)


def test_resized_crops_need_only_their_windows_on_the_device(cupy):
    images = np.random.default_rng(0).standard_normal((4, 3, 9, 12))
    windows = draw_windows(4, np.random.default_rng(1), (0.2, 0.9))
    there = cupy.asarray(images)
    found = resized_crop(there, windows)
    np.testing.assert_allclose(backend.to_numpy(found), resized_crop(images, windows), atol=1e-12)
    before = counts(cupy)
    resized_crop(there, windows)
    assert counts(cupy) == (before[0], before[1] + 1)


def test_steps_do_not_wait_for_the_device(cupy, monkeypatch):
    """Losses and norms are fetched together, once in a while; one that is not finite is named with its step."""
    monkeypatch.setattr(trainer_module, "READ_EVERY", 3)
    t = trainer("cuda")
    waits = []
    for step in range(6):
        before = counts(cupy)[0]
        t.collect(step, t.train_step(step))
        waits.append(counts(cupy)[0] - before)
    assert waits == [0, 0, 1, 0, 0, 1]
    t.collect(6, t.train_step(6))
    t.model.flat.data[...] = np.nan
    t.collect(7, t.train_step(7))
    with pytest.raises(TrainingError, match="step 7: the loss is nan"):
        t.read()
    assert t.progress.sums["context_tokens"] > 0 and np.isfinite(t.progress.sums["loss"])


def test_a_checkpoint_waits_for_whole_vectors_not_for_each_parameter(cupy, tmp_path):
    t = trainer("cuda")
    waits = counts(cupy)[0]
    checkpoint.save(tmp_path / "checkpoint.npz", t.model, t.optimizer, t.progress, t.data)
    assert counts(cupy)[0] - waits == 4  # both networks' weights, and Adam's two moments


def test_monitors_and_features_run_on_the_device(cupy):
    here, there = trainer("cpu"), trainer("cuda")
    assert there.monitors.collapse() == pytest.approx(here.monitors.collapse(), rel=1e-3)
    assert there.monitors.knn() == here.monitors.knn()


def test_what_pictures_show_is_computed_on_the_device(cupy):
    here, there = trainer("cpu"), trainer("cuda")
    images, masks = here.images[:4], central_blocks(here.masker.sample(4, np.random.default_rng(0)), (8, 8))
    for function in (extract_patches, target_patches):
        np.testing.assert_allclose(function(there.model, images), function(here.model, images), atol=1e-4)
    one, two = (predicted_blocks(t.model, images, masks, here.images) for t in (here, there))
    np.testing.assert_allclose(two["prediction"][1], one["prediction"][1], rtol=1e-3)
    np.testing.assert_array_equal(two["truth"][0], images)


# ------------------------------------------------------------------------------------------------- the step as a graph


@pytest.fixture
def graphs(cupy, monkeypatch):
    if not launcher.enabled:
        pytest.skip("kernels are emulated on Linux")
    monkeypatch.setattr(graph, "enabled", True)
    monkeypatch.setattr(graph, "WARM_UP", 1)
    return cupy


def state_after(trainer, steps):
    """Losses, norms and weights, all of them."""
    for step in range(steps):
        trainer.collect(step, trainer.train_step(step))
    trainer.read()
    assert np.isfinite(list(trainer.progress.sums.values())).all()
    return {**trainer.model.state_dict(), **trainer.progress.sums}


def assert_same_state(found, wanted, **tolerances):
    """The same bits; or about the same numbers, where a key's bias is rounding alone."""
    for name in wanted:
        if not tolerances:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        elif not name.endswith("qkv.bias"):
            np.testing.assert_allclose(found[name], wanted[name], **tolerances, err_msg=name)


STEPS = 4  # one to warm up, then the recorded one and two more


def test_a_recorded_step_gives_the_same_bits_as_the_same_step_launch_by_launch(graphs, monkeypatch):
    settings = dict(target_norm="layer_norm", loss="smooth_l1")
    recorded = trainer("cuda", **settings)
    found = state_after(recorded, STEPS)
    assert recorded.graph.graph is not None
    monkeypatch.setattr(graph, "WARM_UP", STEPS)
    launched = trainer("cuda", **settings)
    wanted = state_after(launched, STEPS)
    assert launched.graph.graph is None
    assert_same_state(found, wanted)


def test_spare_rows_change_nothing(graphs):
    """The gradient at a capacity is that of exact sizes, and is that of the CPU."""
    here, there = trainer("cpu"), trainer("cuda")
    images, masks = here.batch(0)
    layout = there.graph.layout
    here.lanes.gradients(images, masks)
    for batch in (1, 0):  # what an earlier batch has left in the arrays does not matter
        images, masks = there.batch(batch)
        assert layout.load(masks)
        loss = there.lanes.in_one_chunk(there.model.prepare(images, masks)[0], layout)
    assert len(masks.context_index) < layout.rows[0] and len(masks.target_index) < layout.rows[1]
    assert_same_gradients(here.model, there.model)
    assert float(loss) == pytest.approx(float(there.lanes.gradients(images, masks)), rel=1e-6)


def test_graphs_of_two_trainers_do_not_meet(graphs):
    """Trained in turns, and with another stream in use in between."""
    wanted = state_after(trainer("cuda"), STEPS)
    one, other = trainer("cuda"), trainer("cuda", seed=1)
    losses = []
    for step in range(STEPS):
        values = [t.train_step(step) for t in (one, other)]
        losses.append(values[0]["loss"])
        one.collect(step, values[0])
        graphs.cuda.Stream(non_blocking=True).use()
    one.read()
    assert one.graph.graph is not None and other.graph.graph is not None
    assert_same_state({**one.model.state_dict(), **one.progress.sums}, wanted)
    assert len({float(loss) for loss in losses}) == STEPS  # each step's own, although the graph writes to one place


def test_a_replay_waits_for_nothing_and_copies_two_arrays(graphs):
    t = trainer("cuda")
    backend.use_own_stream()
    found = []
    for step in range(STEPS):
        images, masks = t.batch(step)
        waits, uploads = counts(graphs)
        assert t.graph(step, images, masks, t.optimizer.begin_step(step, 1e-3), 0.99)
        found.append((counts(graphs)[0] - waits, counts(graphs)[1] - uploads))
    assert found[1:] == [(0, 2)] * 3


def test_a_batch_beyond_the_capacity_is_computed_without_the_graph(graphs):
    wanted = state_after(trainer("cuda"), STEPS)
    small = trainer("cuda")
    assert small.graph.layout.rows[2] > 1
    small.graph.layout.rows[2] = 1
    found = state_after(small, STEPS)
    assert small.graph.calls == 0
    assert_same_state(found, wanted, rtol=1e-4, atol=2e-4)
    between = trainer("cuda")
    load, calls = between.graph.layout.load, []
    between.graph.layout.load = lambda masks: calls.append(load(masks)) or len(calls) not in (2, 5)
    assert_same_state(state_after(between, STEPS + 3), state_after(trainer("cuda"), STEPS + 3), rtol=1e-4, atol=2e-4)
    assert len(calls) == STEPS + 3 and between.graph.graph
    for i in (0, 1, 3):
        full = trainer("cuda")
        masks = full.batch(0)[1]
        assert full.graph.layout.load(masks)
        full.graph.layout.rows[i] = 10
        assert not full.graph.layout.load(masks)


def test_where_nothing_can_be_recorded_steps_are_launched_one_by_one(graphs, monkeypatch, capsys):
    wanted = state_after(trainer("cuda"), STEPS)
    monkeypatch.setattr(cublas, "load_library", no_cublas)  # so that CuPy's products do, which can't be recorded
    monkeypatch.setattr(cublas, "_handles", {})
    t = trainer("cuda")
    capsys.readouterr()
    found = state_after(t, STEPS)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "cuBLAS can't be used (none was found); using CuPy's own products"
    assert said[1].startswith("no CUDA graph, so steps are slower: ") and len(said) == 2
    assert t.graph.graph is None
    assert_same_state(found, wanted, rtol=1e-4, atol=2e-4)


def test_networks_that_the_kernels_do_not_take_have_no_graph(graphs, monkeypatch):
    """Not aligned, some steps would run as array code, with lists of rows that are made on the host for each batch."""
    assert trainer("cuda").graph and trainer("cuda", mlp_ratio=3.9).graph is None
    assert trainer("cuda", encoder_num_heads=8).graph is None  # heads of 2
    monkeypatch.setattr(launcher, "enabled", False)
    assert trainer("cuda").graph is trainer("cpu").graph is None
