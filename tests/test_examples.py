import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.backend("tensorflow")


def run(*arguments, cwd):
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def quickstart(folder, *arguments):
    return run(ROOT / "examples" / "quickstart.py", "--output", "out", *arguments, cwd=folder)


@pytest.mark.slow
def test_quickstart_writes_its_files_and_prints_their_paths(tmp_path):
    printed = quickstart(tmp_path, "--epochs", 2)
    names = ["adamw.keras", "adamw.tflite", "lp_adamw.keras", "lp_adamw.tflite", "quickstart.png"]
    for name in names:
        assert str(Path("out") / name) in printed
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert (tmp_path / "out" / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"LpAdamW, sparse float16 +0\.\d{4} +\d+\.\d\d% +[\d,]+ +0\.\d{4}", printed)


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


@pytest.mark.slow
def test_benchmark_of_sparse_files_prints_its_table(tmp_path):
    printed = run(ROOT / "benchmarks" / "sparse_file.py", "--repeats", 2, cwd=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith(("| mlp", "| cnn"))]
    assert len(rows) == 4
    for row in rows:
        dense, sparse = (int(cell.replace(",", "")) for cell in row.split("|")[3:5])
        assert sparse < 0.2 * dense


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
