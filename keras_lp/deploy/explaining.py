"""What TensorFlow's converter and LiteRT say, in other words: where it is, and what to do."""

import re
import signal
from collections.abc import Iterable

import keras

from keras_lp.deploy.operations import ForeignOperation, has_sparse_int8
from keras_lp.deploy.sublayers import within

_SIZES = (
    "give the model the sizes that it leaves open, with `inputs = keras.Input(shape)`, and export "
    "`keras.Model(inputs, model(inputs))`"
)
_OTHER_INT8 = '`quantization="dynamic"`, int8 weights alone, or `quantization="float16"`'
_ELSEWHERE = "do that part before or after the model, or by other operations of `keras.ops`"
_SPARSE_INT8 = (
    "LiteRT's default interpreter takes no sparse int8 weights. Pass `sparse=False` to the export, "
    'where gzip makes the zeros small on the way, or `quantization="float16"` with sparse weights, '
    'or `runtime="no_delegate"` for applications that turn the default delegate off. '
)
_DELEGATE = (
    'LiteRT\'s default delegate XNNPACK does not take it. Pass `runtime="no_delegate"`, for '
    "applications that turn it off. "
)
_QUANTIZED = (
    "Keras has quantized layers of the model ({}), in a way that LiteRT does not take. Export the "
    'model as it was before `quantize`, with `quantization="dynamic"` or `"int8"`. '
)
# What to do, by a part of what is said while TensorFlow follows the calls of the model.
_OF_CALLS = (
    (
        r"deserialized|__init__\(\)|could not be loaded",
        "The process that converts makes the model anew, as Keras loads it: its class needs a "
        "`get_config` that returns what the constructor was given, and a constructor that takes "
        "`**kwargs`. ",
    ),
    (
        r"name '\w+' is not defined|got \{'class_name'",
        "The process that converts gets the code of a `lambda` without what it reads around it. "
        "Give the layer a function with a name, at the top level of a module that is imported. ",
    ),
    (
        r"has type b?float\d+ that does not match type b?float\d+",
        "The file computes in float32, and a layer has made a constant in another precision, such "
        "as its `compute_dtype`, in `__init__` or `build`. Cast it in `call`, "
        "`keras.ops.cast(constant, x.dtype)`. ",
    ),
    (
        r"missing .*required .*argument",
        "The inputs of a file are one structure. Make `a = keras.Input(shape)` for each argument "
        "and export `keras.Model([a, b], model(a, b))`. ",
    ),
    (r"statically known", f"A layer needs sizes that are fixed: {_SIZES}. "),
    (
        r"time dimension is undefined",
        f"For int8 a recurrent layer needs a length that is fixed: {_SIZES}. Or take "
        f"{_OTHER_INT8}. ",
    ),
    (
        r"for int8 was ended by",
        "TensorFlow ends the process where it calibrates some loops, such as `keras.ops.map` or a "
        f"recurrent layer of your own. Take {_OTHER_INT8}. ",
    ),
)
# What to do about operations that LiteRT does not have, by a part of their names.
_OF_OPERATIONS = (
    (r"TensorList|StridedSlice", f"They need sizes that are fixed: {_SIZES}"),
    (
        r"BitwiseAnd",
        "For `keras.ops.argmax` take `keras.ops.top_k(x, 1)[1]`, or look for the largest output "
        "after the model",
    ),
    (
        r"Conv\dDBackpropInput",
        "A dilated transposed convolution is a convolution of the same `dilation_rate`, whose "
        "kernel is flipped, with its last two axes swapped",
    ),
    (r"Table|String|Regex|Bincount", "Look words and numbers up before the model"),
    (r"PyFunc", "What runs in Python does not go into a file. Use `keras.ops`"),
    (r"", f"If they are not to be had otherwise, {_ELSEWHERE}"),
)
_PRECISIONS = {"FLOAT16": "float16", "BFLOAT16": "bfloat16", "FLOAT64": "float64"}
_ESCAPES = re.compile(r"\x1b\[\d+m")
_CALLING = re.compile(r"Exception encountered when calling (\w+)\.call\(\)\.\s*(.*)")
_MLIR = re.compile(r"error: loc\(.*\)+: (.*)")
_LOCATION = re.compile(r'fused\["(\w+):", "([^"@]+)')


def of_conversion(said: str, model: keras.Model) -> str:
    """What to do about a conversion that failed, and what was said of it in one line."""
    said = _ESCAPES.sub("", said)
    return f"{_advice(said, model)}The converter said: {_essence(said)}"


