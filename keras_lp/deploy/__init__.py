"""From a trained sparse model to a file that is small on a device."""

from keras_lp.deploy.comparing_files import TfliteComparison, TfliteFile, compare_tflite
from keras_lp.deploy.encoding_files import EncodedTflite, encode_tflite
from keras_lp.deploy.litert import ExportResult, export_tflite
from keras_lp.deploy.strip import strip_pruning

__all__ = [
    "EncodedTflite",
    "ExportResult",
    "TfliteComparison",
    "TfliteFile",
    "compare_tflite",
    "encode_tflite",
    "export_tflite",
    "strip_pruning",
]
