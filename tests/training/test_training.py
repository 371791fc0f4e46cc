"""Training: lanes and threads, the step, run folders, resuming, and the command line."""

import copy
import functools
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, assert_same_run, before_step, begun, finish, write_cifar
from tiny import NETWORK, command, differentiate, flags, raising, refusal

import train
from minijepa import IJEPA, Config, MultiBlockMasker, Parameter, Tensor, data
from minijepa.backend import threads
from minijepa.data import cifar10, load_dataset
from minijepa.errors import ConfigError, TapeError, TrainingError
from minijepa.evaluation import gallery
from minijepa.evaluation.monitors import Monitors
from minijepa.pictures import masks_picture
from minijepa.training import checkpoint, lock, metrics
from minijepa.training import clock as clock_module
from minijepa.training import run as run_module
from minijepa.training.clock import Clock, duration
from minijepa.training.lanes import Lanes, LeanTape, chunks_of
from minijepa.training.metrics import COLUMNS, PICTURED, read_metrics
from minijepa.training.run import Run
from minijepa.training.trainer import Trainer

SETTINGS = NETWORK | dict(batch_size=20, epochs=3, warmup_epochs=1, augment_flip=True, augment_crop=4, knn_every=2)


@pytest.fixture
def dataset(cifar_folder):
    return load_dataset("cifar10", cifar_folder)


def arguments(folder, run, **changes):
    places = [f"--data-dir={folder}", f"--run-dir={run}"]
    return ["--device=cpu", *places, "--threads=1", *flags(SETTINGS | changes)]


def resume(folder, run, *more):
    return ["--resume", "--device=cpu", f"--data-dir={folder}", f"--run-dir={run}", *more]


def train_cli(capsys, *args):
    """(exit status, stdout, stderr) of train.py."""
    return command(capsys, train.main, *args)


def trainer_of(dataset, threads=1, **changes):
    return Trainer(Config(**SETTINGS | changes), dataset, threads=threads)


# ---------------------------------------------------------------------------------------------------------------- lanes


