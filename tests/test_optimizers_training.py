"""Ways of training with a model, each compared with the formula in NumPy float64.

An eager training records the gradients that reach the optimizer; what the weights should be
then follows from them. A compiled training is compared with the eager one.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_lp
from keras_lp import LpAdamW, LpSGD

LR, STRENGTH, P = 0.05, 0.1, 0.8


def numpy(value):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        value = tf.convert_to_tensor(value)  # from the rows of an embedding's gradient
    return np.array(ops.convert_to_numpy(value), dtype="float64")


class Recorded(LpSGD):
    """Keeps the gradients that it is given, by the path of the variable."""

    def apply(self, grads, trainable_variables=None):
        variables = trainable_variables or self._trainable_variables
        pairs = [(v.path, g) for v, g in zip(variables, grads, strict=True) if g is not None]
        self.records = [*getattr(self, "records", []), {path: numpy(g) for path, g in pairs}]
        return super().apply(grads, trainable_variables)


def follow(start, records, path, decayed=True):
    """Weights of one variable after SGD with the recorded gradients."""
    w = np.array(start, dtype="float64")
    for record in records:
        if path in record:
            with np.errstate(divide="ignore"):
                divisor = 1 + LR * STRENGTH * np.abs(w) ** (P - 2) if decayed else 1.0
            w = (w - LR * record[path]) / divisor
    return w


def values(model):
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in model.trainable_variables}


def fit(model, optimizer, data, eager=True, batch_size=16, epochs=2, **arguments):
    """Trains and returns the weights before and after."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, run_eagerly=eager, **arguments)
    before = values(model)
    model.fit(*data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return before, values(model)


def recorded(**arguments):
    return Recorded(LR, weight_decay=STRENGTH, p=P, **arguments)


def check_follows(before, after, records, undecayed=("bias",), rtol=1e-5, atol=2e-6):
    assert records
    for path, weights in after.items():
        decayed = not any(name in path for name in undecayed)
        expected = follow(before[path], records, path, decayed)
        np.testing.assert_allclose(weights, expected, rtol=rtol, atol=atol, err_msg=path)


def classifier(**arguments):
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="tanh", name="hidden", **arguments),
            layers.Dense(3, name="logits", dtype="float32"),
        ],
        name="net",
    )


def test_training_in_fit_follows_the_formula(batches):
    optimizer = recorded()
    check_follows(*fit(classifier(), optimizer, batches), optimizer.records)
    assert len(optimizer.records) == 8


@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_per_execution_give_the_same_weights(batches):
    results = []
    for steps in (1, 4):
        keras.utils.set_random_seed(0)
        optimizer = LpAdamW(LR, keras.optimizers.schedules.PolynomialDecay(0.5, 8, 0.0), p=P)
        _, after = fit(classifier(), optimizer, batches, eager=False, steps_per_execution=steps)
        results.append(after)
        assert int(optimizer.iterations) == 8
    for path in results[0]:
        np.testing.assert_allclose(results[0][path], results[1][path], rtol=1e-5, atol=1e-6)


def test_accumulated_gradients_in_fit_are_those_of_the_large_batch(batches):
    results = []
    for batch_size, steps in ((16, None), (4, 4)):
        keras.utils.set_random_seed(0)
        optimizer = LpAdamW(LR, STRENGTH, p=P, gradient_accumulation_steps=steps)
        _, after = fit(classifier(), optimizer, batches, eager=False, batch_size=batch_size)
        results.append(after)
    for path in results[0]:
        np.testing.assert_allclose(results[0][path], results[1][path], rtol=1e-4, atol=1e-5)


def test_mixed_bfloat16_decays_the_float32_weights(batches):
    optimizer = recorded()
    before, after = fit(classifier(dtype="mixed_bfloat16"), optimizer, batches)
    assert {w.dtype.name for w in after.values()} == {"float32"}
    check_follows(before, after, optimizer.records)


def test_mixed_float16_scales_the_loss_and_leaves_weights_alone_where_gradients_overflow(batches):
    x, y = batches
    model = classifier(dtype="mixed_float16")
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    before, after = fit(model, LpAdamW(LR, STRENGTH, p=P), batches, eager=False)
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(optimizer.inner_optimizer, LpAdamW)
    assert float(optimizer.inner_optimizer.weight_decay) == pytest.approx(STRENGTH)
    done = int(optimizer.iterations)
    assert done > 0
    assert any(np.abs(after[path] - before[path]).max() > 1e-3 for path in after)

    x = x.copy()
    x[0, 0] = np.inf
    model.fit(x[:16], y[:16], batch_size=16, verbose=0)
    for path, weights in values(model).items():
        np.testing.assert_array_equal(weights.view("uint32"), after[path].view("uint32"))
    assert int(optimizer.iterations) == done


