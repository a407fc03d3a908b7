"""TF-MOT's magnitude pruning, begun from the zeros that a decay has made.

`prune_low_magnitude` wraps the layers as TF-MOT does, and sets the masks to the zero pattern.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_lp.deploy.strip import masked_weights
from keras_lp.optional import import_tf_keras, import_tfmot, is_tf_keras_model
from keras_lp.selection import is_decayed_by_default
from keras_lp.tfmot.bridge import check_tf_keras_model, to_tf_keras


def prune_low_magnitude(
    model: Any,
    pruning_schedule: Any = None,
    *,
    custom_layers: Mapping[type, type] | None = None,
    **arguments: Any,
) -> Any:
    """Wraps a model by TF-MOT's pruning, whose masks are the zeros that the model has.

    Trained on with `tfmot.sparsity.keras.UpdatePruningStep` among the callbacks, every zero stays
    zero, and the schedule may add more. `keras_lp.strip_pruning` takes the wrappers off.

    Args:
        model: A built Keras 3 model, trained with the decay and stripped or not, which is
            turned into one of tf_keras; or a tf_keras model without wrappers, whose layers
            the result shares.
        pruning_schedule: A schedule of TF-MOT, such as
            `tfmot.sparsity.keras.PolynomialDecay(0.9, 0.95, begin_step=0, end_step=1000)`; a
            layer that is sparser than it asks for stays as it is. Defaults to `None`: the
            masks stay as they are.
        custom_layers: As in `keras_lp.tfmot.to_tf_keras`.
        **arguments: Of `tfmot.sparsity.keras.prune_low_magnitude`: `pruning_policy`, and
            `block_size`, `block_pooling_type` and `sparsity_m_by_n`, which concern what the
            schedule adds.

    Returns:
        A `tf_keras.Model` with wrapped layers, not compiled.

    Raises:
        TypeError: If `model` is a model of neither library, or an argument is of another kind.
        ValueError: If it cannot be turned into one of tf_keras, has wrappers already or layers
            that compute in half precision, or TF-MOT refuses it.
        ImportError: If TF-MOT is not installed (extra `deploy`).

    Example:
    >>> wrapped = keras_lp.tfmot.prune_low_magnitude(model)
    >>> wrapped.compile("adam", "sparse_categorical_crossentropy")
    >>> wrapped.fit(x, y, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    >>> small = keras_lp.strip_pruning(wrapped)
    """
    tfmot = import_tfmot()
    _check_arguments(tfmot.sparsity.keras, pruning_schedule, arguments)
    is_legacy = is_tf_keras_model(model)
    legacy = model if is_legacy else to_tf_keras(model, custom_layers)
    if is_legacy:
        check_tf_keras_model(legacy)
    policy = arguments.pop("pruning_policy", None)
    if policy is not None:
        policy.ensure_model_supports_pruning(legacy)
    clone = import_tf_keras().models.clone_model
    wrapped_by_tfmot = tfmot.sparsity.keras.prune_low_magnitude
    never = tfmot.sparsity.keras.ConstantSparsity(0.0, begin_step=0, end_step=0)

    def wrap(layer: Any) -> Any:
        if hasattr(layer, "layers"):
            return clone(layer, clone_function=wrap)
        masked = _masked_weights(layer, wrapped_by_tfmot)
        if not masked:
            return layer
        if layer.compute_dtype != layer.variable_dtype:
            raise ValueError(
                f"TF-MOT cannot mask layer {layer.name!r}, which computes in {layer.compute_dtype} "
                f"with weights in {layer.variable_dtype}. Set its dtype policy to 'float32' first. "
                f"Received: model={model.name!r}"
            )
        may_add = pruning_schedule is not None and (policy is None or policy.allow_pruning(layer))
        if not may_add:
            return wrapper_class()(layer, never, masked=masked)
        _check_blocks(layer, masked, arguments.get("block_size"))
        return wrapper_class()(layer, pruning_schedule, masked=masked, **arguments)

    made = clone(legacy, clone_function=wrap)
    for weight, mask in masked_weights(made):  # They become the zero pattern.
        mask.assign((weight.numpy() != 0).astype(mask.dtype.as_numpy_dtype))
    return made


def _check_arguments(api: Any, schedule: Any, arguments: Mapping[str, Any]) -> None:
    """Raises TypeError unless TF-MOT can take a schedule and the other arguments."""
    if not (schedule is None or isinstance(schedule, api.PruningSchedule)):
        raise TypeError(
            "Argument `pruning_schedule` must be an instance of a schedule of TF-MOT, such as "
            "`tfmot.sparsity.keras.ConstantSparsity(0.9, begin_step=0)`, or `None`. Received: "
            f"pruning_schedule={schedule!r}"
        )
    policy = arguments.get("pruning_policy")
    if not (policy is None or isinstance(policy, api.PruningPolicy)):
        raise TypeError(
            "Argument `pruning_policy` must be an instance of "
            f"`tfmot.sparsity.keras.PruningPolicy`. Received: pruning_policy={policy!r}"
        )
    known = {"pruning_policy", "block_size", "block_pooling_type", "sparsity_m_by_n"}
    for name in arguments.keys() - known:
        raise TypeError(
            f"Argument `{name}` is none of `tfmot.sparsity.keras.prune_low_magnitude`, which takes "
            f"{', '.join(sorted(known))}. Received: {name}={arguments[name]!r}"
        )


def _check_blocks(layer: Any, masked: Sequence[int], block_size: Any) -> None:
    """Raises ValueError for a weight one block wide or high; TF-MOT fails at it in `fit`."""
    if block_size is None or tuple(block_size) == (1, 1):
        return
    for weight in (layer.weights[position] for position in masked):
        sizes = tuple(weight.shape)
        if len(sizes) != 2 or any(map(operator.le, sizes, block_size)):
            raise ValueError(
                "Argument `block_size` needs 2-D weights of several blocks in each direction. "
                "Choose smaller blocks, or leave the layer out by a `pruning_policy`. Received: "
                f"block_size={tuple(block_size)}, and weights of shape {sizes} in layer "
                f"{layer.name!r}"
            )


def _masked_weights(layer: Any, wrapped_by_tfmot: Any) -> list[int]:
    """Positions of the weights that TF-MOT masks, and of those that have zeros to be kept."""
    try:
        wrapped_by_tfmot(layer)  # It gives the layer a method that names the weights.
        known = list(layer.get_prunable_weights())
    except ValueError:  # A layer that TF-MOT does not support.
        known = []
    masked = {id(weight) for weight in (*known, *_weights_with_zeros(layer))}
    return [position for position, weight in enumerate(layer.weights) if id(weight) in masked]


def _weights_with_zeros(layer: Any) -> list[Any]:
    decayed = filter(is_decayed_by_default, layer.trainable_weights)
    return [weight for weight in decayed if np.any(weight.numpy() == 0)]


@functools.cache
def wrapper_class() -> Any:
    """TF-MOT's wrapper of a layer, but no zero of a mask ever goes."""
    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    # TF-MOT names its class nowhere in public.
    base: Any = type(tfmot.sparsity.keras.prune_low_magnitude(tf_keras.layers.Dense(1)))

    # By the name of the class both call the wrappers: "prune_low_magnitude_dense".
    @tf_keras.saving.register_keras_serializable("keras_lp")
    class PruneLowMagnitude(base):
        """Masks weights of a layer, by their positions; other arguments are those of TF-MOT."""

        def __init__(self, layer: Any, *arguments: Any, masked: Any, **named: Any) -> None:
            # TF-MOT asks the layer, once it is built.
            layer.get_prunable_weights = lambda: [layer.weights[one] for one in masked]
            super().__init__(layer, *arguments, **named)
            self._masked = list(masked)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "masked": self._masked}

        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self.pruning_obj.conditional_mask_update = functools.partial(
                _add_zeros, self.pruning_obj.conditional_mask_update, self
            )

    return PruneLowMagnitude


def _add_zeros(update: Callable[[], Any], wrapper: Any) -> Any:
    """Updates the masks as TF-MOT does, and puts the zeros back that they had."""
    import tensorflow as tf

    # The optimizer's last step has moved masked weights too. TF-MOT would choose from those.
    wrapper.pruning_obj.weight_mask_op()
    masks = [mask for _, mask, _ in wrapper.pruning_vars]
    before = [tf.identity(mask) for mask in masks]
    update()
    return tf.group([mask.assign(mask * old) for mask, old in zip(masks, before, strict=True)])
