import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_lp

ROOT = Path(__file__).parent.parent


OPTIONAL = (
    "ai_edge_litert",
    "click",
    "matplotlib",
    "tensorboard",
    "tensorflow_model_optimization",
    "tf_keras",
)


def run(script):
    """What a script prints in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return process.stdout.strip()


@pytest.mark.slow
def test_import_loads_no_optional_package():
    # Keras itself loads matplotlib where it is installed, so what counts is what we add.
    assert (
        run(
            f"import sys, keras; before = set(sys.modules); import keras_lp;"
            f"print([m for m in {OPTIONAL} if m in set(sys.modules) - before])"
        )
        == "[]"
    )


def test_import_works_where_no_optional_package_is_installed():
    assert (
        run(
            f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}));"
            "import keras_lp; print(float(keras_lp.decay_factor(1.0, 1.0, 1)))"
        )
        == "0.5"
    )


@pytest.mark.slow
def test_import_alone_registers_the_optimizer_with_keras():
    assert (
        run(
            "import keras, keras_lp\n"
            "config = {'class_name': 'keras_lp>LpAdamW', 'config': {'p': 0.5}}\n"
            "print(keras.optimizers.deserialize(config).p)\n"
        )
        == "0.5"
    )


def test_every_public_name_is_there_and_has_a_docstring():
    assert keras_lp.__all__ == sorted(keras_lp.__all__)
    for name in keras_lp.__all__:
        assert getattr(keras_lp, name).__doc__, name


def test_every_public_name_is_in_the_reference():
    entries = re.findall(r"^::: keras_lp\.(\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    names = [name for name in keras_lp.__all__ if not inspect.ismodule(getattr(keras_lp, name))]
    names += [f"tfmot.{name}" for name in keras_lp.tfmot.__all__]
    names += [f"plotting.{name}" for name in ("plot_sparsity", "plot_weights", "plot_layers")]
    names += ["optional.import_tfmot"]  # What the guide to TF-MOT imports it with.
    assert sorted(entries) == sorted(names)


def test_package_ships_its_types():
    assert (Path(keras_lp.__file__).parent / "py.typed").exists()


def test_versions_agree():
    assert keras_lp.__version__ == importlib.metadata.version("keras-lp")
    assert f"## {keras_lp.__version__}" in (ROOT / "CHANGELOG.md").read_text()