def clipped(gradients, clipnorm=None, clipvalue=None, global_clipnorm=None):
    """Gradients of one step, clipped in NumPy."""
    norms = {path: np.sqrt(np.sum(g**2)) for path, g in gradients.items()}
    total = np.sqrt(sum(norm**2 for norm in norms.values()))
    if clipnorm:
        return {path: g * min(1, clipnorm / norms[path]) for path, g in gradients.items()}
    if global_clipnorm:
        return {path: g * min(1, global_clipnorm / total) for path, g in gradients.items()}
    return {path: np.clip(g, -clipvalue, clipvalue) for path, g in gradients.items()}


@pytest.mark.parametrize(
    "clip", [{"clipnorm": 0.05}, {"clipvalue": 0.01}, {"global_clipnorm": 0.05}]
)
def test_clipping_holds_for_gradients_and_not_for_the_decay(batches, clip):
    optimizer = recorded(**clip)
    before, after = fit(classifier(), optimizer, batches)
    records = [clipped(record, **clip) for record in optimizer.records]
    assert (
        np.abs(records[0]["net/hidden/bias"]).sum()
        < np.abs(optimizer.records[0]["net/hidden/bias"]).sum()
    )
    check_follows(before, after, records)


def test_frozen_layers_stay_bitwise_as_they_are(batches):
    model = classifier()
    model.get_layer("hidden").trainable = False
    frozen = [np.array(w) for w in model.get_layer("hidden").get_weights()]
    optimizer = recorded()
    check_follows(*fit(model, optimizer, batches), optimizer.records)
    for left, right in zip(frozen, model.get_layer("hidden").get_weights(), strict=True):
        np.testing.assert_array_equal(left.view("uint32"), right.view("uint32"))
    assert [v.path for v in model.optimizer.decayed_variables] == ["net/logits/kernel"]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_variable_without_a_gradient_is_not_decayed():
    random = np.random.default_rng(0)
    start = random.normal(size=(2, 4, 3)).astype("float32")
    variables = [keras.Variable(w, name="kernel") for w in start]
    optimizer = recorded()
    for _ in range(3):
        optimizer.apply([ops.convert_to_tensor(np.ones((4, 3), "float32")), None], variables)
    assert not np.allclose(numpy(variables[0]), start[0], atol=0.1)
    np.testing.assert_array_equal(ops.convert_to_numpy(variables[1]), start[1])


def test_all_rows_of_an_embedding_are_decayed_those_without_a_gradient_too():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(10, 5, name="embedding"),
            layers.Flatten(),
            layers.Dense(3, name="logits"),
        ],
        name="net",
    )
    random = np.random.default_rng(0)
    data = random.integers(0, 6, size=(32, 4)), random.integers(0, 3, size=32)
    optimizer = recorded()
    before, after = fit(model, optimizer, data)
    check_follows(before, after, optimizer.records)
    w = before["net/embedding/embeddings"][6:].astype("float64")
    for _ in optimizer.records:
        w = w / (1 + LR * STRENGTH * np.abs(w) ** (P - 2))
    np.testing.assert_allclose(after["net/embedding/embeddings"][6:], w, rtol=1e-5, atol=1e-7)


@pytest.mark.backend("tensorflow")
def test_gradient_of_an_embedding_as_rows_gives_what_a_dense_one_gives():
    import tensorflow as tf

    start = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    rows = tf.IndexedSlices(tf.ones((2, 3)), tf.constant([1, 4]), tf.constant([6, 3]))

    def train(gradient, compiled):
        variable = keras.Variable(start, name="embeddings")
        optimizer = LpAdamW(LR, STRENGTH, p=P)
        optimizer.build([variable])

        def step(gradient):
            optimizer.apply([gradient], [variable])

        step = tf.function(step) if compiled else step
        for _ in range(3):
            step(gradient)
        return numpy(variable)

    dense = tf.convert_to_tensor(rows)
    results = [train(each, compiled) for each in (rows, dense) for compiled in (False, True)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-6)
    assert np.all(np.abs(results[0][[0, 2, 3, 5]]) < np.abs(start[[0, 2, 3, 5]]))


