"""Import of packages that an extra brings, at the place where they are needed."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Imports an optional package.

    Args:
        module: Full name of the module.
        extra: The extra of keras-lp that brings it.

    Returns:
        The module.

    Raises:
        ImportError: If it cannot be imported, naming the package and the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs the package `{module.split('.')[0]}`, which the extra `{extra}` brings: "
            f"pip install 'keras-lp[{extra}]'. ({error})"
        ) from error
