import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

WORKER = Path(__file__).parent / "workers" / "resume_callbacks.py"
WHILE_STEERING, AFTER_THE_END = 4, 8  # Epochs of 10.
NEVER = -1

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What each run ended with. One command, started again after each kill."""
    folder = tmp_path_factory.mktemp("runs")
    runs = (WHILE_STEERING, AFTER_THE_END, NEVER)
    for code in (-signal.SIGKILL, -signal.SIGKILL, 0):
        process = subprocess.run(
            [sys.executable, str(WORKER), str(folder), *map(str, runs)],
            env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == code, process.stdout + process.stderr
    return {run: dict(np.load(folder / str(run) / "final.npz")) for run in runs}


@pytest.mark.parametrize("run", [WHILE_STEERING, AFTER_THE_END])
def test_run_with_all_callbacks_killed_in_mid_epoch_ends_as_one_never_killed(finished, run):
    ours, expected = finished[run], finished[NEVER]
    assert ours["first"] == run  # The epoch that it was killed in, again from its start.
    for name in ("sparsity", "weight_decay"):
        assert ours[name].tolist() == expected[name][run:].tolist(), name
    for name in expected:
        if name.startswith("weight_") and name != "weight_decay":
            assert ours[name].tobytes() == expected[name].tobytes(), name


def test_runs_that_are_compared_were_steered_and_closed(finished):
    strengths = finished[NEVER]["weight_decay"]
    assert strengths[WHILE_STEERING] > 0
    assert strengths[AFTER_THE_END - 1] == 0
    hidden, logits = (finished[NEVER][name] for name in ("weight_0", "weight_2"))
    assert np.count_nonzero(hidden == 0) == round(0.7 * hidden.size)
    assert np.count_nonzero(logits == 0) == round(0.4 * logits.size)
