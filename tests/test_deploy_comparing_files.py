import gzip
import json

import keras
import numpy as np
import pytest

from keras_lp import compare_tflite, export_tflite

pytestmark = pytest.mark.backend("tensorflow")


def classifier(columns=3, activation="softmax"):
    return keras.Sequential(
        [keras.Input((8,), name="features"), keras.layers.Dense(columns, activation)]
    )


@pytest.fixture
def export(tmp_path):
    """A function that writes a model and returns the path."""

    def write(name, model, **arguments):
        return export_tflite(model, tmp_path / f"{name}.tflite", sparse=False, **arguments).path

    return write


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "classifier.tflite"
    return export_tflite(classifier(), path, sparse=False).path


def test_numbers_are_those_of_the_models(export, batches):
    x, y = batches
    models = [classifier(), classifier()]
    paths = [export(name, model) for name, model in zip("ab", models, strict=True)]
    result = compare_tflite(*paths, x, y)
    outputs = [np.asarray(model(x), "float64") for model in models]
    classes = [np.argmax(output, axis=1) for output in outputs]
    assert 0 < np.mean(classes[0] == classes[1]) < 1
    assert result.agreement == np.mean(classes[0] == classes[1])
    assert result.max_abs_difference == pytest.approx(
        np.max(np.abs(outputs[0] - outputs[1])), rel=1e-5
    )
    assert result.examples == 64
    for file, path, predicted in zip((result.first, result.second), paths, classes, strict=True):
        assert file.path == path
        assert file.bytes == path.stat().st_size
        assert file.gzip_bytes == len(gzip.compress(path.read_bytes(), 9))
        assert file.accuracy == np.mean(predicted == y)
        assert file.latency > 0


def test_a_file_agrees_with_itself_and_the_table_says_so(one_file, batches):
    result = compare_tflite(one_file, one_file, batches[0])
    assert (result.agreement, result.max_abs_difference) == (1.0, 0.0)
    assert result.first.accuracy is None
    assert "accuracy" not in str(result)
    assert "Same class: 100.00% of 64 examples." in str(result)
    assert json.loads(json.dumps(result.to_dict()))["first"]["path"] == str(one_file)


def test_files_of_a_fixed_batch_run_on_any_number_of_examples(export, batches):
    model = classifier()
    paths = export("any", model), export("fixed", model, batch_size=7)
    for count in (3, 7, 64):
        result = compare_tflite(*paths, batches[0][:count], batches[1][:count])
        assert result.examples == count
        assert result.max_abs_difference < 1e-6
        assert result.first.accuracy == result.second.accuracy


def test_more_examples_than_one_run_takes_come_out_in_their_order(export):
    x = np.random.default_rng(1).normal(size=(600, 8)).astype("float32")
    model = classifier()
    path = export("a", model)
    labels = np.argmax(model(x), axis=1)
    assert compare_tflite(path, path, x, labels).first.accuracy == 1.0


def test_labels_may_be_columns_one_hot_rows_or_a_probability(export, batches):
    x, y = batches
    path = export("a", classifier())
    by_class = compare_tflite(path, path, x, y).first.accuracy
    for labels in (y[:, None], np.eye(3)[y]):
        assert compare_tflite(path, path, x, labels).first.accuracy == by_class
    model = classifier(1, "sigmoid")
    path = export("one", model)
    result = compare_tflite(path, path, x, y > 0)
    assert result.first.accuracy == np.mean((np.asarray(model(x))[:, 0] > 0.5) == (y > 0))
    assert result.agreement == 1.0
    assert compare_tflite(path, path, x).agreement is None


