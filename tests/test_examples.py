import ast
import csv
import importlib.util
import json
import re
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from scripts import ROOT, run

import keras_lp

pytestmark = pytest.mark.every_backend
EXPORTS = all(map(importlib.util.find_spec, ("ai_edge_litert", "tensorflow")))

on_tensorflow = pytest.mark.backend("tensorflow")
on_tensorflow_and_jax = pytest.mark.backend("tensorflow", "jax")


def quickstart(folder, *arguments):
    return run(ROOT / "examples" / "quickstart.py", "--output", "out", *arguments, cwd=folder)


@pytest.mark.slow
@on_tensorflow
def test_quickstart_writes_its_files_and_prints_their_paths(tmp_path):
    printed = quickstart(tmp_path, "--epochs", 2)
    names = ["adamw.keras", "adamw.tflite", "lp_adamw.keras", "lp_adamw.tflite", "quickstart.png"]
    for name in names:
        assert str(Path("out") / name) in printed
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert (tmp_path / "out" / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"LpAdamW, sparse float16 +0\.\d{4} +\d+\.\d\d% +[\d,]+ +0\.\d{4}", printed)


@on_tensorflow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be at least 1, received 0"),
        (["--p", "-1"], "--p: must be at least 0, received -1"),
        (["--weight-decay", "nan"], "--weight-decay: must be at least 0, received nan"),
        (["--output", "file"], "--output: must be a folder that can be made"),
    ],
)
def test_quickstart_refuses_what_it_cannot_use(load_example, refusal, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    assert message in refusal("quickstart.py", arguments, load_example("quickstart").main)


@on_tensorflow
@pytest.mark.slow
def test_usage_examples_of_the_readme_run_as_they_stand(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "usage.py").write_text(first + second, encoding="utf-8")
    printed = run("usage.py", cwd=tmp_path)
    assert "sparsity" in printed
    assert (tmp_path / "model.tflite").exists()
    assert re.findall(r"sparsity: (0\.\d+)", printed)[-1].startswith("0.95")
    assert (tmp_path / "sparsity.png").exists()


@on_tensorflow
@pytest.mark.slow
def test_guide_to_deployment_writes_and_compares_its_files(tmp_path):
    printed = run(ROOT / "examples" / "deploy_tflite.py", "--epochs", 5, cwd=tmp_path)
    rows = re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +([\d.]+)% +[\d.]+$", printed, re.MULTILINE)
    sizes = {name: int(size.replace(",", "")) for name, size, _, _ in rows}
    assert list(sizes) == ["dense", "float32", "float16", "dynamic", "int8"]
    for name, size in sizes.items():
        path = tmp_path / "deploy_tflite_output" / f"{name}.tflite"
        assert path.stat().st_size == size
    assert sizes["float16"] < sizes["float32"] < 0.2 * sizes["dense"]
    assert sizes["int8"] < 0.3 * sizes["dense"]
    assert "no sparse int8 weights" in printed


@on_tensorflow
@pytest.mark.slow
def test_quickstart_reaches_its_numbers_in_the_mean_of_three_seeds(tmp_path, capsys):
    printed = quickstart(tmp_path, "--seeds", 3)
    summary = printed[printed.index("mean of 3 seeds") :]
    with capsys.disabled():
        print("\n" + summary)
    (line,) = re.findall(r"LpAdamW: ([\d.]+)% .*, ([-+.\d]+) points .* ([\d.]+) times", summary)
    sparsity, points, times = map(float, line)
    assert sparsity >= 95.0
    assert points >= -1.0
    assert times >= 8.0


def printed_rows(printed):
    """The table at the end of a guide: what it says of each file, as text."""
    rows = re.findall(r"^(\S+\.(?:keras|tflite)) +(\S+) +(\S+)% +(.*)$", printed, re.MULTILINE)
    return {
        name: (quality, float(sparsity), [int(size.replace(",", "")) for size in sizes.split()])
        for name, quality, sparsity, sizes in rows
    }


def read_history(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def check_files(folder, printed):
    """That the table agrees with the files, and what else a guide writes is there."""
    rows = printed_rows(printed)
    for name, (_, sparsity, sizes) in rows.items():
        assert (folder / name).stat().st_size == sizes[0]
        if name.endswith(".keras"):
            model = keras.models.load_model(folder / name)
            assert sparsity == pytest.approx(
                100 * keras_lp.sparsity_report(model).sparsity, abs=5e-3
            )
    assert (folder / "sparsity.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "backup").exists()
    return rows


@pytest.mark.slow
@on_tensorflow_and_jax
def test_guide_to_cifar10_prints_what_its_files_hold(data_dir, tmp_path):
    printed = run(
        *(ROOT / "examples" / "cifar10_resnet18.py", "--size", "cpu", "--data-dir", data_dir),
        *("--epochs", 2, "--steps", 2, "--weight-decay", 30, "--output", "out"),
        cwd=tmp_path,
    )
    rows = check_files(tmp_path / "out", printed)
    assert list(rows) == ["model.keras", "stripped.keras", "model.tflite"][: 2 + EXPORTS]
    accuracy, sparsity, _ = rows["stripped.keras"]
    assert sparsity > 1
    (last,) = re.findall(r"epoch +2/2 .* test accuracy (\S+) ", printed)
    assert last == rows["model.keras"][0] == accuracy
    model = keras.models.load_model(tmp_path / "out" / "stripped.keras")
    assert {type(one).__name__ for one in model.operations} == {
        *("InputLayer", "Normalization", "Conv2D", "BatchNormalization", "Activation"),
        *("Add", "GlobalAveragePooling2D", "Dense"),  # and nothing that changes images
    }
    history = read_history(tmp_path / "out")
    assert [row["epoch"] for row in history] == ["0", "1"]
    assert f"{float(history[-1]['val_accuracy']):.2%}" == last
    if EXPORTS:
        ours, dense = rows["model.tflite"], re.search(r"would take ([\d,]+) bytes", printed)
        assert ours[1] == sparsity
        assert float(ours[0][:-1]) == pytest.approx(float(accuracy[:-1]), abs=2)
        assert ours[2][0] < 0.6 * int(dense[1].replace(",", ""))


@on_tensorflow_and_jax
def test_images_are_changed_once_as_by_one_change_after_the_other(data_dir):
    pillow = pytest.importorskip("PIL.Image")
    script = ast.parse((ROOT / "examples" / "cifar10_resnet18.py").read_text(encoding="utf-8"))
    script.body = [node for node in script.body if getattr(node, "name", None) == "augment"]
    names = {"np": np}
    exec(compile(script, "augment", "exec"), names)
    images = np.random.default_rng(0).integers(1, 256, (50, 32, 32, 3)).astype("uint8")
    ours = names["augment"](images, np.random.default_rng(1))

    random = np.random.default_rng(1)  # The same numbers in the same order.
    moves = random.integers(-4, 5, (2, 2, 50))
    mirrored = random.choice([-1, 1], 50) < 0
    angles = random.uniform(-10, 10, 50)
    for number, image in enumerate(images):
        (down, right), (down_again, right_again) = moves[:, :, number] + 4
        image = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        image = pillow.fromarray(image[down:, right:][:32, :32])
        image = np.asarray(image.rotate(-angles[number], pillow.NEAREST))
        image = image[:, ::-1] if mirrored[number] else image
        image = np.pad(image, ((4, 4), (4, 4), (0, 0)))[down_again:, right_again:][:32, :32]
        # Where a centre falls on the border of two pixels, rounding may take the other one.
        assert np.mean(np.any(image != ours[number], axis=-1)) < 0.01


@pytest.mark.slow
@on_tensorflow_and_jax
def test_guide_to_shakespeare_prints_what_its_files_hold(data_dir, tmp_path):
    printed = run(
        *(ROOT / "examples" / "tiny_shakespeare_gpt.py", "--size", "cpu", "--data-dir", data_dir),
        *("--epochs", 2, "--steps", 3, "--weight-decay", 10, "--output", "out"),
        cwd=tmp_path,
    )
    rows = check_files(tmp_path / "out", printed)
    assert list(rows) == ["model.keras", "stripped.keras"]
    loss, sparsity, (size, gzip_size) = rows["stripped.keras"]
    assert sparsity > 1
    assert gzip_size < 0.9 * size
    assert rows["model.keras"][0] == loss
    assert f"epoch  2/2  loss {float(read_history(tmp_path / 'out')[-1]['loss']):.3f}" in printed


@pytest.mark.slow
@on_tensorflow_and_jax
@pytest.mark.parametrize(
    ("name", "kills"),
    [("cifar10_resnet18", ["second", "last"]), ("tiny_shakespeare_gpt", ["second"])],
)
def test_killed_guide_started_again_ends_as_one_never_killed(
    data_dir, tmp_path, run_worker, name, kills
):
    script = ROOT / "examples" / f"{name}.py"
    arguments = [
        *("--size", "cpu", "--data-dir", data_dir, "--epochs", 3, "--steps", 4),
        *("--target-sparsity", 0.5, "--output"),
    ]
    going_on, left = "going on after epoch 1 of an earlier run", "123"
    for when, done in zip(kills, ["1", "23"], strict=False):
        process = run_worker("killed_example.py", when, script, *arguments, tmp_path / "killed")
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert (going_on in process.stdout) == (done == "23")
        assert re.findall(r"epoch +(\d)/3", process.stdout) == list(done)
        left = left.removeprefix(done)
        trained = [row["epoch"] for row in read_history(tmp_path / "killed")]
        assert trained == [str(epoch) for epoch in range(3 - len(left))]

    again = run(script, *arguments, tmp_path / "killed", cwd=tmp_path)
    assert (going_on in again) == bool(left)
    assert re.findall(r"epoch +(\d)/3", again) == list(left)
    rows = check_files(tmp_path / "killed", again)
    assert rows["stripped.keras"][1] == 50.0

    once = run(script, *arguments, tmp_path / "once", cwd=tmp_path)
    assert "going on" not in once
    ours, expected = (read_history(tmp_path / folder) for folder in ("killed", "once"))
    assert len(ours) == 3
    for row, other in zip(ours, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert float(value) == pytest.approx(float(other[name]), rel=1e-4), name


CIFAR10, SHAKESPEARE = "cifar10_resnet18", "tiny_shakespeare_gpt"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (CIFAR10, ["--epochs", "0"], "--epochs: pass an integer of at least 1, received 0"),
        (CIFAR10, ["--p", "0"], "argument --p: has no default strength at 0; pass --weight-decay"),
        (CIFAR10, ["--p", "nan"], "--p: pass a number of at least 0, received nan"),
        (CIFAR10, ["--size", "huge"], "argument --size: invalid choice: 'huge'"),
        (CIFAR10, ["--data-dir", "nowhere"], "holds cifar10_jpeg.npz.xz, or leave --data-dir out"),
        (CIFAR10, ["--output", "file"], "--output: pass a folder that can be made, received file"),
        (
            CIFAR10,
            ["--data-dir", "DATA", "--size", "cpu", "--steps", "5"],
            "at most 4, the batches",
        ),
        (SHAKESPEARE, ["--steps", "1.5"], "--steps: pass an integer of at least 1, received 1.5"),
        (SHAKESPEARE, ["--target-sparsity", "90"], "pass a number from 0 to 1, received 90"),
        (SHAKESPEARE, ["--weight-decay", "-1"], "pass a number of at least 0, received -1"),
        (
            SHAKESPEARE,
            ["--target-sparsity", "0.9", "--weight-decay", "0.1"],
            "leave out --weight-decay, received 0.9 and --weight-decay 0.1",
        ),
        (
            SHAKESPEARE,
            ["--target-sparsity", "0.9", "--p", "1.5"],
            "--p: pass a number of at most 1 with --target-sparsity",
        ),
        (SHAKESPEARE, ["--data-dir", "."], "a text of at least 2,570 characters"),
        (
            SHAKESPEARE,
            ["--data-dir", "DATA", "--size", "cpu"],
            "settings of the unfinished training",
        ),
    ],
)
@on_tensorflow_and_jax
def test_guides_to_the_experiments_refuse_what_they_cannot_use(
    load_example, refusal, data_dir, tmp_path, name, arguments, message
):
    (tmp_path / "file").write_text("")
    (tmp_path / "tinyshakespeare.txt").write_text("too short")
    (tmp_path / f"{name}_output" / "backup").mkdir(parents=True)
    for file, text in (("settings.json", json.dumps({"p": 0.1})), ("latest.weights.h5", "")):
        (tmp_path / f"{name}_output" / "backup" / file).write_text(text)
    arguments = [str(data_dir) if argument == "DATA" else argument for argument in arguments]
    error = refusal(f"{name}.py", arguments, lambda: load_example(name))
    assert message in error
    assert f"{name}.py: error: argument --" in error
