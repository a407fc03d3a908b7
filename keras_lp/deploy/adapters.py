"""LoRA taken out of a saved model.

Keras saves a kernel with the product of its adapters added, and loads it under adapters that are
all zeros, which never train.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

_CONFIG = "config.json"  # in a `.keras` file


def take_out_adapters(path: Path) -> None:
    """Lets a `.keras` file be loaded with plain layers in place of those with LoRA.

    Only what is in the config of Keras's own layers: a layer of one's own that makes adapters
    in its constructor gets them again.
    """
    plain = path.with_suffix(".plain")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(plain, "w") as target:
        for item in source.infolist():
            with source.open(item) as read, target.open(item, "w") as written:
                if item.filename == _CONFIG:
                    written.write(json.dumps(_without_adapters(json.load(read))).encode())
                else:
                    shutil.copyfileobj(read, written)
    os.replace(plain, path)


def _without_adapters(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_adapters(one) for one in value]
    if not isinstance(value, dict):
        return value
    is_layer = value.get("module") == "keras.layers" and isinstance(value.get("config"), dict)
    value = {key: _without_adapters(one) for key, one in value.items()}
    if is_layer:
        for name in ("lora_rank", "lora_alpha"):
            value["config"].pop(name, None)
    return value