def of_ending(code: int, stderr: str, quantization: str | None) -> str:
    """What a process that converts and ended without an error would have said."""
    last = (stderr.strip().splitlines() or [f"exit code {code}"])[-1]
    if code >= 0:
        return f"the process, which needs the extra `tensorflow`, ended with {last}"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return f"the process was ended by {name}, as the system does where memory runs out"
    return f"the process that converts for {quantization or 'float32'} was ended by {name}"


def of_foreign(operations: Iterable[ForeignOperation], model: keras.Model | None) -> str:
    """Which operations in a file only TensorFlow knows, and what to do."""
    places = dict.fromkeys(f"{each.name} {_where(each.place, model)}" for each in operations)
    return (
        f"It has operations that only TensorFlow knows: {', '.join(places)}. "
        f"{_advice_on_operations(operations)}"
    )


def of_loading(data: bytes, said: str) -> str:
    """What to do about a file that LiteRT does not load, and what LiteRT said."""
    try:
        advice = _SPARSE_INT8 if has_sparse_int8(data) else ""
    except Exception:  # Of any kind, as the bytes may be anything.
        advice = "It is no .tflite file, or damaged. "
    return f"{advice}LiteRT said: {said}" if advice else of_running(said)


def of_running(said: str) -> str:
    """What to do about a file that LiteRT loads and does not run, and what LiteRT said."""
    # XNNPACK looks at a file when it is loaded, and again where sizes change.
    return f"{_DELEGATE if 'delegate' in said else ''}LiteRT said: {said}"


def _advice(said: str, model: keras.Model) -> str:
    location = _operation_in(said)
    quantized = sorted({layer.quantization_mode for layer in within(model)} - {None})
    if quantized and location:
        return _QUANTIZED.format(", ".join(quantized))
    if re.search(r"symbolic|interpreted as an integer", said, re.IGNORECASE):
        return _advice_on_values(said)
    for part, advice in _OF_CALLS:
        if re.search(part, said):
            return advice
    if location:
        name, place = location
        operation = ForeignOperation(name, place, frozenset())
        where = _where(place, model)
        return f"LiteRT lacks {name} {where}. {_advice_on_operations([operation])}. "
    return ""


def _advice_on_values(said: str) -> str:
    """Of a layer that wants the values of a tensor while TensorFlow follows its calls."""
    calling = _CALLING.search(said)
    name = calling[1] if calling else ""
    if hasattr(keras.layers, name):
        return f"{name} needs sizes that are fixed: {_SIZES}. "
    return (
        f"{name or 'A layer'} looks at the values of a tensor, with a Python `if` or `range`, "
        "NumPy or another framework, which do not go into a file. Use `keras.ops` in its place, "
        "such as `keras.ops.where`. "
    )


def _advice_on_operations(operations: Iterable[ForeignOperation]) -> str:
    dtypes = {dtype for each in operations for dtype in each.dtypes} & set(_PRECISIONS)
    if dtypes:
        precisions = " and ".join(_PRECISIONS[dtype] for dtype in sorted(dtypes))
        return (
            f"They compute in {precisions}. Cast to float32 there, and build layers whose weights "
            "are in another precision anew in float32, with `set_weights`. Otherwise "
            f"{_ELSEWHERE}"
        )
    names = " ".join(each.name for each in operations)
    return next(advice for part, advice in _OF_OPERATIONS if re.search(part, names))


def _operation_in(said: str) -> tuple[str, str] | None:
    """Name and place of the operation that the converter complains of."""
    found = ((match[1], match[2]) for match in _LOCATION.finditer(said))
    return next((pair for pair in found if "PartitionedCall" not in pair[0]), None)


def _where(place: str, model: keras.Model | None) -> str:
    """In which layer an operation is, by the names around its own."""
    layers = set() if model is None else {layer.name for layer in within(model)} - {model.name}
    *around, _ = place.split("/")
    for name in reversed(around):
        # TensorFlow appends a number to each name that it has had before.
        for candidate in (re.sub(r"_\d+$", "", name), name):
            if candidate in layers:
                return f"in layer {candidate!r}"
    return "at the end of the model" if "PartitionedCall" in place else "in the model itself"


def _essence(said: str) -> str:
    """The sentence of a long message that tells what is wrong."""
    if complaint := _MLIR.search(said):
        return complaint[1]
    if calling := _CALLING.search(said):
        return f"{calling[1]}: {_first_sentence(calling[2])}"
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing"]
    telling = lines[-1] if lines[0].startswith("in user code") else lines[0]
    return next((line for line in lines if "Could not locate" in line), _first_sentence(telling))


def _first_sentence(line: str) -> str:
    return line.partition(". ")[0]