def test_inputs_of_several_names_reach_them_and_one_reaches_any(export, batches):
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    two = keras.Model([a, b], keras.layers.Dense(2)(a - b))
    path = export("two", two)
    x = batches[0]
    result = compare_tflite(path, path, {"b": x, "a": 2 * x, "other": np.ones(1)})
    assert result.max_abs_difference == 0
    named_otherwise = export("c", keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]))
    one = export("d", keras.Sequential([keras.Input((8,), name="q"), keras.layers.Dense(2)]))
    assert compare_tflite(named_otherwise, one, {"features": x}).examples == 64


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.ones((4, 7)), None, r"`inputs` must hold .*shape \(-1, 8\).*Received: shape \(4, 7\)"),
        ({"a": np.ones(1), "b": np.ones(1)}, None, r"each input of the files, features.*a, b"),
        (
            np.full((4, 8), np.nan),
            None,
            r"`inputs` must hold finite numbers.*32 of 32",
        ),
        (np.ones((4, 8)), np.zeros(5), r"`labels` must hold a class from 0 to 2 .*shape \(5,\)"),
        (np.ones((4, 8)), np.array(list("abcd")), r"`labels` must hold .*dtype <U1"),
        (np.ones((4, 8)), [1, 2, 3, 0], r"from 0 to 2 for each .*values from 0 to 3"),
        (np.ones((4, 8)), [0.5, 1, 2, 0], r"from 0 to 2 for each .*dtype float64"),
        (np.ones((4, 8)), [0, 1, 2, np.nan], r"from 0 to 2 for each .*dtype float64"),
        (np.ones((4, 8)), np.eye(4), r"one-hot rows of 3\. Received: shape \(4, 4\)"),
        (np.ones((4, 8)), [[0], [1, 2]], r"one-hot rows of 3\. Received: .*inhomogeneous"),
    ],
)
def test_data_that_does_not_fit_is_an_error(one_file, inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        compare_tflite(one_file, one_file, inputs, labels)


def test_files_that_cannot_be_compared_are_errors(export, tmp_path, batches):
    path, x = export("a", classifier()), batches[0]
    with pytest.raises(ValueError, match=r"same outputs\. Received: .*\(64, 3\).*\(64, 2\)"):
        compare_tflite(path, export("b", classifier(2)), x)
    text = tmp_path / "text.tflite"
    text.write_text("no flatbuffer")
    truncated = tmp_path / "truncated.tflite"
    truncated.write_bytes(path.read_bytes()[:500])
    for other in (text, truncated):
        with pytest.raises(RuntimeError, match=rf"{other.name} does not run in LiteRT"):
            compare_tflite(path, other, x)
    features = keras.Input((8,))
    outputs = [keras.layers.Dense(2)(features), keras.layers.Dense(2)(features)]
    several = export("c", keras.Model(features, outputs))
    with pytest.raises(ValueError, match="`labels` is for files with one output"):
        compare_tflite(several, several, x, batches[1])
    assert compare_tflite(several, several, x).agreement is None
    with pytest.raises(ValueError, match=r"`runtime` must be .*Received: runtime='fast'"):
        compare_tflite(path, path, x, runtime="fast")


def test_labels_of_an_output_that_is_no_probability_are_an_error(export, batches):
    model = classifier(1, None)
    path = export("logits", model)
    with pytest.raises(ValueError, match=r"must hold probabilities.*sigmoid.*outputs from -"):
        compare_tflite(path, path, batches[0], batches[1] > 0)


def test_outputs_that_are_no_numbers_are_an_error(tmp_path, batches):
    model = classifier()
    model.layers[-1].bias.assign([np.nan] * 3)
    path = tmp_path / "nan.tflite"
    export_tflite(model, path, verify=False)
    with pytest.raises(RuntimeError, match=r"nan\.tflite gives outputs that are NaN or infinite"):
        compare_tflite(path, path, batches[0])


def test_latency_is_of_one_example_in_runs_of_as_many(export, batches, monkeypatch):
    paths = export("any", classifier()), export("fixed", classifier(), batch_size=4)
    sizes = []

    def latencies(runs, feed):
        sizes.extend(len(run.keywords["features"]) for run in runs)
        return [8.0, 4.0]

    monkeypatch.setattr("keras_lp.deploy.comparing_files.latencies", latencies)
    result = compare_tflite(*paths, batches[0])
    assert sizes == [4, 4]
    assert (result.first.latency, result.second.latency) == (2.0, 1.0)


def test_what_is_no_file_is_an_error_that_names_the_argument(export, tmp_path, batches):
    path = export("a", classifier())
    with pytest.raises(TypeError, match=r"`first` must be the path of a \.tflite file.*Sequential"):
        compare_tflite(classifier(), path, batches[0])
    with pytest.raises(FileNotFoundError, match=r"`second` must be a file that exists.*none"):
        compare_tflite(path, tmp_path / "none.tflite", batches[0])


def test_quantized_inputs_are_an_error(tmp_path, batches):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(classifier())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([batches[0][:1]] for _ in range(4))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path = tmp_path / "int8.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ValueError, match=r"quantized inputs or outputs.*float32 inputs"):
        compare_tflite(path, path, batches[0])
