import gc
import warnings
import weakref

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, freeze_zeros, prune, unfreeze_zeros
from keras_lp.sparsity import torch_steps

ways_to_run = pytest.mark.parametrize(
    "compiling",
    [
        pytest.param({"jit_compile": True}, id="jit"),
        pytest.param({"jit_compile": False}, id="graph", marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, id="eager"),
    ],
)


@pytest.fixture
def mlp():
    """A function that makes a classifier without units that are dead, whose weights all train."""

    def make():
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="tanh", name="hidden"),
                keras.layers.Dense(3, name="logits"),
            ]
        )

    return make


def numpy(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def compile_and_fit(model, optimizer, batches, **compiling):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **compiling)
    fit(model, batches)


def fit(model, batches):
    model.fit(*batches, batch_size=16, epochs=2, verbose=0)


def zeros(model):
    return [numpy(v) == 0 for v in model.trainable_variables if v.name == "kernel"]


def assert_kept(model, pattern):
    """The zeros are those of the pattern, and everything else has trained."""
    for now, then in zip(zeros(model), pattern, strict=True):
        np.testing.assert_array_equal(now, then)


@ways_to_run
def test_zeros_stay_zero_under_any_optimizer_and_the_rest_trains(mlp, batches, compiling):
    model = mlp()
    prune(model, 0.3)
    pattern, before = zeros(model), [numpy(v) for v in model.trainable_variables]
    freeze_zeros(model)
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches, **compiling)
    assert_kept(model, pattern)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.mean((old != numpy(new)) | (old == 0)) > 0.8  # a unit may have lost its way out


@ways_to_run
def test_model_that_has_trained_takes_notice(mlp, batches, compiling):
    model = mlp()
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches, **compiling)
    prune(model, 0.3)
    pattern = zeros(model)
    freeze_zeros(model)
    fit(model, batches)
    assert_kept(model, pattern)
    unfreeze_zeros(model)
    fit(model, batches)
    assert not any(now.any() for now in zeros(model))


def test_zeros_stay_zero_under_a_decay_with_reference_updated(mlp, batches):
    model = mlp()
    prune(model, 0.3)
    freeze_zeros(model)
    pattern = zeros(model)
    compile_and_fit(model, LpAdamW(1e-2, 1e-6, p=0.5, reference="updated"), batches)
    assert all(now[then].all() for now, then in zip(zeros(model), pattern, strict=True))


def test_constraint_of_a_variable_holds_too_and_comes_back(mlp, batches):
    model = mlp()
    kernel = model.get_layer("hidden").kernel
    kernel.constraint = keras.constraints.NonNeg()
    own = kernel.constraint
    prune(model, 0.3)
    pattern = numpy(kernel) == 0
    freeze_zeros(model)
    freeze_zeros(model)  # Twice is as once.
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    assert (numpy(kernel) >= 0).all()
    assert (numpy(kernel)[pattern] == 0).all()
    unfreeze_zeros(model)
    assert kernel.constraint is own
    assert model.get_layer("logits").kernel.constraint is None


def test_pattern_is_frozen_anew_after_loading(mlp, batches, tmp_path):
    model = mlp()
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    prune(model, 0.3)
    freeze_zeros(model)
    fit(model, batches)
    pattern = zeros(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    freeze_zeros(loaded)
    fit(loaded, batches)
    assert_kept(loaded, pattern)


def test_frozen_model_is_stripped_to_a_plain_one(mlp, batches):
    model = mlp()
    prune(model, 0.3)
    freeze_zeros(model)
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    stripped = keras_lp.strip_pruning(model)
    assert all(v.constraint is None for v in stripped.variables)
    assert_kept(stripped, zeros(model))


def test_excluded_variables_train_on(mlp, batches):
    model = mlp()
    prune(model, 0.3)
    freeze_zeros(model, exclude="logits")
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    hidden, logits = zeros(model)
    assert hidden.any()
    assert not logits.any()


def test_what_is_no_model_is_an_error():
    for function in (freeze_zeros, unfreeze_zeros):
        with pytest.raises(TypeError, match=r"`model` must be a Keras 3 model"):
            function("model.keras")


@pytest.fixture
def no_others(monkeypatch):
    """No pattern of another test's model is kept."""
    monkeypatch.setattr(torch_steps, "_patterns", weakref.WeakValueDictionary())
    monkeypatch.setattr(torch_steps, "_handles", [])


@pytest.mark.backend("torch")
@pytest.mark.usefixtures("no_others")
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "RMSprop"])
def test_zeros_stay_zero_under_an_optimizer_of_torch(mlp, batches, kind):
    import torch

    model, (x, y) = mlp(), batches
    arguments = {"momentum": 0.9} if kind != "AdamW" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), 0.01, weight_decay=0.1, **arguments)

    def train():
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), torch.as_tensor(y)).backward()
            optimizer.step()

    train()  # The optimizer has momenta for weights that are zero later.
    prune(model, 0.5)
    pattern, before = zeros(model), numpy(model.get_layer("hidden").kernel)
    freeze_zeros(model)
    freeze_zeros(model)  # Twice is as once.
    train()
    assert_kept(model, pattern)
    assert not any(np.signbit(numpy(v))[numpy(v) == 0].any() for v in model.trainable_variables)
    assert np.mean(numpy(model.get_layer("hidden").kernel) != before) > 0.4
    unfreeze_zeros(model)
    train()
    assert not any(now.any() for now in zeros(model))
    assert not torch_steps._patterns
    assert not torch_steps._handles


