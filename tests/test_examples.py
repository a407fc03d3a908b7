import ast
import csv
import importlib.util
import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lp

ROOT = Path(__file__).parent.parent
EXPORTS = all(map(importlib.util.find_spec, ("ai_edge_litert", "tensorflow")))

on_tensorflow = pytest.mark.backend("tensorflow")
on_tensorflow_and_jax = pytest.mark.backend("tensorflow", "jax")


def run(*arguments, cwd):
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


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
def test_quickstart_refuses_what_it_cannot_use(
    load_example, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *arguments])
    with pytest.raises(SystemExit) as ending:
        load_example("quickstart").main()
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


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
def test_benchmark_of_sparse_files_prints_its_table(tmp_path):
    printed = run(ROOT / "benchmarks" / "sparse_file.py", "--repeats", 2, cwd=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith(("| mlp", "| cnn"))]
    assert len(rows) == 4
    for row in rows:
        dense, sparse = (int(cell.replace(",", "")) for cell in row.split("|")[3:5])
        assert sparse < 0.2 * dense


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_steps_prints_its_table_and_writes_it(tmp_path):
    methods = ["LpAdamW, p = 0.8", "Adam and LpDecayCallback", "TF-MOT on tf_keras's Adam"]
    options = ["--weights", "perceptron", "--turns", 2, "--no-whole-step", "--methods", *methods]
    printed = run(ROOT / "benchmarks" / "step.py", *options, cwd=tmp_path)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| tensorflow")]
    assert [row[2] for row in rows] == [*methods[:2], *methods]  # TF-MOT without XLA alone.
    with (tmp_path / "step.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["method"] for row in written] == [row[2] for row in rows]
    for row in written:
        assert float(row["low"]) <= float(row["ratio"]) <= float(row["high"])
        assert (float(row["memory"]) > 0) != (row["method"] == methods[2])


FRONTIER = ROOT / "benchmarks" / "frontier.py"


@on_tensorflow
@pytest.mark.slow
def test_benchmark_of_the_frontier_writes_runs_tables_and_pictures_and_runs_nothing_twice(tmp_path):
    methods = ["lp_adamw_0.8", "one_shot", "tfmot"]
    arguments = ["--quick", "--share", 0.1, "--methods", *methods, "--output", "runs.csv"]
    printed = run(FRONTIER, *arguments, cwd=tmp_path)
    written = (tmp_path / "runs.csv").read_text()
    runs = list(csv.DictReader(written.splitlines()))
    assert [row["method"] for row in runs] == ["adamw", *(m for m in methods for _ in range(2))]
    dense, weak, strong, *told = ({k: float(row[k]) for k in list(row)[2:]} for row in runs)
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
    assert sum(line.startswith(("| LpAdamW", "| one-shot", "| TF-MOT")) for line in points) == 6
    picture = tmp_path / "runs_digits.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture.name) in printed

    picture.unlink()
    again = run(FRONTIER, *arguments, cwd=tmp_path)
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
        (["--output", "other.csv"], "must be a file with the columns task, method"),
        (["--tasks", "cifar10", "--data-dir", "."], "must be a folder that holds cifar10_jpeg"),
    ],
)
def test_benchmark_of_the_frontier_refuses_what_it_cannot_use(
    tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "other.csv").write_text("task,loss\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FRONTIER.parent)
    monkeypatch.setattr(sys, "argv", ["frontier.py", "--quick", *arguments])
    with pytest.raises(SystemExit) as ending:
        importlib.import_module("frontier").main()
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with small files of what the guides to the paper's experiments read."""
    pillow = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 256), ("test", 100)):
        labels = random.integers(10, size=count).astype("uint8")
        images = random.integers(0, 80, (count, 32, 32, 3)).astype("uint8")
        files = []
        for label, image in zip(labels, images, strict=True):
            image[3 * label : 3 * label + 4] += 150  # A bright stripe tells the class.
            file = io.BytesIO()
            pillow.fromarray(image).save(file, "JPEG")
            files.append(file.getvalue())
        arrays |= {
            f"{part}_jpeg": np.frombuffer(b"".join(files), "uint8"),
            f"{part}_offsets": np.cumsum([0, *map(len, files)]),
            f"{part}_labels": labels,
        }
    with lzma.open(folder / "cifar10_jpeg.npz.xz", "wb") as file:
        archive = io.BytesIO()
        np.savez(archive, **arrays)
        file.write(archive.getvalue())
    words = random.choice(["to be", " or not", ", that is\n", " the question"], size=1500)
    (folder / "tinyshakespeare.txt").write_text("".join(words))
    return folder


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
def test_killed_guide_started_again_ends_as_one_never_killed(data_dir, tmp_path, run_worker):
    script = ROOT / "examples" / "tiny_shakespeare_gpt.py"
    arguments = [
        *("--size", "cpu", "--data-dir", data_dir, "--epochs", 3, "--steps", 4),
        *("--target-sparsity", 0.5, "--output"),
    ]
    process = run_worker("killed_example.py", script, *arguments, tmp_path / "killed")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert re.findall(r"epoch +(\d)/3", process.stdout) == ["1"]
    assert [row["epoch"] for row in read_history(tmp_path / "killed")] == ["0"]

    again = run(script, *arguments, tmp_path / "killed", cwd=tmp_path)
    assert "going on after epoch 1 of an earlier run" in again
    assert re.findall(r"epoch +(\d)/3", again) == ["2", "3"]
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
    load_example, data_dir, tmp_path, monkeypatch, capsys, name, arguments, message
):
    (tmp_path / "file").write_text("")
    (tmp_path / "tinyshakespeare.txt").write_text("too short")
    (tmp_path / f"{name}_output" / "backup").mkdir(parents=True)
    (tmp_path / f"{name}_output" / "backup" / "settings.json").write_text(json.dumps({"p": 0.1}))
    monkeypatch.chdir(tmp_path)
    arguments = [str(data_dir) if argument == "DATA" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ending:
        load_example(name)
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"{name}.py: error: argument --" in error