def batch(model, size=150, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.standard_normal((size, 3, 32, 32)).astype(model.dtype)
    return images, MultiBlockMasker().sample(size, draw)


@pytest.mark.parametrize("processes", [True, False])
def test_every_number_of_workers_gives_the_same_bits(monkeypatch, processes):
    monkeypatch.setattr("minijepa.training.lanes.CAN_FORK", processes)
    model = IJEPA(Config(**NETWORK), seed=1)
    images, masks = batch(model)  # 10 chunks, so that lanes hold one or two
    results = []
    for workers in (1, 2, 3, 9):
        loss = Lanes(model, workers).gradients(images, masks)
        results.append((loss, model.flat.grad.copy()))
    for result in results[1:]:
        np.testing.assert_equal(result, results[0])


def test_workers_end_with_their_lanes_before_the_garbage_collector_comes():
    model = IJEPA(Config(**NETWORK))
    lanes = Lanes(model, 2)
    lanes.gradients(*batch(model, 40))
    end = lanes.map.__self__.end
    gc.disable()
    try:
        del lanes
        assert not end.alive
    finally:
        gc.enable()


def test_a_model_that_is_changed_before_its_first_batch_is_the_one_that_all_workers_train():
    losses = []
    for workers in (1, 3):
        model = IJEPA(Config(**NETWORK))
        lanes, distance = Lanes(model, workers), model.distance
        model.distance = lambda *args, distance=distance: distance(*args) * 2
        losses.append(lanes.gradients(*batch(model)))
    assert losses[0] == losses[1]


def test_a_run_uses_no_more_threads_than_it_is_told(tmp_path, capsys, monkeypatch):
    """Its monitors too: the kNN of 150 images is computed in two parts."""
    folder = write_cifar(tmp_path, 60, 20)
    monkeypatch.setattr(threads, "threading", SimpleNamespace(Thread=raising(AssertionError("a second thread"))))
    args = arguments(folder, tmp_path / "run", val_size=150, epochs=1, warmup_epochs=0)
    assert train_cli(capsys, *args)[0] == 0
    with pytest.raises(AssertionError, match="a second thread"):
        train_cli(capsys, *arguments(folder, tmp_path / "two", val_size=150), "--threads=2")


@pytest.mark.parametrize("size", [1, 16, 17, 150])
def test_lanes_add_up_to_the_batch(size):
    model = IJEPA(Config(**NETWORK), seed=1, dtype=np.float64)
    images, masks = batch(model, size)
    whole = differentiate(lambda: model.loss(images, masks))
    wanted = model.flat.grad.copy()
    model.flat.grad[...] = 7  # its old content must not matter
    lanes = Lanes(model, 2)
    assert lanes.gradients(images, masks) == pytest.approx(whole.item(), rel=1e-12)
    np.testing.assert_allclose(model.flat.grad, wanted, atol=1e-12 * np.abs(wanted).max())
    assert lanes.reached == set(model.flat.parameters)


def test_after_an_error_in_a_lane_nobody_writes_gradients_any_more(monkeypatch):
    """The caller may go on, with the same Lanes or with others: their gradients must be their own."""
    monkeypatch.setattr("minijepa.training.lanes.CAN_FORK", False)
    model = IJEPA(Config(**NETWORK))
    lanes = Lanes(model, 3)
    images, masks = batch(model)
    lanes.gradients(images, masks)
    wanted, targets, calls = model.flat.grad.copy(), model.targets_of, iter(range(100))

    def failing(*args):
        if next(calls) == 1:
            raise ZeroDivisionError
        time.sleep(0.005)
        return targets(*args)

    monkeypatch.setattr(model, "targets_of", failing)
    with pytest.raises(ZeroDivisionError):
        lanes.gradients(images, masks)
    monkeypatch.undo()
    lanes.gradients(images, masks)
    np.testing.assert_array_equal(model.flat.grad, wanted)


def test_chunks_take_every_image_once_and_about_the_same_time():
    for size, count in ((1, 1), (16, 1), (17, 2), (64, 4), (256, 8), (1000, 32)):
        lengths = np.random.default_rng(size).integers(4, 50, size)
        chunks = chunks_of(lengths)
        assert len(chunks) == count and sorted(np.concatenate(chunks)) == list(range(size))
        work = [lengths[chunk].sum() for chunk in chunks]
        assert max(work) < 1.15 * min(work) or size == 17


def test_a_lean_tape_frees_what_no_operation_saved():
    x = Parameter(np.arange(6.0))
    with LeanTape() as tape:
        y = x + 1
        freed = weakref.ref(y.data)
        for _ in range(3):  # later tensors may take the place of earlier ones in memory
            y = y + 1
        assert freed() is None
        loss = (y * y).sum()
    with pytest.raises(TapeError, match="is not on this tape"):
        tape.backward(Tensor([1.0]))
    tape.backward(loss)
    np.testing.assert_array_equal(x.grad, 2 * (x.data + 4))


# ------------------------------------------------------------------------------------------------------------- the step


def test_a_step_is_the_specifications_section_8(dataset):
    """Masks, targets, predictions, loss, backward, AdamW at the schedule's rate, then the EMA with the new weights."""
    trainer = trainer_of(dataset, epochs=6, warmup_epochs=2, weight_decay=0.3, adam_beta2=0.95, adam_eps=1e-6)
    config, model = trainer.config, trainer.model
    decayed = np.concatenate([np.full(p.size, p.decay) for p in model.flat.parameters.values()])
    m = v = 0.0
    for t, step in enumerate((0, 1, 2), start=1):
        before, target_before = model.flat.data.astype(float), model.target_flat.data.astype(float)
        images, masks = trainer.batch(step)
        model.zero_grad()
        loss = differentiate(lambda images=images, masks=masks: model.loss(images, masks))
        g = model.flat.grad.astype(float)
        row = trainer.train_step(step)

        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(np.sqrt((g**2).sum()), rel=1e-4)
        assert row["context_tokens"] == masks.context_lengths.mean()
        assert row["target_tokens"] == masks.target_lengths.sum(axis=1).mean()
        rate = config.base_lr * (step + 1) / (2 * trainer.steps_per_epoch + 1)  # still warming up
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        wanted = before * (1 - rate * 0.3 * decayed)
        wanted -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        np.testing.assert_allclose(model.flat.data, wanted, rtol=2e-6, atol=2e-3 * rate)
        momentum = trainer.momentum(step)
        wanted = momentum * target_before + (1 - momentum) * model.flat.data[: model.encoder_size]
        np.testing.assert_allclose(model.target_flat.data, wanted, rtol=1e-6, atol=1e-8)


def test_an_epoch_sees_every_image_once_and_the_next_in_another_order(dataset):
    trainer = trainer_of(dataset, augment_flip=False, augment_crop=0)
    assert (trainer.steps_per_epoch, trainer.total_steps) == (4, 12)
    epochs = [np.concatenate([trainer.batch(4 * e + i)[0] for i in range(4)]) for e in range(2)]
    keys = [[image.tobytes() for image in epoch] for epoch in epochs]
    assert len(set(keys[0])) == 80 and set(keys[0]) == set(keys[1]) and keys[0] != keys[1]


def test_a_batch_is_augmented_as_the_settings_say(dataset):
    def first_batch(augment_flip=False, augment_crop=0):
        return trainer_of(dataset, augment_flip=augment_flip, augment_crop=augment_crop).batch(0)[0]

    plain, flipped, shifted = first_batch(), first_batch(augment_flip=True), first_batch(augment_crop=4)
    same, mirrored = ((flipped == x).all(axis=(1, 2, 3)) for x in (plain, plain[..., ::-1]))
    assert (same | mirrored).all() and same.any() and mirrored.any()
    assert (shifted != plain).any(axis=(1, 2, 3)).mean() > 0.8


def test_a_short_last_batch_is_dropped_unless_the_set_is_smaller_than_a_batch(dataset):
    assert trainer_of(dataset, batch_size=30).steps_per_epoch == 2
    small = trainer_of(dataset, batch_size=300)
    assert (small.steps_per_epoch, small.batch_size) == (1, 80)


def test_held_back_images_are_not_trained_on(dataset):
    trainer = trainer_of(dataset, val_size=10, max_train_images=50)
    assert len(trainer.images) == 50
    held_back = {image.tobytes() for image in trainer.monitors.queries}
    assert len(held_back) == 10
    assert not held_back & {image.tobytes() for image in trainer.images}


@pytest.mark.parametrize(("lr", "words"), [(1e300, "step 0 made weights that are not finite"), (1e38, "contain NaN")])
def test_a_run_that_diverged_is_not_saved(cifar_folder, tmp_path, capsys, lr, words):
    """The loss of the only step is finite; what the step does to the weights is not."""
    args = arguments(cifar_folder, tmp_path / "run", batch_size=80, base_lr=lr, warmup_epochs=0, knn_every=0)
    status, _, err = train_cli(capsys, *args)
    assert status == 1 and err.count("\n") == 1
    assert words in err and "try a lower --lr" in err and "run/checkpoint.npz is of step 0, before that" in err
    about, arrays = checkpoint.read(tmp_path / "run")
    assert about["step"] == 0 and all(np.isfinite(values).all() for values in arrays.values())


def test_training_that_goes_wrong_names_the_checkpoint_that_is_left(cifar_folder, tmp_path, capsys, monkeypatch):
    before_step(monkeypatch, 5, lambda trainer: trainer.model.flat.data.fill(np.nan))  # the second of the second epoch
    for make in (arguments, resume):
        status, _, err = train_cli(capsys, *make(cifar_folder, tmp_path / "run"))
        assert status == 1 and err.count("\n") == 1
        assert "step 5: the loss is nan" in err and "run/checkpoint.npz is of step 4, before that" in err
    assert checkpoint.read(tmp_path / "run")[0]["step"] == 4


def test_an_interrupted_run_that_diverged_is_not_saved(dataset, tmp_path):
    run = begun(tmp_path / "run", trainer_of(dataset))
    run.trainer.model.flat.data[3] = np.inf
    with pytest.raises(TrainingError, match="weights that are not finite"):
        run.save()
    assert np.isfinite(checkpoint.read(run.folder)[1]["model/context_encoder.pos_embed"]).all()


def test_a_parameter_without_gradient_is_an_error_at_the_first_step(dataset):
    trainer = trainer_of(dataset)
    names = {*trainer.model.flat.parameters} - {"predictor.mask_token"}
    trainer.lanes.gradients = lambda *_: trainer.lanes.reached.update(names) or 1.0
    with pytest.raises(TrainingError, match=r"1 parameter received no gradient, such as predictor\.mask_token"):
        trainer.train_step(0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "make",
    [Parameter, lambda x: Tensor(x, requires_grad=True), lambda x: Parameter(x, name="context_encoder.norm.weight")],
    ids=["parameter", "tensor", "of another layer's name"],
)
def test_a_parameter_that_the_model_does_not_have_is_an_error_at_the_first_step(dataset, make, threads):
    trainer = trainer_of(dataset, threads=threads)
    norm, scale = trainer.model.context_encoder.norm, make(np.ones(trainer.config.encoder_embed_dim, np.float32))
    trainer.model.context_encoder.norm = lambda x: norm(x) * scale
    with pytest.raises(TrainingError, match="a parameter outside of the model's flat vector received a gradient"):
        trainer.train_step(0)


def test_a_step_that_failed_can_be_repeated(dataset):
    one, other = trainer_of(dataset), trainer_of(dataset)
    gradients, one.lanes.gradients = one.lanes.gradients, raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        one.train_step(0)
    one.lanes.gradients = gradients
    for trainer in (one, other):
        trainer.train_step(0)
    assert one.optimizer.steps == other.optimizer.steps == 1
    np.testing.assert_array_equal(one.model.flat.data, other.model.flat.data)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_a_trainer_is_not_copied(dataset, duplicate):
    with pytest.raises(TrainingError, match=r"a Trainer can't be copied.*copy trainer\.model"):
        duplicate(trainer_of(dataset))


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (89, "89 s"), (91, "2 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("device", "steps", "text", "hint"),
    [
        ("cpu", 36_000, "about 20.0 h for 36,000 more steps", True),
        ("cuda", 36_000, "about 20.0 h for 36,000 more steps", False),
        ("cpu", 300, "about 10 min for 300 more steps", False),
    ],
)
def test_the_time_is_estimated_once_without_the_first_step_and_hours_on_a_cpu_name_laptop(
    monkeypatch, device, steps, text, hint
):
    now, said, progress = [0.0], [], checkpoint.Progress()
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    waits = []
    trainer = SimpleNamespace(device=device, total_steps=steps, progress=progress, read=lambda: waits.append(now[0]))
    clock = Clock(trainer)
    trainer.total_steps += clock.seen
    for seconds in (60, *[2] * (clock.seen + 2)):
        now[0] += seconds
        progress.step += 1
        clock.tick(said.append)
    assert len(said) == 1 and said[0].startswith(text)
    assert ("--preset laptop" in said[0]) == hint
    assert len(waits) == 2  # so that on a GPU both times are the card's


# ---------------------------------------------------------------------------------------------- run folders, resuming


def stop_at(monkeypatch, steps, number=signal.SIGINT):
    """This process receives a signal during a run's step of that number, so that as many are made."""
    before_step(monkeypatch, steps - 1, lambda trainer: os.kill(os.getpid(), number))


def test_a_run_that_was_interrupted_and_resumed_is_the_same_bit_for_bit(cifar_folder, tmp_path, monkeypatch, capsys):
    assert train_cli(capsys, *arguments(cifar_folder, tmp_path / "whole"))[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 6)  # in the middle of the second epoch
        status, out, _ = train_cli(capsys, *arguments(cifar_folder, tmp_path / "broken"))
    assert status == 128 + signal.SIGINT
    assert f"python train.py --run-dir {tmp_path / 'broken'} --resume" in out
    assert checkpoint.read(tmp_path / "broken")[0]["step"] == 6
    for steps, number in ((10, signal.SIGTERM), (11, signal.SIGHUP)):
        with monkeypatch.context() as patch:
            stop_at(patch, steps, number)
            assert train_cli(capsys, *resume(cifar_folder, tmp_path / "broken"))[0] == 128 + number
    assert train_cli(capsys, *resume(cifar_folder, tmp_path / "broken", "--threads=2"))[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_folder(cifar_folder, tmp_path, capsys):
    run = tmp_path / "runs" / "first"
    status, out, _ = train_cli(capsys, *arguments(cifar_folder, run, keep_every=2, val_size=20))
    assert status == 0
    assert "60 images, 3 epochs of 3 steps" in out and "on cpu with 1 worker" in out
    assert "s for 3 more steps" in out  # the estimate
    assert f"{run}/ holds report.html" in out and f"python probe.py {run} --data-dir {cifar_folder}\n" in out
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.csv", "steps.csv", "report.html", "checkpoint.npz", "checkpoint-previous.npz",
        "checkpoint-0002.npz", "curves.png", "masks.png", "neighbours.png", "pca.png", "predictions.png",
    }  # fmt: skip
    about = json.loads((run / "config.json").read_text())
    assert (about["preset"], about["dataset"], about["config"]["keep_every"]) == ("cifar10", "cifar10", 2)
    rows = read_metrics(run)
    assert tuple(rows[0]) == tuple(COLUMNS) and [r["epoch"] for r in rows] == ["1", "2", "3"]
    assert [bool(r["knn"]) for r in rows] == [False, True, True]  # every second epoch, and the last
    assert float(rows[2]["lr"]) == pytest.approx(1e-5) and float(rows[2]["ema_momentum"]) == 1.0
    for row in rows:
        assert float(row["loss_per_dim"]) == pytest.approx(float(row["loss"]) / 16, rel=1e-4)
        assert all(np.isfinite(float(v)) for k, v in row.items() if v)
    assert checkpoint.read(run / "checkpoint-0002.npz")[0]["step"] == 6


@pytest.fixture
def written(monkeypatch):
    """{file: after which steps it was written}, of the checkpoint and of the curves."""
    monkeypatch.setattr(run_module, "PAUSE", 3600)
    found, save, draw = {"checkpoint": [], "curves": []}, checkpoint.save, run_module.draw_curves

    def noted_save(path, model, optimizer, progress, data):
        found["checkpoint"].append(progress.step)
        save(path, model, optimizer, progress, data)

    def noted_draw(folder, rows):
        found["curves"].append(int(rows[-1]["step"]))
        assert len(read_metrics(folder)) == len(rows)
        assert len(metrics.curves_of(folder, rows).fine["learning rate"][0]) == int(rows[-1]["step"])
        draw(folder, rows)

    monkeypatch.setattr(checkpoint, "save", noted_save)
    monkeypatch.setattr(run_module, "draw_curves", noted_draw)
    return found


@pytest.mark.parametrize("pause, every, saved, drawn", [
    (0, 0, [0, 4, 8, 12], [4, 8, 12]), (3600, 0, [0, 4, 12], [4, 12]), (3600, 2, [0, 4, 8, 12], [4, 8, 12]),
])  # fmt: skip
def test_short_epochs_are_not_all_saved_and_drawn(
    cifar_folder, tmp_path, capsys, monkeypatch, written, pause, every, saved, drawn
):
    """But the first is, and the last, and those whose checkpoints are kept."""
    monkeypatch.setattr(run_module, "PAUSE", pause)
    assert train_cli(capsys, *arguments(cifar_folder, tmp_path / "run", keep_every=every))[0] == 0
    assert written == {"checkpoint": saved, "curves": drawn}
    assert len(finish(tmp_path / "run")[2]) == 3


@pytest.mark.parametrize("steps, saved, drawn", [
    (4, [0, 4], [4]), (8, [0, 4, 8], [4, 8]), (10, [0, 4, 10], [4, 8]), (12, [0, 4, 12], [4, 12]),
])  # fmt: skip
def test_a_run_that_is_stopped_is_saved_and_drawn_once_and_after_the_last_step_is_done(
    cifar_folder, tmp_path, capsys, written, monkeypatch, steps, saved, drawn
):
    """At the end of an epoch that is saved anyway, of one that is not, within one, and at the last step."""
    stop_at(monkeypatch, steps)
    status, out, _ = train_cli(capsys, *arguments(cifar_folder, tmp_path / "run"))
    assert status == (0 if steps == 12 else 130)
    assert ("done: " in out, "interrupted" in out) == (steps == 12, steps < 12)
    assert written == {"checkpoint": saved, "curves": drawn}
    files = "checkpoint-previous.npz", "checkpoint.npz"
    assert [checkpoint.read(tmp_path / "run" / name)[0]["step"] for name in files] == saved[-2:]


def test_a_run_that_goes_wrong_soon_after_a_checkpoint_is_drawn_and_goes_on_from_there(
    cifar_folder, tmp_path, capsys, written
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_cli(capsys, *arguments(cifar_folder, whole))[0] == 0
    written.update(checkpoint=[], curves=[])
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 9, lambda trainer: trainer.model.flat.data.fill(np.nan))
        status, _, err = train_cli(capsys, *arguments(cifar_folder, broken))
    assert status == 1 and "step 9: the loss is nan" in err and "checkpoint.npz is of step 4, before that" in err
    assert written == {"checkpoint": [0, 4], "curves": [4, 8]} and len(read_metrics(broken)) == 2
    assert train_cli(capsys, *resume(cifar_folder, broken))[0] == 0
    assert_same_run(broken, whole)


def test_the_pictures_come_after_the_last_checkpoint_and_do_not_fail_in_silence(cifar_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery.pictures, "pca_picture", raising(OSError(28, "No space left on device", "pca.png")))
    assert train.main(arguments(cifar_folder, tmp_path / "run")) == 2
    assert checkpoint.read(tmp_path / "run")[0]["step"] == 12
    assert (tmp_path / "run" / "neighbours.png").exists() and not (tmp_path / "run" / "predictions.png").exists()
    monkeypatch.undo()
    assert train.main(resume(cifar_folder, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "predictions.png").exists()


def test_a_collapse_is_reported_once_an_epoch_with_its_numbers(cifar_folder, tmp_path, capsys, monkeypatch):
    found = {"feature_std": 0.2, "rank_me": 1.5, "content_r2": 0.125}
    monkeypatch.setattr(Monitors, "collapse", lambda self: found)
    status, out, _ = train_cli(capsys, *arguments(cifar_folder, tmp_path / "run"))
    warnings = [line for line in out.splitlines() if line.startswith("warning: the features are collapsing")]
    assert status == 0 and len(warnings) == len(finish(tmp_path / "run")[2])
    assert "(deviation 0.200, RankMe 1.5, content R² +0.125): try target_norm=layer_norm" in warnings[0]


def test_the_masks_shown_are_drawn_like_those_of_the_first_step(dataset, tmp_path):
    trainer = trainer_of(dataset, batch_size=PICTURED, seed=3)
    Run(tmp_path / "run", trainer).create({})
    _, masks = trainer.batch(0)
    masks_picture(dataset.train_images[:PICTURED], masks, 4, tmp_path / "wanted.png")
    assert (tmp_path / "run" / "masks.png").read_bytes() == (tmp_path / "wanted.png").read_bytes()


def test_a_run_on_a_single_image_has_no_knn(cifar_folder, tmp_path, capsys):
    status, out, _ = train_cli(capsys, *arguments(cifar_folder, tmp_path / "run", max_train_images=1, knn_every=1))
    assert status == 0 and "kNN" not in out
    assert [row["knn"] for row in finish(tmp_path / "run")[2]] == ["", "", ""]
    assert "warning" not in out  # the features of one image allow no judgement


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lr=-1"], "base_lr must be above 0"),
        (["--threads=0"], "--threads must be at least 1"),
        (["--set", "epochs"], "KEY=VALUE"),
        (["--epochs", "9" * 400], "epochs must be a whole number"),
        (["--threads=1025"], "--threads must be at least 1 and at most 1024"),
        (["--set=image_size=64"], "image_size is 64, but cifar10 has images of 32×32"),
        (["--set=val_size=80"], "val_size"),
        (["--epochs=3", "--set", "epochs=2"], "epochs is given twice, by --epochs 3 and --set epochs=2: leave one out"),
        (["--lr=1", "--set=base_lr=1"], "base_lr is given twice, by --lr 1 and --set base_lr=1"),
        (["--set=epochs=3", "--set", " epochs = 2"], "epochs is given twice, by --set epochs=3 and --set  epochs = 2"),
        (["--batch-size=9", "--set=batch_size=9"], "batch_size is given twice"),
        (["--seed=1", "--set=seed=2"], "seed is given twice"),
        (["--resume"], "no run at"),
        (["--resume", "--epochs=5"], "--resume continues with the run's own settings"),
    ],
)
def test_bad_input_is_one_line_with_status_2_and_leaves_nothing(cifar_folder, tmp_path, capsys, args, words):
    run = tmp_path / "run"
    status, _, err = train_cli(capsys, "--device=cpu", f"--data-dir={cifar_folder}", f"--run-dir={run}", *args)
    assert status == 2 and words in err and err.startswith("train.py: ") and err.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("flag", ["--data-dir=--", "--set=--", "--run-dir=--"])
