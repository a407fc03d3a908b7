"""Ways to train a sparse model that `frontier.py` compares.

A method is a function of a task, a value of its one knob and a seed, and for some of a choice that
is made for the task. It trains a new model for as many epochs as the task has and returns it in
Keras 3. What is alike for all: the model and its start, the batch size, the learning rate of each
step and Adam's other settings. The losses of tf_keras are those of Keras 3, and so is its AdamW.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import keras
from keras import ops

import keras_lp
from keras_lp.optional import import_tf_keras, import_tfmot
from keras_lp.selection import is_decayed_by_default

# |w| of the coupled penalty is sqrt(w**2 + EPSILON**2), whose gradient is finite at 0 for p < 1.
EPSILON = 1e-6


@dataclass(frozen=True)
class Method:
    """A way to train a sparse model.

    Attributes:
        label: Name in tables and pictures.
        knob: What its value is: the strength of a decay, or the share of zeros to reach.
        train: Function of task, value and seed, and of the choice if there is one, that returns
            a trained Keras 3 model.
        choice: Name of the attribute of a `Setting` that it depends on besides, if any.
    """

    label: str
    knob: Literal["weight_decay", "sparsity"]
    train: Callable[..., keras.Model]
    choice: str | None = None


def new_model(task, seed):
    """The model that every method starts from."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    return task.make_model()


def fit(task, model, callbacks=()):
    """Trains a compiled model of either library, without looking at the validation data."""
    task.fit(model, callbacks, validation_data=None)


def train_with(make_optimizer, task, value, seed):
    """Trains with an optimizer, a function of the learning rate and the strength."""
    model = new_model(task, seed)
    task.compile(model, make_optimizer(task.schedule(), value))
    fit(task, model)
    return model


def steered(task, sparsity, seed):
    """LpAdamW with p = 0.8, whose strength `SparsityTarget` steers by its default settings."""
    model = new_model(task, seed)
    task.compile(model, keras_lp.LpAdamW(task.schedule()))
    fit(task, model, [keras_lp.SparsityTarget(sparsity)])
    return model


def one_shot(task, sparsity, seed, scope):
    """AdamW for half of the epochs, pruning by magnitude, AdamW on what is left for the others.

    The magnitudes are ranked over the scope. The optimizer goes on with its moments, and the data
    with the batches that come next.
    """

    def cut(epoch, logs):
        if epoch + 1 == task.epochs // 2:
            keras_lp.prune(model, sparsity, scope=scope)
            keras_lp.freeze_zeros(model)

    model = new_model(task, seed)
    task.compile(model, keras.optimizers.AdamW(task.schedule()))
    fit(task, model, [keras.callbacks.LambdaCallback(on_epoch_end=cut)])
    return model


def tfmot(task, sparsity, seed, shares):
    """TF-MOT's `prune_low_magnitude` on a `PolynomialDecay` from 0, under AdamW, in tf_keras.

    The shares are those of the steps at which it begins and ends. Its defaults hold: each layer
    gets the same sparsity, along a cubic curve, in updates 100 steps apart (closer where that
    would be less than ten updates).
    """
    tf_keras, api = import_tf_keras(), import_tfmot().sparsity.keras
    tf_keras.backend.clear_session()
    legacy = keras_lp.tfmot.to_tf_keras(new_model(task, seed))
    begin, end = (int(share * task.steps) for share in shares)
    frequency = max(1, min(100, (end - begin) // 10))
    end -= (end - begin) % frequency  # The last update is the one that reaches the target.
    schedule = api.PolynomialDecay(0.0, sparsity, begin, end, frequency=frequency)
    wrapped = api.prune_low_magnitude(legacy, schedule, pruning_policy=layers_with_kernels())
    wrapped.compile(
        tf_keras.optimizers.AdamW(task.schedule(tf_keras.optimizers.schedules)),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=task.jit_compile,
    )
    fit(task, wrapped, [api.UpdatePruningStep()])
    return keras_lp.tfmot.from_tf_keras(keras_lp.strip_pruning(wrapped))


def layers_with_kernels():
    """The policy under which TF-MOT prunes every layer of the tasks that has a decayed variable.

    Without one it refuses models in which there are also operations such as `x + y`.
    """
    tf_keras, api = import_tf_keras(), import_tfmot().sparsity.keras
    kinds = tf_keras.layers

    class LayersWithKernels(api.PruningPolicy):
        def allow_pruning(self, layer):
            known = (kinds.Conv2D, kinds.Dense, kinds.Embedding, kinds.MultiHeadAttention)
            return isinstance(layer, known)

        def ensure_model_supports_pruning(self, model):
            pass

    return LayersWithKernels()


class ProximalAdam(keras.optimizers.Adam):
    """Adam, then the proximal step of `strength * sum(|w|)` on the decayed variables.

    Formula: `w = sign(v) * max(|v| - learning_rate * strength, 0)`, where `v` is the weight
    after Adam's step: the soft threshold.
    """

    def __init__(self, learning_rate, strength):
        super().__init__(learning_rate)
        self.strength = strength

    def update_step(self, gradient, variable, learning_rate):
        """One step of Adam, followed by the soft threshold."""
        super().update_step(gradient, variable, learning_rate)
        if is_decayed_by_default(variable):
            threshold = ops.cast(learning_rate, variable.dtype) * self.strength
            left = ops.relu(ops.abs(variable) - threshold)
            self.assign(variable, ops.sign(variable) * left)


class Penalty(keras.regularizers.Regularizer):
    """`keras_lp.penalty` of a variable, with a finite gradient at 0."""

    def __init__(self, strength, p):
        self.strength = strength
        self.p = p

    def __call__(self, weights):
        """The penalty of one variable."""
        smooth = ops.sqrt(ops.square(weights) + EPSILON**2)
        return keras_lp.penalty(smooth, self.strength, self.p)


def coupled(p, task, strength, seed, cut):
    """Adam on the loss plus `keras_lp.penalty` of the decayed variables, then a cut.

    Nothing becomes exactly zero by the penalty: Adam's steps carry a weight past 0 and back. The
    cut is in learning rates of the first step.
    """
    model = new_model(task, seed)
    decayed = list(filter(is_decayed_by_default, model.trainable_variables))
    for variable in decayed:
        variable.regularizer = Penalty(strength, p)
    task.compile(model, keras.optimizers.Adam(task.schedule()))
    fit(task, model)
    for variable in decayed:  # It is no part of the loss that is measured.
        variable.regularizer = None
    keras_lp.prune(model, threshold=cut * task.learning_rate)
    return model


def lp_adamw(p):
    """LpAdamW at an exponent."""
    train = partial(train_with, partial(keras_lp.LpAdamW, p=p))
    return Method(f"LpAdamW, p = {p:g}", "weight_decay", train)


DENSE = Method("AdamW", "weight_decay", partial(train_with, keras.optimizers.AdamW))
METHODS = {
    "lp_adamw_0.5": lp_adamw(0.5),
    "lp_adamw_0.8": lp_adamw(0.8),
    "lp_adamw_1": lp_adamw(1),
    "lp_target": Method("LpAdamW, p = 0.8, SparsityTarget", "sparsity", steered),
    "one_shot": Method("one-shot and fine-tuning", "sparsity", one_shot, "one_shot_scope"),
    "tfmot": Method("TF-MOT, polynomial", "sparsity", tfmot, "tfmot_steps"),
    "proximal_l1": Method("proximal L1", "weight_decay", partial(train_with, ProximalAdam)),
    "coupled_lp": Method("coupled Lp, p = 0.8", "weight_decay", partial(coupled, 0.8), "cut"),
}