def test_variable_that_its_gradient_replaces_is_replaced_and_not_decayed():
    kernel = keras.Variable(np.full((2, 3), 0.5, "float32"), name="kernel")
    scale = keras.Variable(np.full((2, 3), 0.5, "float32"), name="amax_history")
    scale.overwrite_with_gradient = True
    optimizer = LpAdamW(LR, 1.0, p=1, use_ema=True)
    new = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    optimizer.apply([ops.zeros((2, 3)), ops.convert_to_tensor(new)], [kernel, scale])
    np.testing.assert_array_equal(ops.convert_to_numpy(scale), new)
    np.testing.assert_allclose(ops.convert_to_numpy(kernel), 0.5 / (1 + LR / 0.5), rtol=1e-6)
    assert [v.name for v in optimizer.decayed_variables] == ["kernel"]


def test_adapters_of_lora_train_without_decay_and_the_kernel_stays(batches):
    model = classifier()
    model.get_layer("hidden").enable_lora(2)
    kernel = np.array(ops.convert_to_numpy(model.get_layer("hidden")._kernel))
    optimizer = recorded()
    before, after = fit(model, optimizer, batches)
    check_follows(before, after, optimizer.records, undecayed=("bias", "lora"))
    assert not before["net/hidden/lora_kernel_b"].any()
    assert after["net/hidden/lora_kernel_b"].all()
    frozen = ops.convert_to_numpy(model.get_layer("hidden")._kernel)
    np.testing.assert_array_equal(frozen, kernel)


class TrainsByHand(keras.Model):
    """A model with a training step of its own, on each backend as Keras documents it."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(16, activation="tanh", name="hidden")
        self.logits = layers.Dense(3, name="logits")

    def call(self, x, training=False):
        return self.logits(self.hidden(x))

    if keras.backend.backend() == "tensorflow":

        def train_step(self, data):
            import tensorflow as tf

            x, y = data
            with tf.GradientTape() as tape:
                loss = 2 * self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    elif keras.backend.backend() == "jax":

        def train_step(self, state, data):
            import jax

            trainable, fixed, slots, metrics = state
            x, y = data

            def loss_of(trainable):
                y_pred, _ = self.stateless_call(trainable, fixed, x, training=True)
                return 2 * self.compute_loss(x, y, y_pred)

            loss, gradients = jax.value_and_grad(loss_of)(trainable)
            trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
            return {"loss": loss}, (trainable, fixed, slots, metrics)

    else:

        def train_step(self, data):
            import torch

            x, y = data
            self.zero_grad()
            loss = 2 * self.compute_loss(y=y, y_pred=self(x, training=True))
            loss.backward()
            variables = self.trainable_variables
            with torch.no_grad():
                self.optimizer.apply([v.value.grad for v in variables], variables)
            return {"loss": loss}


def test_training_step_of_ones_own_follows_the_formula_and_compiles(batches):
    results = []
    for eager in (True, False):
        keras.utils.set_random_seed(0)
        model = TrainsByHand()
        model(batches[0][:1])
        optimizer = recorded() if eager else LpSGD(LR, weight_decay=STRENGTH, p=P)
        before, after = fit(model, optimizer, batches, eager=eager)
        if eager:
            check_follows(before, after, optimizer.records)
        results.append(list(after.values()))
    for left, right in zip(*results, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_loop_by_hand_with_a_gradient_tape_follows_the_formula(batches, jit_compile):
    import tensorflow as tf

    x, y = batches
    model = classifier()
    optimizer = LpSGD(LR, weight_decay=STRENGTH, p=P)
    optimizer.build(model.trainable_variables)
    before = values(model)
    records = []

    def step(x, y):
        with tf.GradientTape() as tape:
            error = keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
            loss = tf.reduce_mean(error)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return gradients

    if jit_compile is not None:
        step = tf.function(step, jit_compile=jit_compile)
    for begin in range(0, 64, 16):
        gradients = step(x[begin : begin + 16], y[begin : begin + 16])
        paths = [v.path for v in model.trainable_variables]
        records.append(dict(zip(paths, map(numpy, gradients), strict=True)))
    check_follows(before, values(model), records)


def test_moving_average_lasts_over_a_second_fit(batches):
    # On JAX, Keras's own optimizers give weight and average one buffer at the end of the first.
    x, y = batches
    model = classifier()
    optimizer = LpAdamW(LR, 0.5, p=0.5, use_ema=True, ema_momentum=0.5)
    fit(model, optimizer, batches, eager=False, epochs=10)
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert keras_lp.sparsity_report(model).sparsity > 0.1
