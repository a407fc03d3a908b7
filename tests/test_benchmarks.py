import csv
import importlib
import itertools
import math
import re
from collections import namedtuple
from dataclasses import make_dataclass, replace

import keras
import numpy as np
import pytest
from scripts import ROOT, run

import keras_lp

pytestmark = pytest.mark.every_backend
BENCHMARKS = ROOT / "benchmarks"

on_tensorflow = pytest.mark.backend("tensorflow")
on_tensorflow_and_jax = pytest.mark.backend("tensorflow", "jax")


@pytest.fixture
def load(monkeypatch):
    """A function that imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def steps_in_numpy(weights, gradients, count, learning_rate, weight_decay, p):
    """LpAdamW in float64; matrices are decayed."""
    weights = [weight.astype("float64") for weight in weights]
    moments = [(np.zeros_like(weight), np.zeros_like(weight)) for weight in weights]
    for step in range(1, count + 1):
        rate = learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for weight, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            strength = learning_rate * weight_decay * (weight.ndim >= 2)
            divisor = 1 + strength * abs(weight) ** (p - 2) if strength else 1
            weight[...] = (weight - rate * first / (np.sqrt(second) + 1e-7)) / divisor
    return weights


LEARNING_RATE, WEIGHT_DECAY, P = 1e-2, 0.5, 0.8


def callback_steps(stepping, model, gradients):
    callback = keras_lp.LpDecayCallback(WEIGHT_DECAY, p=P)
    steps = stepping.steps_with_callback(callback, keras.optimizers.Adam(LEARNING_RATE), model)
    for _ in range(3):
        steps.run()


def compiled_steps(stepping, model, gradients):
    optimizer, variables = keras_lp.LpAdamW(LEARNING_RATE, WEIGHT_DECAY, p=P), model.weights
    if keras.backend.backend() == "jax":
        optimizer.build(variables)
        # As on an accelerator, where they are compiled into one call.
        three_steps, put_back, _ = stepping._steps_in_jax(optimizer, variables, gradients, 3)
        three_steps()
        put_back()
    else:
        steps = stepping.steps_of_optimizer(optimizer, model)
        for _ in range(3):
            steps.run()


@on_tensorflow_and_jax
@pytest.mark.parametrize("make_steps", [callback_steps, compiled_steps])
def test_steps_of_the_benchmark_are_those_of_the_method(load, make_steps):
    stepping, model = load("stepping"), load("models").perceptron(8)
    before = model.get_weights()
    gradients = stepping.gradients_of(model.trainable_variables)
    make_steps(stepping, model, gradients)
    given = [keras.ops.convert_to_numpy(gradient) for gradient in gradients]
    expected = steps_in_numpy(before, given, 3, LEARNING_RATE, WEIGHT_DECAY, P)
    for found, weights in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, weights, atol=1e-6)


@on_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(("frequency", "choices", "xla"), [(1, 6, False), (3, 2, True)])
def test_steps_of_tfmot_are_counted_and_choose_masks_when_they_are_due(
    load, monkeypatch, frequency, choices, xla
):
    from tensorflow_model_optimization.sparsity import keras as api

    models, wrap = [], api.prune_low_magnitude
    monkeypatch.setattr(
        api, "prune_low_magnitude", lambda *given: models.append(wrap(*given)) or models[0]
    )
    model = load("models").perceptron(8)
    steps = load("stepping").steps_of_tfmot(model, frequency, xla=xla)
    layers = [layer for layer in models[0].layers if hasattr(layer, "pruning_obj")]
    thresholds = []
    for _ in range(6):
        steps.run()
        thresholds.append(float(layers[0].pruning_vars[0][2]))
    assert [int(layer.pruning_step) for layer in layers] == [6] * len(layers)
    # Its threshold is the least magnitude, which the step before has changed.
    assert len(set(thresholds)) in (choices, choices + 1)


@on_tensorflow_and_jax
def test_each_of_two_kinds_of_steps_follows_the_same_ones(load):
    log = []
    kinds = [load("stepping").Steps(lambda name=name: log.append(name)) for name in "fab"]
    first, seconds = load("step").in_turn(kinds, 100)
    assert (len(first), seconds.shape) == (3, (100, 3))
    turns = log[-300:]
    pairs = list(itertools.pairwise(turns))
    for kind, other in ("ab", "ba"):
        assert pairs.count((kind, kind)) == 0
        assert pairs.count(("f", kind)) == pairs.count((other, kind)) == 50


@on_tensorflow_and_jax
@pytest.mark.slow
def test_benchmark_of_steps_prints_its_table_and_writes_it(tmp_path):
    backend = keras.backend.backend()
    methods = ["LpAdamW, p = 0.8", "Adam and LpDecayCallback", "TF-MOT, masks kept"]
    options = ["--weights", "perceptron", "--turns", 2, "--no-whole-step", "--methods", *methods]
    printed = run(BENCHMARKS / "step.py", *options, cwd=tmp_path)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith(f"| {backend}")]
    # TF-MOT is for TensorFlow alone, and JAX has nothing without XLA.
    assert [row[2] for row in rows] == (methods * 2 if backend == "tensorflow" else methods[:2])
    with (tmp_path / f"step_{backend}.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["method"] for row in written] == [row[2] for row in rows]
    for row in written:
        assert float(row["turns"]) == 2
        assert float(row["low"]) <= float(row["ratio"]) <= float(row["high"])
        assert 0.5 < float(row["memory_ratio"]) < 3
        # Weights, two moments and gradients of 4,810 weights, at least.
        assert float(row["memory"]) > 4 * 4 * 4810 / 2**20


@on_tensorflow
@pytest.mark.slow
def test_quick_benchmark_of_steps_has_few_rows_and_no_memory(tmp_path):
    options = ["--quick", "--weights", "perceptron", "--turns", 2, "--output", "quick.csv"]
    printed = run(BENCHMARKS / "step.py", *options, cwd=tmp_path)
    assert printed.count("| perceptron |") == 8
    written = (tmp_path / "quick.csv").read_text()
    assert {row["memory"] for row in csv.DictReader(written.splitlines())} == {"nan"}
    run(BENCHMARKS / "step.py", *options, cwd=tmp_path)
    assert (tmp_path / "quick.csv").read_text() == written


@on_tensorflow_and_jax
def test_row_of_steps_holds_ratios_of_the_method_to_its_peer_and_to_the_floor(load):
    own, peer = np.array([2.0, 3.0, 4.0, 9.0, 6.0]), np.array([1.0, 2.0, 4.0, 3.0, 4.0])
    floor = np.array([1.0, 2.0, 3.0, 2.0, 2.0])
    seconds = np.stack([own, peer], axis=1)
    row = load("step").row_of(("jax", "some", "method"), [3.0, 2.0], seconds, floor)
    assert row.key == ("jax", "some", "method")
    assert row.milliseconds == 4000
    # The ratios are 2, 1.5, 1, 3 and 1.5.
    assert (row.low, row.ratio, row.high) == (1.5, 1.5, 2.0)
    # Weights, moments and gradients are read, and the first three written: seven for six.
    assert (row.floor, row.bandwidth) == (2.0, pytest.approx(7 / 6 / 2))
    assert (row.first, row.first_ratio, row.turns) == (3.0, 1.5, 5)


@on_tensorflow_and_jax
def test_row_of_few_turns_or_without_memory_is_measured_again_where_more_is_asked_for(load):
    row_of = load("step").row_of
    few, enough = (row_of(("", "", ""), [1, 1], np.ones((turns, 2))) for turns in (3, 20))
    assert [few.has(turns, memory=False) for turns in (2, 3, 4, 200)] == [True, True, False, False]
    assert [enough.has(turns, memory=False) for turns in (20, 200)] == [True, True]
    assert not enough.has(20, memory=True)
    assert replace(enough, memory=1.0).has(20, memory=True)


@pytest.mark.backend("torch")
def test_benchmark_of_steps_refuses_a_backend_without_compiled_steps(load, refusal):
    message = "KERAS_BACKEND must be tensorflow or jax, whose steps are compiled as a whole"
    assert message in refusal("step.py", [], load("step").main)


@pytest.mark.backend("jax")
def test_benchmark_of_steps_refuses_tfmot_where_there_is_no_tensorflow(load, refusal):
    arguments = ["--methods", "TF-MOT, masks kept"]
    assert "TF-MOT needs TensorFlow" in refusal("step.py", arguments, load("step").main)


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_sparse_files_prints_its_table(tmp_path):
    printed = run(ROOT / "benchmarks" / "sparse_file.py", "--repeats", 2, cwd=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith(("| mlp", "| cnn"))]
    assert len(rows) == 4
    for row in rows:
        dense, sparse = (int(cell.replace(",", "")) for cell in row.split("|")[3:5])
        assert sparse < 0.2 * dense


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_the_frontier_writes_runs_tables_and_pictures_and_runs_nothing_twice(tmp_path):
    methods = ["lp_adamw_0.8", "one_shot", "tfmot", "lp_target"]
    arguments = ["--quick", "--share", 0.1, "--methods", *methods, "--output", "runs.csv"]
    printed = run(BENCHMARKS / "frontier.py", *arguments, cwd=tmp_path)
    written = (tmp_path / "runs.csv").read_text()
    runs = list(csv.DictReader(written.splitlines()))
    assert [row["method"] for row in runs] == ["adamw", *(m for m in methods for _ in range(2))]
    numbers = ("value", "metric", "sparsity")
    dense, weak, strong, *told = ({name: float(row[name]) for name in numbers} for row in runs)
    assert dense["sparsity"] == 0
    assert 0.5 < weak["sparsity"] < strong["sparsity"] < 1
    for row in told:
        assert row["sparsity"] == pytest.approx(row["value"], abs=1e-4)
    for row in (dense, weak, strong):
        assert row["metric"] > 0.8

    summary, points = (table.splitlines() for table in printed.split("\n\n| method | ")[1:])
    for label, at_97 in (("one-shot and fine-tuning", told[0]), ("TF-MOT, polynomial", told[2])):
        (row,) = (line for line in summary if line.startswith(f"| {label} |"))
        assert row.split(" | ")[3] == f"{at_97['metric']:.2%}"
    assert sum(line.startswith(("| LpAdamW", "| one-shot", "| TF-MOT")) for line in points) == 8
    picture = tmp_path / "runs_digits.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture.name) in printed

    picture.unlink()
    again = run(BENCHMARKS / "frontier.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "runs.csv").read_text() == written
    assert again[again.index("###") :] == printed[printed.index("###") :]
    assert picture.exists()


@on_tensorflow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "argument --seeds: must be a whole number over 0, received 0"),
        (["--share", "2"], "Argument `share` must be over 0 and at most 1"),
        (["--output", "none/runs.csv"], "argument --output: must lie in a folder that exists"),
        (["--output", "folder"], "argument --output: must name a file, not a folder"),
        (["--output", "other.csv"], "must be a file with the columns task, method"),
        (["--trials"], "argument --trials: not allowed with argument --quick"),
        (["--tasks", "cifar10", "--data-dir", "."], "must be a folder that holds cifar10_jpeg"),
    ],
)
def test_benchmark_of_the_frontier_refuses_what_it_cannot_use(
    load, refusal, tmp_path, arguments, message
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.csv").write_text("task,loss\n")
    start = load("frontier").main
    assert message in refusal("frontier.py", ["--quick", *arguments], start)


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_the_frontier_trains_at_a_time_what_needs_no_sparsity_told(tmp_path):
    methods = ["proximal_l1", "coupled_lp"]
    arguments = ["--quick", "--share", 0.1, "--methods", *methods, "--processes", 2]
    run(BENCHMARKS / "frontier.py", *arguments, "--output", "runs.csv", cwd=tmp_path)
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = {(row["method"], float(row["value"])): row for row in csv.DictReader(file)}
    assert len(runs) == 5
    for method in methods:
        weak, strong = (float(runs[key]["sparsity"]) for key in sorted(runs) if key[0] == method)
        assert 0 < weak < strong < 1


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_the_frontier_trains_the_larger_tasks(data_dir, tmp_path):
    tasks = ["cifar10", "shakespeare"]
    arguments = ["--quick", "--share", 0.02, "--tasks", *tasks, "--methods", "tfmot"]
    run(BENCHMARKS / "frontier.py", *arguments, "--data-dir", data_dir, cwd=tmp_path)
    with (tmp_path / "frontier_quick.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert [run["task"] for run in runs] == [task for task in tasks for _ in range(3)]
    for row in runs:
        told = 0.0 if row["method"] == "adamw" else float(row["value"])
        assert float(row["sparsity"]) == pytest.approx(told, abs=1e-3)
    for task in tasks:
        assert (tmp_path / f"frontier_quick_{task}.png").read_bytes().startswith(b"\x89PNG")


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_the_target_compares_it_with_strengths_and_runs_no_share_for_another(tmp_path):
    arguments = ["--tasks", "digits", "--seeds", 1, "--targets", 0.9, "--grid", 0.01, 0.5]
    for share in (0.1, 0.12):
        printed = run(BENCHMARKS / "target.py", *arguments, "--share", share, cwd=tmp_path)
    with (tmp_path / "target.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    asked = [
        ("adamw", "0.004"),
        ("weight_decay", "0.01"),
        ("weight_decay", "0.5"),
        ("target", "0.9"),
    ]
    assert [(row["method"], row["value"], row["share"]) for row in runs] == [
        (*cell, share) for share in ("0.1", "0.12") for cell in asked
    ]
    ours = runs[-1]
    assert float(ours["sparsity"]) == pytest.approx(0.9, abs=1e-4)
    shown = f"| 90% | {float(ours['sparsity']):.4%} to {float(ours['sparsity']):.4%} |"
    (row,) = (line for line in printed.splitlines() if line.startswith(shown))
    assert f"| {float(ours['metric']):.2%} (±0.00) |" in row
    assert row.split(" | ")[6] == f"{float(runs[5]['metric']):.2%}"  # No others have less zeros.


@on_tensorflow_and_jax
@pytest.mark.slow
def test_benchmark_of_the_callbacks_prints_a_ratio_for_each(tmp_path):
    options = ["--models", "quickstart", "--turns", 1]
    printed = run(BENCHMARKS / "callbacks.py", *options, cwd=tmp_path)
    (row,) = re.findall(r"^\| \w+ \| quickstart \| [\d.]+ (\|.*)$", printed, re.MULTILINE)
    ratios = re.findall(r"\| ([\d.]+) \(([\d.]+) to ([\d.]+)\) ", row)
    assert len(ratios) == 4
    assert all(low == ratio == high != "0.000" for ratio, low, high in ratios)


@on_tensorflow
def test_learning_rate_of_a_task_is_constant_or_a_cosine_in_both_libraries(load):
    import tf_keras

    constant = load("tasks").load("digits", share=0.1)
    assert constant.schedule() == 1e-3
    task = replace(constant, last_share=0.01)
    for schedules in (keras.optimizers.schedules, tf_keras.optimizers.schedules):
        schedule = task.schedule(schedules)
        assert isinstance(schedule, schedules.LearningRateSchedule)
        for share in (0, 0.25, 1, 1.5):
            cosine = (1 + math.cos(math.pi * min(share, 1))) / 2
            rate = float(schedule(round(share * task.steps)))
            assert rate == pytest.approx(1e-3 * (0.01 + 0.99 * cosine), rel=1e-5)


@pytest.mark.slow
@on_tensorflow
def test_coupled_penalty_alone_is_cut_and_at_a_multiple_of_the_learning_rate(load):
    task = replace(load("tasks").load("digits", share=0.1), epochs=1)

    def magnitudes(method, *choice):
        model = load("methods").METHODS[method].train(task, 1e-5, 0, *choice)
        return np.concatenate([abs(w).ravel() for w in model.get_weights() if w.ndim > 1])

    for cut in (5, 1):
        weights = magnitudes("coupled_lp", cut)
        assert 1e-3 * cut < weights[weights > 0].min() < 1.1e-3 * cut
        assert 0 < np.mean(weights == 0) < 0.5
    weights = magnitudes("proximal_l1")
    assert 0 < weights[weights > 0].min() < 1e-4


@on_tensorflow
def test_runs_of_another_setting_are_other_runs(load):
    frontier, task = load("frontier"), load("tasks").load("digits", share=0.1)
    grids = {method: [0.5] for method in frontier.METHODS}

    def settings_of(task):
        asked = frontier.keys_of(task, frontier.cells_of_grids(task, grids), seeds=1)
        return {method: setting for _, method, _, _, setting in asked}

    settings = settings_of(task)
    assert settings["adamw"] == settings["lp_adamw_1"] == settings["proximal_l1"]
    assert settings["adamw"].startswith(
        "data scikit-learn, weights 151306, examples 126, validation 54, batch_size 32"
    )
    assert settings["one_shot"] == settings["adamw"] + ", one_shot_scope global"
    assert settings["tfmot"] == settings["adamw"] + ", tfmot_steps (0.0, 0.8)"
    assert settings["coupled_lp"] == settings["adamw"] + ", cut 5"
    for other in (
        {"epochs": 7},
        {"batch_size": 8},
        {"learning_rate": 0.1},
        {"last_share": 0.1},
        {"source": "elsewhere"},
    ):
        changed = settings_of(replace(task, **other))
        assert all(changed[method] != setting for method, setting in settings.items())


@on_tensorflow
def test_each_choice_is_among_its_trials(load):
    for setting in load("settings").SETTINGS.values():
        for method, tried in setting.trials.items():
            choice = load("methods").METHODS[method].choice
            assert getattr(setting, choice) in tried


@on_tensorflow
@pytest.mark.slow
def test_trials_of_the_frontier_show_what_each_choice_gives(tmp_path):
    arguments = ["--trials", "--tasks", "digits", "--share", 0.1, "--seeds", 1]
    arguments += ["--methods", "one_shot", "lp_adamw_1"]
    printed = run(BENCHMARKS / "frontier.py", *arguments, cwd=tmp_path)
    rows = re.findall(
        r"^\| one-shot and fine-tuning \| 99% \| one_shot_scope (\w+) ", printed, re.M
    )
    assert rows == ["global", "layer"]
    with (tmp_path / "frontier_trials.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert [row["setting"].split()[-1] for row in runs] == rows
    assert len({row["metric"] for row in runs}) == 2


@on_tensorflow_and_jax
def test_file_of_runs_that_was_cut_off_is_an_error_that_names_the_line(load, tmp_path):
    runs, path = load("runs"), tmp_path / "runs.csv"
    kind = make_dataclass("Named", [("name", str), ("number", float)])
    made = [kind("a, b", 1.5), kind("c", math.inf)]
    for one in made:
        runs.append(path, one)
    assert runs.read(path, kind) == made
    whole = path.read_text()
    assert whole.endswith("1.5\nc,inf\n")
    for cut, line in ((1, 3), (3, 3), (5, 3), (7, 2), (11, 2)):
        path.write_text(whole[:-cut])
        with pytest.raises(ValueError, match=rf"delete the one.*with line {line} cut off"):
            runs.read(path, kind)


@pytest.fixture
def groups():
    """Three points of two runs; the last has no weights left."""
    Point = namedtuple("Point", ["sparsity", "metric"])
    return [
        [Point(0.98, 0.6), Point(0.98, 0.8)],
        [Point(0.89, 0.9), Point(0.91, 0.9)],
        [Point(1.0, 0.1), Point(1.0, 0.1)],
    ]


@on_tensorflow_and_jax
@pytest.mark.parametrize(
    ("sparsity", "metric"), [(0.9, 0.9), (0.98, 0.7), (1 - math.sqrt(0.1 * 0.02), 0.8)]
)
def test_result_at_a_sparsity_lies_on_a_line_over_the_logarithm_of_what_is_left(
    load, groups, sparsity, metric
):
    assert load("runs").at_sparsity(groups, sparsity) == pytest.approx(metric)


@on_tensorflow_and_jax
@pytest.mark.parametrize(("sparsity", "is_within"), [(0.8985, True), (0.89, False), (0.99, False)])
def test_result_at_a_sparsity_is_none_beyond_the_runs(load, groups, sparsity, is_within):
    at_sparsity = load("runs").at_sparsity
    assert at_sparsity(groups, sparsity) is None
    assert at_sparsity(groups[2:], sparsity) is None
    assert at_sparsity(groups, sparsity, 0.02) == (pytest.approx(0.9) if is_within else None)


@on_tensorflow_and_jax
def test_spread_of_runs_is_half_of_their_range(load, groups):
    assert load("runs").half_range(groups[0], "metric") == pytest.approx(0.1)
    assert load("runs").half_range(groups[1], "metric") == 0


def counting_model(library):
    """A model of Keras or tf_keras whose first layer counts examples by their first feature."""

    class Seen(library.layers.Layer):
        def build(self, shape):
            self.counts = self.add_weight(shape=(64,), trainable=False, initializer="zeros")

        def call(self, x):
            numbers = keras.ops.cast(x[:, 0], "int32")
            self.counts.assign_add(keras.ops.sum(keras.ops.one_hot(numbers, 64), axis=0))
            return x

    return library.Sequential([library.Input((2,)), Seen(), library.layers.Dense(2)])


@pytest.fixture
def counting_task(load):
    """A task of 64 examples in one pass over four epochs."""
    x = np.arange(64.0).reshape(-1, 1) * [[1, 0.01]]
    return replace(
        load("tasks").load("digits", share=0.1),
        make_model=lambda: counting_model(keras),
        data=(x, np.arange(64) % 2, x, np.arange(64) % 2),
        epochs=4,
        batch_size=4,
        epochs_per_pass=4,
        last_share=0.01,
    )


@on_tensorflow
@pytest.mark.parametrize(
    "arguments", [("lp_adamw_0.8", 0.1), ("lp_target", 0.5), ("one_shot", 0.5, "global")]
)
def test_methods_of_the_frontier_see_each_example_once_in_a_pass(load, counting_task, arguments):
    task, (method, value, *choice) = counting_task, arguments
    model = load("methods").METHODS[method].train(task, value, 0, *choice)
    np.testing.assert_array_equal(model.layers[0].counts, 1)
    assert model.optimizer.iterations == task.steps == 16
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-5, rel=0.01)


@on_tensorflow
def test_training_under_tf_keras_sees_each_example_once_in_a_pass(load, counting_task):
    import tf_keras

    model = counting_model(tf_keras)
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    load("methods").fit(counting_task, model)
    np.testing.assert_array_equal(model.layers[0].counts, 1)
    assert model.optimizer.iterations == counting_task.steps


@on_tensorflow
def test_proximal_step_is_the_soft_threshold(load):
    weights = np.array([[0.5, -0.5, 1e-3, -1e-3, 0.0]], "float32")
    kernel, bias = keras.Variable(weights), keras.Variable(weights[0])
    optimizer = load("methods").ProximalAdam(0.1, strength=0.3)
    gradients = [keras.ops.ones((1, 5)), keras.ops.ones(5)]
    optimizer.apply(gradients, [kernel, bias])
    after = weights.astype("float64") - 0.1  # Adam's first step.
    expected = np.sign(after) * np.maximum(abs(after) - 0.1 * 0.3, 0)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(kernel), expected, atol=1e-6)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(bias), after[0], atol=1e-6)


@pytest.mark.slow
def test_tasks_for_zeros_at_the_start_have_them_and_their_losses_are_those_of_training(load):
    initial_zeros = load("initial_zeros")
    for name, task in initial_zeros.TASKS.items():
        model, x, y, loss, _, batch_size = task(np.random.default_rng(0))
        assert keras_lp.sparsity_report(model).sparsity > 0.05, name
        model.compile("adam", loss)
        assert model.evaluate(x, y, batch_size=batch_size, verbose=0) > 0, name
    results = [
        initial_zeros.train(
            lambda random: (*initial_zeros.masked(random)[:4], 2, 32),
            0,
            keras_lp.LpAdamW(1e-3, 0.02, p=0.8, initial_zeros=zeros),
        )
        for zeros in ("keep", "train")
    ]
    (kept_loss, kept), (free_loss, free) = results
    assert kept > 0.69 > free
    assert free_loss < kept_loss


@pytest.mark.slow
def test_fine_tuning_by_lora_loses_the_zeros_that_freezing_keeps(load, monkeypatch):
    lora = load("lora")
    monkeypatch.setattr(lora, "EPOCHS", 1)
    random = np.random.default_rng(0)
    x, y = random.random((64, 64)).astype("float32"), random.integers(0, 10, 64)
    zeros = {}
    for method in ("LoRA", "all that is left"):
        model = lora.fine_tune(lora.base(x, y), x, y, method)
        stripped = keras_lp.strip_pruning(model)
        zeros[method] = keras_lp.sparsity_report(stripped, exclude="last").sparsity
    assert zeros["all that is left"] == pytest.approx(0.9, abs=0.01)
    assert zeros["LoRA"] < 0.5


@pytest.mark.slow
@on_tensorflow
def test_files_of_recurrent_models_of_both_forms_compute_the_same(load, tmp_path):
    recurrent_files = load("recurrent_files")
    setting = (keras.layers.LSTM, 8, 5)
    loop, unrolled = (
        recurrent_files.export(tmp_path / f"{number}.tflite", setting, *form)
        for number, form in enumerate([(False, None), (True, None)])
    )
    x = np.random.default_rng(1).normal(size=(3, 5, recurrent_files.FEATURES)).astype("float32")
    assert keras_lp.compare_tflite(loop.path, unrolled.path, x).max_abs_difference < 1e-5
    assert loop.bytes != unrolled.bytes
