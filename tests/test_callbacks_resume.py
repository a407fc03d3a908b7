"""A training with the callbacks that is killed and started again, in processes of its own."""

import json
import signal

import numpy as np
import pytest

ENDS_IN = 3  # the epoch in which `end_step` lies
SPARSITY = {"hidden": 0.7, "logits": 0.3}  # of the case in which each layer has its own

NEVER = ["callback/first/never", "layers/last/never"]
KILLED = [
    "callback/first/ramp",
    "callback/last/after",
    "callback/last/end",
    "layers/first/ramp,end,after",
    "layers/last/ramp",
]

pytestmark = [pytest.mark.slow, pytest.mark.every_backend]


@pytest.fixture(scope="module")
def finished(run_worker, tmp_path_factory):
    """What each run ended with: its variables and its logs by epoch. One command for all."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [*KILLED, *NEVER]
    for _ in range(sum(len(run.split("/")[2].split(",")) for run in KILLED)):
        process = run_worker("resume_callbacks.py", folder, *runs)
        assert process.returncode == -signal.SIGKILL, process.stdout + process.stderr
    process = run_worker("resume_callbacks.py", folder, *runs)
    assert process.returncode == 0, process.stdout + process.stderr
    return {
        run: (
            dict(np.load(folder / run / "final.npz")),
            json.loads((folder / run / "logs.json").read_text()),
        )
        for run in runs
    }


@pytest.mark.parametrize("run", KILLED)
def test_run_killed_in_mid_epoch_and_started_again_ends_as_one_never_killed(finished, run):
    variables, logs = finished[run]
    expected, expected_logs = finished[NEVER[run.startswith("layers")]]
    assert variables.keys() == expected.keys()
    different = {n for n in expected if variables[n].tobytes() != expected[n].tobytes()}
    assert different == set()
    for epoch, log in expected_logs.items():
        for name in ("sparsity", "nonzero", "weight_decay", "p"):
            assert logs[epoch][name] == log[name], (epoch, name)


def test_runs_that_are_compared_come_to_their_targets_on_the_way(finished):
    for run in NEVER:
        logs = finished[run][1]
        path = [logs[str(epoch)]["sparsity"] for epoch in range(6)]
        assert 0 < path[ENDS_IN - 1] < path[ENDS_IN] == path[-1]
        strengths = [logs[str(epoch)]["weight_decay"] for epoch in range(6)]
        assert [strength > 0 for strength in strengths] == [True] * 3 + [False] * 3
    kernels = [finished[NEVER[0]][0][f"{layer}/kernel"] for layer in SPARSITY]
    size = sum(kernel.size for kernel in kernels)
    assert sum(np.sum(kernel == 0) for kernel in kernels) == round(0.8 * size)
    for layer, target in SPARSITY.items():
        kernel = finished[NEVER[1]][0][f"{layer}/kernel"]
        assert np.sum(kernel == 0) == round(target * kernel.size)