def test_two_hyphens_are_not_a_value(capsys, flag):
    status, _, err = train_cli(capsys, flag)
    assert status == 2 and err.endswith(f"train.py: error: {flag}: -- is not a value\n")


@pytest.mark.parametrize("flag", ["--data-dir=", "--run-dir="])
def test_an_empty_path_is_not_the_current_folder(capsys, flag):
    status, _, err = train_cli(capsys, flag)
    assert status == 2 and err.endswith(f"train.py: error: argument {flag[:-1]}: the path is empty\n")


def test_resume_needs_the_runs_folder(capsys):
    assert "--resume needs the run's folder" in refusal(capsys, train.main, "--resume")


def test_a_run_folder_that_came_in_between_is_not_overwritten(dataset, tmp_path, monkeypatch):
    """Of two runs that start at once, the second finds the first's folder when it wants to name its own."""
    first, second = (Run(tmp_path / "run", trainer_of(dataset)) for _ in range(2))
    picture = metrics.masks_picture

    def meanwhile(*args):
        monkeypatch.setattr(metrics, "masks_picture", picture)
        first.create({"first": True})
        picture(*args)

    monkeypatch.setattr(metrics, "masks_picture", meanwhile)
    with pytest.raises(ConfigError, match="exists: go on with --resume"):
        second.create({"first": False})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["first"] is True
    assert [p.name for p in tmp_path.iterdir() if p.name != "data"] == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), SystemExit(143)])
