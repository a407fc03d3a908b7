"""Classes and functions of the caller's, in the process that converts under JAX and torch."""

import importlib
import importlib.util
import json
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_lp import export_tflite
from keras_lp.deploy.converting import convert
from keras_lp.deploy.custom_objects import custom_objects_of, import_object

needs_tensorflow = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow"
)

MODULE = """
import keras
from keras import layers, ops

FACTOR = 3.0


@keras.saving.register_keras_serializable("mine")
class Registered(layers.Layer):
    def call(self, x):
        return x * 2


class Plain(layers.Layer):
    def call(self, x):
        return x * 3


@keras.saving.register_keras_serializable("mine")
def registered(x):
    return ops.relu(x) * 2


def plain(x):
    return ops.relu(x) * 3


class Largest(keras.constraints.Constraint):
    def __call__(self, w):
        return ops.minimum(w, 2.0)


class Network(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.plain = layers.Dense(4, registered), Plain()

    def call(self, x):
        return self.plain(self.dense(x))


class WithArguments(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.units, self.dense = units, layers.Dense(units)

    def call(self, x):
        return self.dense(x)


class WithDefaults(WithArguments):
    def __init__(self, units=3):
        super().__init__(units)


def tripled(x):
    return x * FACTOR


class WithConfig(WithArguments):
    def __init__(self, units, **kwargs):
        keras.Model.__init__(self, **kwargs)
        self.units, self.dense = units, layers.Dense(units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in a package that is not installed."""
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(keras.saving.get_custom_objects())
    yield importlib.import_module("own_package.parts")
    for name in ("own_package", "own_package.parts"):
        del sys.modules[name]
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(before)


def of_own_parts(own):
    """A model with an own class or function in every place where there may be one."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            own.Registered(),
            layers.Dense(4, activation=own.registered),
            own.Plain(),
            layers.Dense(3, activation=own.plain, kernel_constraint=own.Largest()),
        ]
    )


EXAMPLE = 3.0  # of what a lambda reads in its module


def with_a_function(function):
    return keras.Sequential([keras.Input((4,)), layers.Lambda(function), layers.Dense(2)])


def called(model):
    model(np.zeros((1, 4), "float32"))
    return model


def config_of(model):
    return json.loads(json.dumps(keras.saving.serialize_keras_object(model)))


def test_objects_that_the_configuration_names_are_found_with_their_places(own):
    model = of_own_parts(own)
    objects = custom_objects_of(model, config_of(model))
    names = ("Plain", "plain", "Largest")
    assert objects == {
        **{f"mine>{name}": f"own_package.parts:{name}" for name in ("Registered", "registered")},
        **{name: f"own_package.parts:{name}" for name in names},
    }
    assert import_object(objects["plain"]) is own.plain
    assert import_object(objects["mine>Registered"]) is own.Registered


def test_parts_that_a_model_makes_itself_are_not_asked_for(own):
    model = called(own.Network())
    assert custom_objects_of(model, config_of(model)) == {"Network": "own_package.parts:Network"}


def test_model_of_keras_alone_needs_none():
    x = keras.Input((5, 4))
    y = layers.LSTM(3, kernel_regularizer="l2")(layers.MultiHeadAttention(2, 2)(x, x))
    model = keras.Model(x, layers.Dense(2, "relu")(y))
    assert custom_objects_of(model, config_of(model)) == {}


class OfTheScript(layers.Layer):
    def call(self, x):
        return x


@pytest.mark.backend("jax", "torch")
@pytest.mark.parametrize("place", ["__main__", "in a function"])
def test_class_that_cannot_be_imported_is_an_error_with_the_remedy(place, monkeypatch):
    class Local(layers.Layer):
        def call(self, x):
            return x

    monkeypatch.setattr(OfTheScript, "__module__", "__main__")
    own = OfTheScript() if place == "__main__" else Local()
    model = keras.Sequential([keras.Input((4,)), own, layers.Dense(2)])
    message = rf"to the top level of a module and import.*with .*{type(own).__name__}$"
    with pytest.raises(ValueError, match=message):
        convert(model)


@pytest.mark.backend("torch")
def test_module_of_torch_is_an_error_that_says_what_converts_it(tmp_path):
    import torch

    wrapper = layers.TorchModuleWrapper(torch.nn.Linear(4, 3))
    model = called(keras.Sequential([wrapper, layers.Dense(2)]))
    message = r"`litert-torch`.*`keras_lp\.encode_tflite\(.*layers torch_module_wrapper"
    with pytest.raises(ValueError, match=message):
        convert(model)


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.backend("jax", "torch")
def test_model_of_own_parts_is_exported(own, tmp_path):
    models = [of_own_parts(own), called(own.Network()), called(own.WithConfig(2))]
    for model in (*models, with_a_function(own.tripled)):
        assert export_tflite(model, tmp_path / "m.tflite").max_abs_error < 1e-5


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.backend("jax", "torch")
def test_constructor_that_keras_cannot_call_is_an_error_with_the_remedy(own):
    for kind in (own.WithArguments, own.WithDefaults):
        with pytest.raises(RuntimeError, match=r"`get_config` that returns .*`\*\*kwargs`"):
            convert(called(kind(2)))


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.backend("jax", "torch")
def test_lambda_that_reads_what_is_around_it_is_an_error_with_the_remedy():
    factors = np.ones(4, "float32")
    for function in (lambda x: x * EXAMPLE, lambda x: x * factors):
        with pytest.raises(RuntimeError, match=r"a function with a name, at the top level"):
            convert(with_a_function(function))
