"""Shared models and helpers of the tests."""

import functools
import gc
import importlib.util
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from hypothesis import settings

WORKERS = Path(__file__).parent / "workers"
EXAMPLES = Path(__file__).parent.parent / "examples"

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption(
        "--support-table",
        type=Path,
        help="write the cells of the docs' table that the tests of this run have filled in",
    )


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("support_table")
    if path:
        reports = terminalreporter.stats.get("passed", [])
        found = (json.loads(v) for r in reports for name, v in r.user_properties if name == "cell")
        # Processes that run at a time end in any order; each cell says where it stands.
        cells = [cell for _, *cell in sorted(found)]
        path.write_text(json.dumps({"backend": keras.backend.backend(), "cells": cells}))


def pytest_collection_finish(session):
    _leave_out_of_collections()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path != item.path:
        _leave_out_of_collections()


def _leave_out_of_collections():
    """Has the garbage collector look no more at what is there now.

    TensorFlow's converter to LiteRT collects at each call, which takes longer than the conversion
    where a process has imported much.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    for marker in item.iter_markers("backend"):
        if keras.backend.backend() not in marker.args:
            pytest.skip(f"needs the backend {' or '.join(marker.args)}")


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def run_worker():
    """A function that runs a script of `workers` in a process of its own, to its end."""

    def run(name, *arguments, **environment):
        return subprocess.run(
            [sys.executable, str(WORKERS / name), *map(str, arguments)],
            env={**os.environ, "KERAS_BACKEND": keras.backend.backend(), **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """A function that starts a script with arguments that it refuses; what it says."""

    def refuse(name, arguments, start):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ending:
            start()
        assert ending.value.code == 2
        return capsys.readouterr().err

    return refuse


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with small files of what guides and benchmarks read."""
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


@pytest.fixture(scope="session")
def load_example():
    """A function that imports a script of `examples`, to call its `main` in this process."""

    @functools.cache
    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def mlp():
    """A function that makes a small dense classifier with fixed layer names."""

    def make(units=16):
        return keras.Sequential(
            [
                keras.Input((8,), name="features"),
                keras.layers.Dense(units, activation="relu", name="hidden"),
                keras.layers.Dense(3, name="logits"),
            ],
            name="mlp",
        )

    return make


class Gan(keras.Model):
    """Trains the models in it with an optimizer for each, and is never called itself."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)], name="g")
        self.discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="d")

    def compile(self, d_opt, g_opt):
        super().compile(run_eagerly=True)
        self.d_opt, self.g_opt = d_opt, g_opt
        if keras.backend.backend() == "torch":
            self.built = True  # Else `fit` of Keras calls the model itself.

    def train_step(self, data):
        losses = (
            lambda made: keras.ops.mean(self.discriminator(made) - self.discriminator(data)),
            lambda made: -keras.ops.mean(self.discriminator(made)),
        )
        parts = (self.discriminator, self.d_opt), (self.generator, self.g_opt)
        for loss, (part, optimizer) in zip(losses, parts, strict=True):
            gradients = self._gradients(lambda: loss(self.generator(data[:, :2])), part)  # noqa: B023
            optimizer.apply(gradients, part.trainable_variables)
        return {"loss": 0.0}

    def _gradients(self, loss, part):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                value = loss()
            return tape.gradient(value, part.trainable_variables)
        self.zero_grad()
        loss().backward()
        return [variable.value.grad for variable in part.trainable_variables]


@pytest.fixture
def gan():
    """A GAN on TensorFlow or torch, whose `fit` takes a batch of four numbers each."""
    return Gan()


@pytest.fixture
def batches():
    """Inputs (64, 8) and labels (64,) in three classes that can be learned."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 8)).astype("float32")
    return x, np.argmax(x @ random.normal(size=(8, 3)), axis=1)


@pytest.fixture
def sparsify():
    """A function that sets a share of a model's matrices to a value, 0 unless told."""

    def fill(model, share=0.9, value=0.0):
        random = np.random.default_rng(0)
        for variable in model.trainable_variables:
            if len(variable.shape) >= 2:
                array = keras.ops.convert_to_numpy(variable).copy()
                array[random.random(array.shape) < share] = value
                variable.assign(array)
        return model

    return fill
