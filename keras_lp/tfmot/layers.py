"""A layer of one library, Keras 3 or tf_keras, made again in the other.

It is made from its config by the class of the same name. An argument that only one of the
libraries has is left out where it is at its default; anything else is an error, since the
layer would compute something else.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_lp.keras_internals import layers_of_applications
from keras_lp.optional import import_tf_keras
from keras_lp.tfmot.activations import activation_for_keras, activation_for_tf_keras
from keras_lp.tfmot.extra_layers import extra_layers

_NO_EFFECT = {
    *("autocast", "flash_attention", "implementation", "rng_type", "seed", "use_cudnn"),
    "trainable",  # It is set afterwards, where the constructor does not take it.
}
_IN_KWARGS = {"zero_output_for_mask"}  # of recurrent layers in tf_keras
# Which tf_keras takes, keeps as attributes and leaves out of its configs.
_NOT_IN_CONFIG = {"AlphaDropout": "noise_shape", "BatchNormalization": "synchronized"}
# They take their vocabularies as arguments, of which they make what tf_keras counts as weights.
LOOKUPS = {"IntegerLookup", "StringLookup", "TextVectorization"}
_KEEPS_IMAGES_LAST = {"data_format": "channels_last"}  # the same as to lack the argument


@dataclass(frozen=True)
class Direction:
    """From which library to which.

    Attributes:
        source: The package that the layers are of.
        target: The package that they are made in.
        source_name: What the source is called in messages.
        target_name: What the target is called in messages.
        activation: From the name of an activation to what the target takes, or to None.
        renamed: For each class the arguments that have another name in the target.
    """

    source: Any
    target: Any
    source_name: str
    target_name: str
    activation: Callable[[str], Any]
    renamed: Mapping[str, Mapping[str, str]]


def to_tf_keras_direction() -> Direction:
    """From Keras 3 to tf_keras."""
    renamed = {"LeakyReLU": {"negative_slope": "alpha"}}
    arguments = "Keras 3", "tf_keras", activation_for_tf_keras, renamed
    return Direction(keras, import_tf_keras(), *arguments)


def from_tf_keras_direction() -> Direction:
    """From tf_keras to Keras 3."""
    renamed = {"LeakyReLU": {"alpha": "negative_slope"}}
    arguments = "tf_keras", "Keras 3", activation_for_keras, renamed
    return Direction(import_tf_keras(), keras, *arguments)


def convert_layer(
    layer: Any,
    direction: Direction,
    custom_layers: Mapping[type, type],
    convert_model: Callable[[Any], Any],
) -> Any:
    """Makes a layer again, without its weights.

    Args:
        layer: A layer that is no model.
        direction: From which library to which.
        custom_layers: Classes of the source, with those of the target to take for them.
        convert_model: Makes a model again that the layer wraps.

    Raises:
        ValueError: If the class, or an argument that is not at its default, has no
            counterpart.
    """
    kind = custom_layers.get(type(layer)) or _counterpart(type(layer), direction)
    if kind is None and type(layer) is direction.source.layers.Lambda:
        source, target = (
            f"{one.__name__}.layers.Lambda" for one in (direction.source, direction.target)
        )
        raise ValueError(
            f"Layer {layer.name!r} of class {_full_name(type(layer))} computes a function that "
            f"was written for {direction.source_name}. If it computes in {direction.target_name} "
            f"too, as `x * 2` does, pass `custom_layers={{{source}: {target}}}`; if not, pass a "
            f"{direction.target_name} layer class of your own there, which gets `function` and "
            "`arguments` if its constructor takes them."
        )
    if kind is None:
        raise ValueError(
            f"Layer {layer.name!r} of class {_full_name(type(layer))} has no counterpart in "
            f"{direction.target_name}. Pass `custom_layers={{{type(layer).__name__}: ...}}` with "
            f"a {direction.target_name} layer of the same arguments and weights."
        )
    renamed = direction.renamed.get(type(layer).__name__, {})
    known, defaults = parameters(kind), parameters(type(layer))
    arguments = {}
    for name, value in _config(layer).items():
        if renamed.get(name, name) in known:
            arguments[renamed.get(name, name)] = _convert(
                name, value, layer, direction, custom_layers, convert_model
            )
        elif name in _IN_KWARGS and value:
            arguments[name] = value
        elif type(layer) is direction.source.layers.Lambda:
            continue  # The class that is given for it stands for the function too.
        elif not (_has_no_effect(name) or _is_default(name, value, defaults)):
            raise ValueError(
                f"Argument `{name}` of layer {layer.name!r} (class {_full_name(type(layer))}) "
                f"has no counterpart in {direction.target_name}. Leave it at its default, or "
                f"pass `custom_layers={{{type(layer).__name__}: ...}}`. Received: {name}={value!r}"
            )
    with errors_name(layer, direction, custom_layers):
        return kind(**arguments)


def _config(layer: Any) -> dict[str, Any]:
    """The arguments of a layer's constructor, by name."""
    config = dict(layer.get_config())
    kind = type(layer).__name__
    if kind == "Lambda":  # There the functions are bytes, and the mask is left out.
        names = ("function", "arguments", "mask")
        config = {key: config[key] for key in ("name", "trainable", "dtype")}
        config |= {name: getattr(layer, name, None) for name in names}
    if kind in LOOKUPS:
        config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
        del config["dtype"]  # It has no effect in Keras 3, and tf_keras takes no float everywhere.
    if kind == "Discretization" and keras.backend.is_int_dtype(layer.dtype):
        del config["dtype"]  # Of the outputs in tf_keras; Keras 3 makes integers of the inputs.
    missing = _NOT_IN_CONFIG.get(kind)
    if missing is not None and missing not in config:
        config[missing] = getattr(layer, missing)
    return config