@pytest.mark.backend("torch")
@pytest.mark.usefixtures("no_others")
def test_torch_optimizers_of_other_models_are_left_alone(mlp, batches):
    import torch

    frozen, other = mlp(), mlp()
    for model in (frozen, other):
        prune(model, 0.5)
    freeze_zeros(frozen)
    optimizer = torch.optim.Adam(other.parameters(), 0.01)
    torch.nn.functional.cross_entropy(other(batches[0]), torch.as_tensor(batches[1])).backward()
    optimizer.step()
    assert not zeros(other)[0].all(axis=0).any()
    assert np.sum(zeros(other)[0]) < np.sum(zeros(frozen)[0])
    del frozen, model
    gc.collect()
    assert not torch_steps._patterns  # It keeps no model alive.


def descend(model, after=lambda variable, new: new):
    """Trains a model without an optimizer of Keras, as another library would."""
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        step = random.normal(size=variable.shape).astype("float32")
        variable.assign(after(variable, numpy(variable) - step))


def test_report_warns_where_frozen_zeros_are_gone_and_the_documented_line_keeps_them(mlp):
    model = mlp()
    prune(model, 0.5)
    pattern = zeros(model)
    freeze_zeros(model)
    descend(model, after=lambda v, w: v.constraint(w) if v.constraint else w)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*freeze_zeros")
        keras_lp.sparsity_report(model)
    assert_kept(model, pattern)
    descend(model)
    with pytest.warns(
        UserWarning, match=r"^88 zeros that `freeze_zeros` was to keep are gone from"
    ):
        keras_lp.sparsity_report(model)
    freeze_zeros(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*freeze_zeros")
        keras_lp.sparsity_report(model)


def test_zeros_stay_zero_in_a_loop_of_ones_own_with_an_optimizer_of_keras(mlp):
    model = mlp()
    prune(model, 0.5)
    pattern = zeros(model)
    freeze_zeros(model)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    for _ in range(3):
        gradients = [keras.ops.ones(v.shape) for v in model.trainable_variables]
        optimizer.apply(gradients, model.trainable_variables)
    assert_kept(model, pattern)


@pytest.mark.backend("jax")
def test_documented_line_keeps_zeros_in_a_compiled_step(mlp):
    import jax

    model = mlp()
    prune(model, 0.5)
    pattern = zeros(model)
    freeze_zeros(model)
    variables = model.trainable_variables

    @jax.jit
    def step(params, moments):
        moments = [0.9 * m + 1.0 for m in moments]
        params = [w - 0.1 * m for w, m in zip(params, moments, strict=True)]
        params = [
            v.constraint(w) if v.constraint else w for v, w in zip(variables, params, strict=True)
        ]
        return params, moments

    params = [v.value for v in variables]
    moments = [keras.ops.ones(v.shape) for v in variables]
    for _ in range(3):
        params, moments = step(params, moments)
    for variable, param in zip(variables, params, strict=True):
        assert np.all(numpy(param) != numpy(variable)) or variable.constraint
        variable.assign(param)
    assert_kept(model, pattern)


def test_adapters_train_and_what_they_are_added_to_keeps_its_zeros(mlp, batches):
    model = mlp()
    prune(model, 0.5)
    model.get_layer("hidden").enable_lora(2)
    hidden = numpy(model.get_layer("hidden")._kernel)
    pattern = zeros(model)
    freeze_zeros(model)
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    assert_kept(model, pattern)
    assert np.mean(numpy(model.get_layer("hidden").lora_kernel_b) != 0) > 0.7
    np.testing.assert_array_equal(model.get_layer("hidden")._kernel, hidden)
    model.get_layer("logits").enable_lora(2)
    freeze_zeros(model)  # Nothing is left to freeze, and that is no error.


def test_quantized_kernels_are_left_alone(mlp):
    model = mlp()
    prune(model, 0.5)
    model.quantize("int8", filters="hidden")
    freeze_zeros(model)
    assert [v.constraint is not None for v in model.weights if v.name == "kernel"].count(True) == 1
    model.quantize("int8", filters="logits")
    freeze_zeros(model)
