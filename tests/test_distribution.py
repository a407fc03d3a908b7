"""Training on several devices; in processes of its own, as their number is fixed at the start."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lp

pytestmark = pytest.mark.every_backend
ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "multi_host.py"
WORKER = ROOT / "tests" / "workers" / "distributed_training.py"
SHARDED = ROOT / "tests" / "workers" / "sharded.py"
DEVICES = {"one_device": 1, "mirrored": 2, "data_parallel": 4, "model_parallel": 4}
SECONDS = 120  # far more than any of these processes needs

in_every_setting = pytest.mark.parametrize(
    "setting",
    [
        pytest.param("mirrored", marks=[pytest.mark.backend("tensorflow"), pytest.mark.slow]),
        pytest.param("data_parallel", marks=[pytest.mark.backend("jax"), pytest.mark.slow]),
        pytest.param("model_parallel", marks=[pytest.mark.backend("jax"), pytest.mark.slow]),
    ],
)


def run(*commands, folder, devices=1, backend=None):
    """Exit codes and output of scripts that run at the same time; none outlives the call."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend or keras.backend.backend(),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    logs = [folder / f"process_{number}.log" for number in range(len(commands))]
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=folder,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
        for process in processes:
            process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pass  # The exit codes tell.
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], [log.read_text() for log in logs]


