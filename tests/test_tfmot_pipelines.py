"""From Lp zeros through the real TF-MOT to a `.tflite` file that runs and is still sparse."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from deployable import outputs_in_litert
from keras import layers

import keras_lp
from keras_lp.optional import import_tfmot
from keras_lp.tfmot import from_tf_keras, prune_low_magnitude, to_tf_keras

tf_keras = pytest.importorskip("tf_keras")
tfmot = import_tfmot()

pytestmark = pytest.mark.backend("tensorflow")

ROOT = Path(__file__).parent.parent
CLUSTERS = 8


def images(shape, random):
    """Noisy images (256, *shape) of four classes, each with a picture of its own."""
    labels = random.integers(0, 4, 256)
    pictures = random.uniform(size=(4, *shape))
    noise = random.uniform(size=(256, *shape))
    return (0.7 * pictures[labels] + 0.3 * noise).astype("float32"), labels


@pytest.fixture(scope="module")
def data():
    return images((8, 8, 1), np.random.default_rng(0))


@pytest.fixture(scope="module")
def sparse(data):
    """A Keras 3 model that a short training with LpAdamW has made sparse."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv_a"),
            layers.Conv2D(16, 3, activation="relu", name="conv_b"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, "relu", name="hidden"),
            layers.Dense(4, name="logits"),
        ],
        name="net",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_lp.LpAdamW(1e-2, weight_decay=0.2), loss)
    model.fit(*data, batch_size=16, epochs=10, verbose=0)
    model = keras_lp.strip_pruning(model)
    assert 0.8 < keras_lp.sparsity_report(model).sparsity < 0.95
    return model


def fit(model, data, callbacks=(), epochs=2, rate=1e-3):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    options = {"batch_size": 16, "epochs": epochs, "verbose": 0}
    return model.fit(*data, callbacks=list(callbacks), **options).history


def clustered(legacy):
    """The model under wrappers that keep its zeros; they take its layers for their own."""
    # Public TF-MOT clusters without regard to zeros; its guide imports this one so.
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    return cluster.cluster_weights(
        legacy,
        number_of_clusters=CLUSTERS,
        cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        preserve_sparsity=True,
    )


def quantized(legacy):
    """A copy of the model that trains with int8 weights and keeps its zeros."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(legacy)
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def convert(legacy, path, int8=False):
    """The `.tflite` file that TensorFlow's converter makes of a tf_keras model."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(legacy)
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path.write_bytes(converter.convert())
    return path


def kernels(model):
    """The weights with several axes, as arrays in the order of axes that files have."""
    return [np.moveaxis(a, -1, 0) for a in model.get_weights() if a.ndim > 1]


def kernels_in(path, dtype):
    """The weights with several axes in a file, by shape; of sparse ones the stored values.

    Those in int8 are given less their zero points.
    """
    from ai_edge_litert import schema_py_generated as schema

    types = {np.float32: schema.TensorType.FLOAT32, np.int8: schema.TensorType.INT8}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    found = {}
    for tensor in model.subgraphs[0].tensors:
        stored = model.buffers[tensor.buffer].data
        # Integers of 32 bits are what an operation is told, such as the widths of a padding.
        if stored is None or len(tensor.shape) < 2 or tensor.type == schema.TensorType.INT32:
            continue
        assert tensor.type == types[dtype]
        array = np.frombuffer(bytes(stored), dtype)
        if tensor.sparsity is None:
            array = array.reshape(tensor.shape)
        if dtype is np.int8:
            (zero_point,) = set(tensor.quantization.zeroPoint.tolist())
            array = array.astype("int32") - zero_point
        assert tuple(tensor.shape) not in found
        found[tuple(tensor.shape)] = array
    return found


def check_dense_file(stripped, x, folder):
    """TensorFlow's converter keeps the outputs and each zero; returns the path of the file."""
    path = convert(stripped, folder / "dense.tflite")
    check_outputs(path, stripped, x)
    found = kernels_in(path, np.float32)
    assert len(found) == len(kernels(stripped))
    for kernel in kernels(stripped):
        np.testing.assert_array_equal(found[kernel.shape] == 0, kernel == 0)
    return path