def test_a_run_folder_is_whole_or_not_there(dataset, tmp_path, monkeypatch, error):
    monkeypatch.setattr(metrics, "masks_picture", raising(error))
    with pytest.raises((type(error), ConfigError)):
        Run(tmp_path / "new" / "runs" / "a", trainer_of(dataset)).create({})
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.fixture
def stopped(cifar_folder, tmp_path):
    """A run that was stopped before its first step."""
    return begun(tmp_path / "run", trainer_of(load_dataset("cifar10", cifar_folder)), "cifar10").folder


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "[]", "lacks the run's config or dataset"),
        ("config.json", '{"config": {}, "dataset": []}', "lacks the run's config or dataset"),
        ("config.json", '{"config": "", "dataset": {}}', "lacks the run's config or dataset"),
        ("config.json", '{"config": {}, "dataset": "x", "precision": ["tf32"]}', "has an unknown precision"),
        ("config.json", "{", "is not JSON"),
        ("config.json", None, "config.json: No such file"),
        ("metrics.csv", None, "metrics.csv can't be read (No such file"),
        ("metrics.csv", b"\xff\xfe\x00", "metrics.csv can't be read"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv does not have the columns"),
        ("checkpoint.npz", "?", "is not an intact minijepa checkpoint"),
        ("checkpoint.npz", None, "no checkpoint at"),
        ("config.json", "a pipe", "config.json: it is not a plain file"),
        ("metrics.csv", "a pipe", "metrics.csv can't be read (it is not a plain file)"),
        ("checkpoint.npz", "a pipe", "checkpoint.npz can't be read: it is not a plain file"),
    ],
)
def test_a_damaged_run_folder_is_one_line(stopped, cifar_folder, capsys, file, content, words):
    if content in (None, "a pipe"):
        (stopped / file).unlink()
        if content:
            os.mkfifo(stopped / file)
    else:
        (stopped / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refusal(capsys, train.main, *resume(cifar_folder, stopped))


def test_resuming_with_an_edited_config_or_other_images_is_refused(stopped, cifar_folder, tmp_path, capsys):
    other = write_cifar(tmp_path / "other", 16, 20, spread=9)
    assert "was written with crc32" in refusal(capsys, train.main, *resume(other, stopped))
    config = stopped / "config.json"
    config.write_text(config.read_text().replace('"epochs": 3', '"epochs": 4'))
    assert "was written with epochs 3, not 4" in refusal(capsys, train.main, *resume(cifar_folder, stopped))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PermissionError(13, "Permission denied", "runs/a/metrics.csv"), 2, "runs/a/metrics.csv: Permission denied"),
        (PermissionError(13, "Permission denied", "a\nb"), 2, "a b: Permission denied"),
        (MemoryError("of 9 GB"), 2, "out of memory (of 9 GB): lower batch_size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TrainingError("step 3: the loss is nan"), 1, "step 3: the loss is nan"),
    ],
    ids=["disk", "a name of two lines", "memory", "ctrl-c", "training"],
)
def test_an_error_that_ends_a_program_is_one_line(monkeypatch, capsys, error, status, words):
    monkeypatch.setattr(train, "prepare", raising(error))
    found, out, err = train_cli(capsys)
    assert (found, out) == (status, "") and err.startswith(f"train.py: {words}") and err.count("\n") == 1