def output(codes, printed):
    """What scripts printed that must have ended well."""
    assert not any(codes), f"exit codes {codes}\n" + "\n".join(printed)
    return printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns what the worker writes; it runs once in each setting."""

    @functools.cache
    def outcome(setting):
        folder = tmp_path_factory.mktemp(setting)
        command = [WORKER, setting, "arrays.npz"]
        return folder, *run(command, folder=folder, devices=DEVICES[setting])

    def arrays(setting):
        folder, codes, printed = outcome(setting)
        output(codes, printed)
        with np.load(folder / "arrays.npz") as file:
            return dict(file)

    return arrays


@in_every_setting
@pytest.mark.parametrize(
    "optimizer",
    [
        *("no decay", "decay", "moving average", "exclusion", "schedules", "set later"),
        *("callback", "callback, updated"),
    ],
)
def test_twenty_steps_give_the_weights_and_moments_of_one_device(trained, setting, optimizer):
    # The moments tell a sum of the gradients from their mean; Adam's steps do not.
    many, one = trained(setting), trained("one_device")
    keys = [key for key in one if key.startswith(f"{optimizer}/")]
    assert f"{optimizer}/hidden/kernel" in keys
    assert np.abs(one[f"{optimizer}/mlp_hidden_kernel_momentum"]).max() > 0.01
    assert one[f"{optimizer}/iteration"] == 20
    for key in keys:
        np.testing.assert_allclose(many[key], one[key], rtol=0, atol=1e-5, err_msg=key)


@in_every_setting
def test_decay_acts_on_several_devices(trained, setting):
    arrays = trained(setting)
    base = arrays["no decay/hidden/kernel"]
    assert np.all(base != 0)
    for optimizer in ("decay", "moving average", "exclusion", "schedules", "set later"):
        assert np.abs(arrays[f"{optimizer}/hidden/kernel"] - base).max() > 0.02, optimizer
    for optimizer in ("decay", "moving average", "exclusion"):
        assert not arrays[f"{optimizer}/hidden/kernel"][0].any(), optimizer
    assert not arrays["decay/logits/kernel"][0].any()
    assert arrays["exclusion/logits/kernel"].all()


@in_every_setting
def test_callback_on_several_devices_gives_the_weights_of_the_optimizer(trained, setting):
    arrays = trained(setting)
    for path in ("hidden/kernel", "logits/kernel", "hidden/bias"):
        ours, theirs = (arrays[f"{each}/{path}"] for each in ("callback", "decay"))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert (
        np.abs(arrays["callback, updated/hidden/kernel"] - arrays["no decay/hidden/kernel"]).max()
        > 0.02
    )


@pytest.mark.backend("jax")
@pytest.mark.parametrize(
    ("layer", "whole", "part"), [("hidden", (8, 16), (8, 8)), ("logits", (16, 4), (8, 4))]
)
def test_model_parallel_shards_a_kernel_and_its_moments(trained, layer, whole, part):
    arrays = trained("model_parallel")
    for variable in (f"{layer}/kernel", f"mlp_{layer}_kernel_momentum"):
        assert arrays[f"decay/{variable}"].shape == whole
        assert tuple(arrays[f"part of decay/{variable}"]) == part


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1:{1}".format(*free.getsockname())


def check_sharded(folder, processes):
    """The parts that each process holds, once all that was counted is what is there."""
    all_parts = []
    for number in range(processes):
        found = json.loads((folder / f"found_{number}.json").read_text())
        for what in ("pruned", "trained"):
            report = found[what]["report"]
            assert [row["zeros"] for row in report["layers"]] == found[what]["zeros"]
            assert report["zeros"] == found["measured"] == 144
        assert found["pruned"]["pattern"] == found["trained"]["pattern"]
        assert found["is_least"]
        assert found["has_trained"]
        assert found["warned"] == 0
        assert found.get("target", 176) == 176
        all_parts.append(found["parts"])
    return all_parts


@pytest.mark.slow
@pytest.mark.backend("jax")
def test_sharded_weights_are_counted_pruned_and_kept_as_a_whole(tmp_path):
    output(*run([SHARDED, "found_0.json"], folder=tmp_path, devices=2))
    assert check_sharded(tmp_path, 1) == [
        {"embedding": [16, 6], "hidden": [6, 8], "logits": [8, 4]}
    ]


@pytest.mark.slow
@pytest.mark.backend("jax")
def test_weights_sharded_over_two_processes_are_so_too(tmp_path):
    address = free_address()
    commands = [[SHARDED, f"found_{number}.json", address, number] for number in range(2)]
    output(*run(*commands, folder=tmp_path, devices=1))
    parts = {"embedding": [16, 6], "hidden": [6, 8], "logits": [8, 4]}
    assert check_sharded(tmp_path, 2) == [parts, parts]


@pytest.mark.slow
@pytest.mark.backend("jax")
def test_two_processes_give_the_weights_of_one(tmp_path):
    coordinator = free_address()
    steps = ["--epochs", 1]  # of 20 steps
    (alone,) = output(*run([EXAMPLE, *steps, "--output", "one.keras"], folder=tmp_path))
    together = ["--coordinator", coordinator, "--processes", 2]
    first, second = output(
        *run(
            [EXAMPLE, *steps, *together, "--process", 0, "--output", "two.keras"],
            [EXAMPLE, *steps, *together, "--process", 1, "--output", "none.keras"],
            folder=tmp_path,
            devices=2,
        )
    )
    assert not (tmp_path / "none.keras").exists()
    assert "processes: 2, devices: 4" in first
    assert "accuracy" not in second

    accuracy, sparsity = results(first)
    assert (accuracy, sparsity) == pytest.approx(results(alone), abs=0.005)
    assert sparsity > 0.01
    one, two = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("one", "two"))
    assert int(two.optimizer.iterations) == 20
    assert keras_lp.sparsity_report(two).sparsity == pytest.approx(sparsity, abs=1e-4)
    for left, right in zip(one.weights, two.weights, strict=True):
        np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=0, atol=1e-5)


def results(printed):
    """Accuracy and sparsity that the example printed, as shares."""
    ((accuracy, sparsity),) = re.findall(r"test accuracy: ([\d.]+), sparsity: ([\d.]+)%", printed)
    return float(accuracy), float(sparsity) / 100


@pytest.mark.backend("jax")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "--processes: must be at least 1, received 0"),
        (["--processes", "2"], "--process: needed with --processes 2, another one for each"),
        (
            ["--processes", "2", "--process", "2"],
            "--process: must be at most 1 with --processes 2, received 2",
        ),
        (["--processes", "2", "--process", "1"], "--coordinator: HOST:PORT of process 0 needed"),
        (["--coordinator", "10.0.0.1"], "--coordinator: must be HOST:PORT, as in"),
        (["--coordinator", "host:99999"], "10.0.0.1:12345, received host:99999"),
        (
            ["--processes", "3", "--process", "0", "--coordinator", "host:1"],
            "--batch-size: must be a multiple of 3 with --processes 3 and at most 640, "
            "received 128",
        ),
        (["--weight-decay", "nan"], "--weight-decay: must be at least 0, received nan"),
        (["--output", "model.h5"], "--output: must end in .keras and lie in a folder that exists"),
        (["--output", "none/model.keras"], "a folder that exists, received none/model.keras"),
    ],
)
def test_example_refuses_what_it_cannot_use(load_example, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["multi_host.py", *arguments])
    with pytest.raises(SystemExit):
        load_example("multi_host").main()
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.backend("jax")
def test_example_refuses_a_batch_that_the_devices_cannot_share(tmp_path):
    codes, (printed,) = run([EXAMPLE, "--batch-size", 126], folder=tmp_path, devices=4)
    assert codes == [1]
    assert "--batch-size: must be a multiple of 4, the number of devices" in printed


def test_example_refuses_another_backend(tmp_path):
    codes, (printed,) = run([EXAMPLE], folder=tmp_path, backend="torch")
    assert codes == [1]
    assert "KERAS_BACKEND must be jax" in printed
    assert "received torch; unset it" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [
        pytest.param("Several GPUs, TensorFlow backend", marks=pytest.mark.backend("tensorflow")),
        pytest.param("Several devices, JAX backend", marks=pytest.mark.backend("jax")),
        pytest.param("A model over several devices", marks=pytest.mark.backend("jax")),
    ],
)
def test_code_of_the_docs_runs_as_it_stands(tmp_path, section):
    text = (ROOT / "docs" / "distribution.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"^## {section}\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    (printed,) = output(*run(["example.py"], folder=tmp_path, devices=4))
    assert "sparsity" in printed