def check_sparse_file(stripped, x, folder, **settings):
    """So does the way back to Keras 3, and the file stores fewer zeros; returns its path."""
    model, path = from_tf_keras(stripped), folder / "sparse.tflite"
    keras_lp.export_tflite(model, path, **settings)
    check_outputs(path, stripped, x)
    found = kernels_in(path, np.float32)
    assert len(found) == len(kernels(stripped))
    for kernel in kernels(stripped):
        assert np.count_nonzero(found[kernel.shape]) == np.count_nonzero(kernel)
    assert sum(a.size for a in found.values()) < sum(a.size for a in kernels(stripped))
    return path


def check_outputs(path, legacy, x):
    np.testing.assert_allclose(outputs_in_litert(path, x), legacy(x).numpy(), rtol=1e-4, atol=1e-4)


def check_zeros_stay(before, after):
    for old, new in zip(kernels(before), kernels(after), strict=True):
        assert np.any(old == 0)
        assert np.all(new[old == 0] == 0)


def test_dense_layers_trained_on_under_masks_become_a_sparse_file(data, tmp_path):
    x, labels = data
    x = x.reshape(len(x), -1)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(4)])
    keras_lp.prune(model, 0.9)
    wrapped = prune_low_magnitude(model)
    fit(wrapped, (x, labels), [tfmot.sparsity.keras.UpdatePruningStep()], epochs=1)
    stripped = keras_lp.strip_pruning(wrapped)
    for old, new in zip(kernels(model), kernels(stripped), strict=True):
        np.testing.assert_array_equal(new == 0, old == 0)
        assert not np.array_equal(new, old)
    check_sparse_file(stripped, x[:20], tmp_path)


@pytest.mark.slow
def test_magnitude_pruning_goes_on_from_lp_zeros_to_a_sparser_file(sparse, data, tmp_path):
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.5, 0.8, 0, 30, frequency=5)
    wrapped = prune_low_magnitude(sparse, schedule)
    logs = fit(wrapped, data, [tfmot.sparsity.keras.UpdatePruningStep()], epochs=4)
    assert logs["accuracy"][-1] > 0.9
    stripped = keras_lp.strip_pruning(wrapped)
    check_zeros_stay(sparse, stripped)
    for old, new in zip(kernels(sparse), kernels(stripped), strict=True):
        assert np.mean(new == 0) == pytest.approx(max(0.8, np.mean(old == 0)), abs=0.01)
    assert np.count_nonzero(kernels(stripped)[0]) < np.count_nonzero(kernels(sparse)[0])
    check_dense_file(stripped, data[0][:20], tmp_path)
    check_sparse_file(stripped, data[0][:20], tmp_path)


def for_xnnpack():
    """A residual network of the kind that XNNPACK's sparse inference takes."""
    start = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(1)(start)
    x = layers.Conv2D(8, 3, strides=2, name="first")(x)
    x = shortcut = layers.ReLU(name="first_relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(24, 1, activation="relu", name="expand")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Add()([layers.Conv2D(8, 1, name="project")(x), shortcut])
    x = layers.Conv2D(32, 1, activation="relu", name="last")(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return keras.Model(start, layers.Dense(4, name="logits")(layers.Flatten()(x)), name="net")


@pytest.mark.slow
def test_pruning_for_latency_on_xnnpack_adds_zeros_to_1x1_convolutions_alone(tmp_path):
    model = for_xnnpack()
    keras_lp.prune(model, 0.5, scope="layer")
    x, labels = images((16, 16, 3), np.random.default_rng(0))
    wrapped = prune_low_magnitude(
        model,
        tfmot.sparsity.keras.ConstantSparsity(0.9, 0, frequency=1),
        pruning_policy=tfmot.sparsity.keras.PruneForLatencyOnXNNPack(),
    )
    fit(wrapped, (x, labels), [tfmot.sparsity.keras.UpdatePruningStep()])
    stripped = keras_lp.strip_pruning(wrapped)
    check_zeros_stay(model, stripped)
    for layer in keras_lp.sparsity_report(from_tf_keras(stripped)).layers:
        expected = 0.9 if layer.name in ("expand", "project", "last") else 0.5
        assert layer.sparsity == pytest.approx(expected, abs=0.02), layer.name
    check_dense_file(stripped, x[:20], tmp_path)
    # The mean that TF-MOT's policy asks for is one of those that LiteRT computes wrongly elsewhere.
    check_sparse_file(stripped, x[:20], tmp_path, runtime="x86")


def test_model_that_xnnpack_does_not_run_sparse_is_refused_by_the_policy():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 1), layers.Flatten()])
    policy = tfmot.sparsity.keras.PruneForLatencyOnXNNPack()
    with pytest.raises(ValueError, match="Could not find `Conv2D 3x3` layer with stride 2x2"):
        prune_low_magnitude(model, pruning_policy=policy)