def test_a_reader_who_leaves_does_not_stop_the_run(cifar_folder, tmp_path):
    """python train.py | head -1, from any folder."""
    command = [sys.executable, ROOT / "train.py", *arguments(cifar_folder, tmp_path / "run")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    with process.stderr:
        assert "Traceback" not in process.stderr.read()
    assert process.wait(60) == 0
    assert len(finish(tmp_path / "run")[2]) == 3


def test_speed_and_estimate_count_training_alone(dataset, monkeypatch):
    """Time that passes between epochs (evaluation) is in no epoch's speed, nor in the estimate."""
    now, said = [0.0], []
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock(trainer_of(dataset))
    for _ in range(2):
        for _ in range(4):
            now[0] += 0.5
            clock.tick(said.append)
        assert clock.images_per_s() == pytest.approx(40) and clock.seconds() == pytest.approx(2)
        now[0] += 100
        clock.start_epoch()
    assert said == ["about 6 s for 12 more steps, without evaluations"]  # progress is the loop's to count


def test_no_data_names_both_remedies(tmp_path, capsys, monkeypatch):
    download = functools.partial(cifar10.download_cifar10, url="http://127.0.0.1:9/nothing")
    monkeypatch.setattr(data, "download_cifar10", download)
    err = refusal(capsys, train.main, f"--data-dir={tmp_path}", f"--run-dir={tmp_path / 'run'}", "--device=cpu")
    assert "--dataset shapes" in err and f"into {tmp_path}" in err


def test_smoke_takes_the_built_in_shapes_only_where_there_is_no_cifar10(tmp_path, capsys):
    for data_dir, dataset in ((tmp_path, "shapes"), (write_cifar(tmp_path / "cifar", 16, 20), "cifar10")):
        args = arguments(data_dir, tmp_path / dataset, max_train_images=64, epochs=2)
        status, out, _ = train_cli(capsys, "--preset=smoke", *args)
        said = f"no CIFAR-10 in {tmp_path}/: the smoke run uses the built-in shapes instead" in out
        assert status == 0 and said == (dataset == "shapes")
        assert json.loads((tmp_path / dataset / "config.json").read_text())["dataset"] == dataset


@pytest.mark.parametrize(
    ("row", "words"),
    [("1,4,", None), ("", "it lacks rows of the 1 epoch done")]
    + [(row, "its row 1 is not that of epoch 1") for row in ("1.0,4,", ",4,", "2,4,", "1,4x,", "1,,", "1,4,,")],
)
def test_metrics_that_are_damaged_are_one_line(tmp_path, row, words):
    row = row and row + ",".join("0.1" for _ in COLUMNS[row.count(",") :])
    (tmp_path / "metrics.csv").write_text(f"{','.join(COLUMNS)}\n{row}")
    if words is None:
        assert len(read_metrics(tmp_path, 1)) == 1
        return
    with pytest.raises(ConfigError, match=rf"metrics\.csv is damaged: {words}$"):
        read_metrics(tmp_path, 1)


@pytest.mark.parametrize("moment", ["_keep", "draw_curves"])
def test_resuming_finishes_what_a_kill_after_the_checkpoint_left_undone(
    cifar_folder, tmp_path, capsys, monkeypatch, moment
):
    run = tmp_path / "run"

    with monkeypatch.context() as patch:
        patch.setattr(Run if moment == "_keep" else run_module, moment, raising(SystemExit(9)))
        assert train_cli(capsys, *arguments(cifar_folder, run), "--set=keep_every=1")[0] == 9
    assert checkpoint.read(run)[0]["step"] == 4
    train_cli(capsys, *resume(cifar_folder, run))
    names = {p.name for p in run.iterdir()}
    assert {"checkpoint-0001.npz", "checkpoint-0002.npz", "checkpoint-0003.npz", "curves.png"} <= names
    assert checkpoint.read(run / "checkpoint-0001.npz")[0]["step"] == 4


def test_a_file_system_without_locks_does_not_keep_anybody_from_training(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", raising(OSError(38, "Function not implemented")))
    Run(tmp_path / "run", trainer_of(dataset)).create({})


def test_a_file_in_the_way_of_the_run_folder_is_not_called_a_run(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't make the run folder"):
        Run(tmp_path / "file" / "run", trainer_of(dataset)).create({})
