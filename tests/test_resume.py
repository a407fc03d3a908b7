import signal

import numpy as np
import pytest

NEVER_KILLED = ["schedules/nothing", "floats/nothing"]
KILLED = [
    "schedules/backup",
    "floats/backup",
    "schedules/epochs",
    "floats/epochs",
    "floats/batches",
]

# Epochs of 6 batches; the kill comes after 5 batches of the third of 4 epochs, and the last
# checkpoint was that of the epoch before or, where one is written every 4 batches, of the
# fourth batch of this epoch.
ALL_BATCHES = 24
BATCHES_AFTER_THE_KILL = {"backup": 12, "epochs": 12, "batches": 8}


pytestmark = [pytest.mark.slow, pytest.mark.every_backend]


@pytest.fixture(scope="module")
def finished(run_worker, tmp_path_factory):
    """What each run ended with. One command, started again after each kill."""
    folder = tmp_path_factory.mktemp("runs")
    for run in KILLED:
        process = run_worker("resume.py", folder, *KILLED, *NEVER_KILLED)
        assert process.returncode == -signal.SIGKILL, process.stdout + process.stderr
        assert (folder / run / "killed").exists(), run
        assert not (folder / run / "final.npz").exists(), run
    process = run_worker("resume.py", folder, *KILLED, *NEVER_KILLED)
    assert process.returncode == 0, process.stdout + process.stderr
    return {run: dict(np.load(folder / run / "final.npz")) for run in KILLED + NEVER_KILLED}


@pytest.mark.parametrize("run", KILLED)
def test_run_killed_in_mid_epoch_and_started_again_ends_as_one_never_killed(finished, run):
    case, way = run.split("/")
    ours, expected = finished[run], finished[f"{case}/nothing"]
    assert ours["batches"] == BATCHES_AFTER_THE_KILL[way]
    assert expected["batches"] == ALL_BATCHES
    assert ours.keys() == expected.keys()
    different = {name for name in ours if ours[name].tobytes() != expected[name].tobytes()}
    assert different == {"batches"}


def test_runs_that_are_compared_make_zeros_where_they_should(finished):
    def zeros(run, layer):
        return np.count_nonzero(finished[run][f"{layer}/kernel"] == 0)

    for layer in ("hidden", "middle"):
        assert zeros("schedules/nothing", layer) > 0
    assert zeros("floats/nothing", "hidden") > 0
    for layer in ("middle", "logits"):  # Excluded in this case.
        assert zeros("floats/nothing", layer) == 0