@contextlib.contextmanager
def errors_name(
    layer: Any, direction: Direction, custom_layers: Mapping[Any, Any]
) -> Iterator[None]:
    """Makes a ValueError that names the layer, and the remedy, of what the target raises."""
    try:
        yield
    except Exception as error:
        name, given = type(layer).__name__, custom_layers.get(type(layer))
        remedy = (
            f"Pass `custom_layers={{{name}: ...}}`."
            if given is None
            else f"Mend or replace {_full_name(given)}, which `custom_layers` gives for it."
        )
        raise ValueError(
            f"Layer {layer.name!r} of class {_full_name(type(layer))} could not be made in "
            f"{direction.target_name}: {error}. {remedy}"
        ) from error


def parameters(kind: Any) -> dict[str, Any]:
    """Arguments that a constructor takes, those of its bases included, with their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            signature = inspect.signature(base.__init__).parameters.values()
            for parameter in signature:
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                    found.setdefault(parameter.name, parameter.default)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
                break
    return found


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _counterpart(kind: type, direction: Direction) -> Any:
    """The class of the same name, for a class that is the library's own."""
    if kind is direction.source.layers.Lambda:
        return None  # Its function is written for one of the libraries.
    extra, is_of_keras, name = extra_layers(), direction.source is keras, kind.__name__
    if is_of_keras and name in extra and kind.__module__.startswith("keras."):
        return extra[name]
    if getattr(direction.source.layers, name, None) is kind:
        return getattr(direction.target.layers, name, None)
    if not is_of_keras and extra.get(name) is kind:
        return getattr(keras.layers, name, None) or layers_of_applications()[name]
    return None


def _has_no_effect(name: str) -> bool:
    """Whether an argument changes nothing in what a layer with given weights computes."""
    return name in _NO_EFFECT or name.endswith("initializer")


def _is_default(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    if _KEEPS_IMAGES_LAST.get(name, inspect.Parameter.empty) == value:
        return True
    # What the constructor does not take says something else, such as the shapes seen.
    return name not in defaults or value == defaults[name]


def _convert(
    name: str,
    value: Any,
    layer: Any,
    direction: Direction,
    custom_layers: Mapping[type, type],
    convert_model: Callable[[Any], Any],
) -> Any:
    """The value of an argument, as the target takes it."""
    arguments = layer, direction, custom_layers, convert_model
    if name.endswith("activation") and value is not None:
        # A function of its own library is a name, one that was registered a description.
        known = value.get("config") if isinstance(value, dict) else value
        converted = direction.activation(known) if isinstance(known, str) else None
        if converted is None:
            raise ValueError(
                f"Argument `{name}` of layer {layer.name!r} is a function that "
                f"{direction.target_name} does not have. Put it into a layer of its own and pass "
                f"that in `custom_layers`. Received: {name}={value!r}"
            )
        return converted
    if name == "axis" and isinstance(value, (list, tuple)) and len(value) == 1:
        return value[0]  # tf_keras makes a list of an axis, and Keras 3 takes none of one.
    if isinstance(value, (list, tuple)):
        converted = [_convert(name, one, *arguments) for one in value]
        return tuple(converted) if isinstance(value, tuple) else converted
    if not (isinstance(value, dict) and "class_name" in value and "config" in value):
        return value
    if name == "dtype":
        return _dtype(layer)
    if name in ("layer", "backward_layer", "cell", "cells"):
        child = getattr(layer, name, None)
        # A bidirectional layer only copies it, and leaves it unbuilt.
        if isinstance(child, direction.source.layers.Layer) and child.built:
            return convert_model(child)
        child = direction.source.layers.deserialize(value)
        return convert_layer(child, direction, custom_layers, convert_model)
    for group in ("initializers", "regularizers", "constraints"):
        kind = getattr(getattr(direction.target, group), value["class_name"], None)
        if kind is not None:
            known = parameters(kind)
            return kind(**{key: one for key, one in value["config"].items() if key in known})
    if name.endswith("initializer"):
        return None  # The weights are copied.
    raise ValueError(
        f"Argument `{name}` of layer {layer.name!r} has no counterpart in "
        f"{direction.target_name}. Remove it before the conversion. Received: {name}={value!r}"
    )


def _dtype(layer: Any) -> str:
    """Name of the dtype policy; raises ValueError for one of a quantized layer."""
    policy = layer.dtype_policy
    if getattr(policy, "quantization_mode", None) is not None:
        raise ValueError(
            f"Layer {layer.name!r} is quantized, which tf_keras does not know. Convert the model "
            f"before `model.quantize`. Received: dtype={policy.name!r}"
        )
    return policy.name