@pytest.mark.slow
def test_clustering_that_preserves_sparsity_gives_a_sparse_file_of_few_values(
    sparse, data, tmp_path
):
    wrapped = clustered(to_tf_keras(sparse))
    logs = fit(wrapped, data)
    assert logs["accuracy"][-1] > 0.9
    stripped = tfmot.clustering.keras.strip_clustering(wrapped)
    check_zeros_stay(sparse, stripped)
    for check in (check_dense_file, check_sparse_file):
        for kernel in kernels_in(check(stripped, data[0][:20], tmp_path), np.float32).values():
            assert 1 < len(np.unique(kernel[kernel != 0])) < CLUSTERS  # One cluster is zero.


@pytest.mark.slow
def test_quantization_aware_training_that_preserves_sparsity_gives_a_sparse_int8_file(
    sparse, data, tmp_path
):
    wrapped = quantized(to_tf_keras(sparse))
    logs = fit(wrapped, data)
    assert logs["accuracy"][-1] > 0.9
    path = convert(wrapped, tmp_path / "int8.tflite", int8=True)
    x, _ = data
    expected = wrapped.predict(x, verbose=0)
    # Each layer rounds its outputs to steps of 1/255 of their range.
    outputs = outputs_in_litert(path, x)
    np.testing.assert_allclose(outputs, expected, atol=0.03 * np.abs(expected).max())
    assert np.mean(outputs.argmax(1) == expected.argmax(1)) > 0.98
    found = kernels_in(path, np.int8)
    assert len(found) == len(kernels(sparse))
    for kernel in kernels(sparse):
        assert np.all(found[kernel.shape][kernel == 0] == 0)
        assert np.any(found[kernel.shape] != 0)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [clustered, quantized])
def test_decay_goes_on_in_the_fit_of_a_wrapped_model(wrap, sparse, data):
    legacy = to_tf_keras(sparse)
    before = {v.name: v.numpy() for v in legacy.trainable_weights}
    wrapped = wrap(legacy)
    decay = keras_lp.LpDecayCallback(0.5)
    logs = fit(wrapped, data, [decay], epochs=3, rate=1e-2)
    assert len(decay.decayed_variables) == len(kernels(sparse))
    assert logs["sparsity"][-1] > keras_lp.sparsity_report(sparse).sparsity + 0.02
    trained = {v.name: v.numpy() for v in wrapped.trainable_weights}
    for kernel in decay.decayed_variables:
        assert np.all(trained[kernel.name][before[kernel.name] == 0] == 0)
    if wrap is clustered:
        check_zeros_stay(sparse, tfmot.clustering.keras.strip_clustering(wrapped))


@pytest.mark.slow
def test_example_writes_its_files_and_prints_what_they_are_worth(tmp_path):
    script = ROOT / "examples" / "tfmot_pipeline.py"
    short = ("--epochs", "5", "--tuning-epochs", "1", "--output", "out")
    process = subprocess.run(
        [sys.executable, str(script), *short],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    rows = re.findall(r"(0\.\d{4}) +([\d,]+) +([\d,]+) +(\d+\.\d\d)%", process.stdout)
    assert len(rows) == 3
    for name, row in zip(("sparse", "clustered", "quantized"), rows, strict=True):
        data = (tmp_path / "out" / f"{name}.tflite").read_bytes()
        accuracy, size, gzip_size, zeros = (float(cell.replace(",", "")) for cell in row)
        assert accuracy > 0.8
        assert size == len(data)
        assert gzip_size == len(gzip.compress(data, 9))
        assert zeros >= 95.0
