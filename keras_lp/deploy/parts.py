"""What a model is made of, as Keras saves it, and the functions in it that no file can hold."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_lp.deploy.comparing import is_subclassed


def parts_of(model: keras.Model) -> list[Any]:
    """The model and everything in it that Keras saves by its config.

    Those are layers, layers within Keras's own layers, initializers, constraints and the like.
    What a subclassed model or a custom layer holds is not among them: its constructor makes it.
    """
    found: dict[int, Any] = {}
    rest = [model]
    while rest:
        part = rest.pop(0)
        if id(part) not in found:
            found[id(part)] = part
            rest += _members(part)
    return list(found.values())


def is_custom(part: Any) -> bool:
    """Whether the class of `part`, or a function, is not Keras's own."""
    named = part if hasattr(part, "__name__") else type(part)
    return not f"{named.__module__}.".startswith("keras.")


def lacks_config(kind: Any) -> bool:
    """Whether Keras would load models of a class wrongly or not at all, for lack of a config."""
    is_model = isinstance(kind, type) and issubclass(kind, keras.Model)
    return is_model and kind.get_config is keras.Model.get_config


def to_be_revived(kind: Any) -> Any:
    """The class or function for Keras to load a model with.

    Where a class lacks its config, one whose `from_config` calls the constructor without arguments.
    """
    if not lacks_config(kind):
        return kind

    class Constructing(kind):
        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            return kind()

    return Constructing


def custom_functions(part: Any) -> dict[str, Any]:
    """The functions that `part` holds and that are not Keras's own, by its attributes."""
    return {name: value for name, value in vars(part).items() if _is_custom_function(value)}


@contextlib.contextmanager
def named_functions(parts: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Gives every custom function in `parts` a name of its own as long as the context lasts.

    Keras saves a function by its name, which it looks for in modules, and a lambda by its code,
    without what the code reads in its module. Under these names, it finds the functions
    themselves. Whoever calls a part meanwhile calls the same function.

    Yields:
        The functions by their names, for `custom_objects` of `keras.models.load_model`.
    """
    held = [(part, *item) for part in parts for item in custom_functions(part).items()]
    names = [f"keras_lp_function_{number}" for number in range(len(held))]
    try:
        for name, (part, attribute, function) in zip(names, held, strict=True):
            vars(part)[attribute] = _under_the_name(name, function)
        yield {name: function for name, (_, _, function) in zip(names, held, strict=True)}
    finally:
        for part, attribute, function in held:
            vars(part)[attribute] = function


def _under_the_name(name: str, function: Any) -> Any:
    def named(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    named.__name__ = name
    return named


def _members(part: Any) -> list[Any]:
    """What `part` holds that Keras saves with it."""
    if is_subclassed(part) or (is_custom(part) and not isinstance(part, keras.Model)):
        return []
    members = [value for value in _values(vars(part)) if _has_config(value)]
    if isinstance(part, keras.Model):  # It holds optimizer, losses and metrics too.
        members = [value for value in members if isinstance(value, keras.Operation)]
    return members


def _values(value: Any) -> Iterator[Any]:
    """What is in nested containers."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _values(each)
    else:
        yield value


def _has_config(value: Any) -> bool:
    return hasattr(value, "get_config") and not isinstance(value, type)


def _is_custom_function(value: Any) -> bool:
    is_function = callable(value) and not isinstance(value, type) and not _has_config(value)
    return is_function and is_custom(value)
