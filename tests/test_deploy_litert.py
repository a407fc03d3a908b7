import gzip
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from deployable import interpreter

import keras_lp
from keras_lp import export_tflite
from keras_lp.deploy import litert
from keras_lp.deploy.verifying import check_loads, check_outputs
from keras_lp.deploy.writing import check_path, check_source, write_atomically

pytestmark = pytest.mark.backend("tensorflow")


@pytest.fixture
def model(sparsify):
    """A small CNN with 90 % zeros."""
    return sparsify(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
    )


@pytest.mark.parametrize("quantization", [None, "float16"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_file_runs_in_litert_and_agrees_with_the_model(model, tmp_path, sparse, quantization):
    result = export_tflite(model, tmp_path / "m.tflite", sparse, quantization)
    data = result.path.read_bytes()
    assert result.bytes == len(data)
    assert result.gzip_bytes == len(gzip.compress(data, 9))
    x = np.random.default_rng(7).normal(size=(5, 8, 8, 1)).astype("float32")
    runner = interpreter(result.path)
    (name,) = runner.get_input_details()
    (output,) = runner(**{name: x}).values()
    error = np.abs(output - model(x).numpy()).max()
    assert error < (1e-5 if quantization is None else 1e-2)
    assert result.max_abs_error < (1e-5 if quantization is None else 1e-2)
    assert (result.max_abs_error > 0) or quantization is None


@pytest.mark.slow
def test_sparse_encoding_and_float16_make_the_file_of_a_sparse_model_small(model, tmp_path):
    sizes = {
        (sparse, quantization): export_tflite(
            model, tmp_path / "m.tflite", sparse, quantization, verify=False
        )
        for sparse in (True, False)
        for quantization in (None, "float16")
    }
    dense = sizes[False, None].bytes
    # A file names its tensors, whose lengths vary by some bytes from export to export.
    for result in sizes.values():
        assert result.dense_bytes == pytest.approx(dense, abs=512)
    assert sizes[True, None].bytes < 0.25 * dense
    assert sizes[False, "float16"].bytes < 0.6 * dense
    assert sizes[True, "float16"].bytes < 0.2 * dense


def test_result_prints_as_a_short_table(model, tmp_path):
    result = export_tflite(model, tmp_path / "m.tflite", quantization="float16")
    lines = str(result).splitlines()
    assert lines[0] == str(tmp_path / "m.tflite")
    assert [line.split()[0] for line in lines[1:]] == ["bytes", "gzip", "dense", "max"]
    assert f"{result.bytes:,}" in lines[1]
    assert "% of dense float32" in lines[1]
    unverified = export_tflite(model, tmp_path / "m.tflite", verify=False)
    assert unverified.max_abs_error is None
    assert "not verified" in str(unverified)


def named_inputs():
    image, aux = keras.Input((4,), name="image"), keras.Input((3,), name="aux")
    return image, aux, keras.layers.Concatenate()([image, aux])


def list_of_inputs():
    image, aux, joined = named_inputs()
    return keras.Model([image, aux], keras.layers.Dense(2)(joined))


def dict_of_inputs():
    image, aux, joined = named_inputs()
    return keras.Model({"image": image, "aux": aux}, keras.layers.Dense(2)(joined))


def list_of_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [keras.layers.Dense(units)(x) for units in range(1, 13)])


def dict_of_outputs():
    x = keras.Input((4,))
    return keras.Model(x, {name: keras.layers.Dense(2)(x) for name in ("b", "a")})


def integers():
    x = keras.Input((6,), dtype="int32")
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Embedding(5, 4)(x)))


def any_length():
    x = keras.Input((None, 4))
    return keras.Model(x, keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(3)(x)))


def attention():
    x = keras.Input((6, 4))
    y = keras.layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(x, keras.layers.LayerNormalization()(y))


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x) if not isinstance(x, list) else self.dense(x[0]) - self.dense(x[1])


def subclassed():
    model = Pair()
    model(np.zeros((2, 4), "float32"))
    return model


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(list_of_inputs, marks=pytest.mark.slow),
        dict_of_inputs,
        list_of_outputs,
        pytest.param(dict_of_outputs, marks=pytest.mark.slow),
        integers,
        any_length,
        attention,
        subclassed,
    ],
)
def test_models_of_many_shapes_are_verified(make, tmp_path):
    model = make()
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1]
    result = export_tflite(model, tmp_path / "m.tflite", quantization="float16")
    assert result.max_abs_error < 1e-2
    # The check can fail: it sees a model whose last kernel differs from the file's.
    data = result.path.read_bytes()
    kernels[-1].assign(kernels[-1] * -3.0)
    with pytest.raises(RuntimeError, match="disagrees"):
        check_outputs(lambda: check_loads(data, "default"), model, None, 2e-2)


def test_model_with_a_batch_size_of_its_own_is_verified(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 8), batch_size=2),
            keras.layers.LSTM(4, stateful=True, unroll=True),
            keras.layers.Dense(3),
        ]
    )
    assert export_tflite(model, tmp_path / "m.tflite").max_abs_error < 1e-5


def test_batch_of_a_sequential_model_that_was_never_called_can_be_fixed(tmp_path):
    layers = [keras.Input((8,)), keras.layers.Dense(2)]
    result = export_tflite(keras.Sequential(layers), tmp_path / "m.tflite", batch_size=3)
    (detail,) = interpreter(result.path).get_input_details().values()
    assert tuple(detail["shape_signature"]) == (3, 8)


def test_model_of_one_sample_and_one_of_integers_are_verified(tmp_path):
    path = tmp_path / "m.tflite"
    one = keras.Sequential([keras.Input((4,), batch_size=1), keras.layers.Dense(2)])
    assert export_tflite(one, path).max_abs_error < 1e-5
    x = keras.Input((4,))
    y = keras.layers.Dense(3)(x)
    signs = keras.Model(x, keras.ops.cast(y > 0, "int32"))
    assert export_tflite(signs, path).max_abs_error == 0
    never = keras.Model(x, keras.ops.cast(y > 1e9, "int32"))
    with pytest.raises(RuntimeError, match="same for all random inputs"):
        export_tflite(never, path)


def test_verification_does_not_change_the_state_of_the_model(tmp_path):
    class Counting(keras.layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.calls.assign_add(1.0)
            return x

    counting = Counting()
    model = keras.Sequential([keras.Input((4,)), counting, keras.layers.Dense(2)])
    export_tflite(model, tmp_path / "m.tflite")
    assert float(counting.calls) == 0.0


def dead(reach):
    """A model whose outputs vary only if an input exceeds `reach`."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)]
    )
    model.layers[0].kernel.assign(np.eye(4))
    model.layers[0].bias.assign(np.full(4, -reach))
    return model


def test_random_inputs_are_widened_until_the_outputs_vary(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    assert export_tflite(dead(20), path).max_abs_error < 1e-4
    convert = litert.convert

    def convert_another(model, *args, **kwargs):
        return convert(keras.models.clone_model(model), *args, **kwargs)

    monkeypatch.setattr(litert, "convert", convert_another)
    with pytest.raises(RuntimeError, match="disagrees"):
        export_tflite(dead(20), path)


def test_model_whose_outputs_never_vary_is_an_error_that_asks_for_inputs(tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(RuntimeError, match=r"same for all random inputs.*`inputs`"):
        export_tflite(dead(1e6), path)
    inputs = np.random.default_rng(0).normal(size=(3, 4)) * 1e7
    assert export_tflite(dead(1e6), path, inputs=inputs).max_abs_error < 100


def pruned_to_death():
    """A model with a layer of zeros on the way to its output."""
    x = keras.Input((4,))
    hidden = keras.layers.Dense(4, activation="relu", name="alive")(x)
    hidden = keras.layers.Dense(4, bias_initializer="normal", name="killed")(hidden)
    # The last digits of what so many units make depend on the place in the batch.
    hidden = keras.layers.Dense(97, activation="relu")(hidden)
    model = keras.Model(x, keras.layers.Dense(2, name="head")(hidden))
    model.get_layer("killed").kernel.assign(np.zeros((4, 4)))
    return model


def dying():
    """A model whose ReLU lets nothing through."""
    return dead(1e6)


@pytest.fixture(scope="module")
def runners():
    """Files of the models that do not depend on their inputs."""
    models = {make: make() for make in (pruned_to_death, dying)}
    return {
        make: (check_loads(litert.convert(model)[0], "default"), model)
        for make, model in models.items()
    }


@pytest.mark.parametrize(
    ("make", "why"),
    [(pruned_to_death, "No weight is left in .*: killed"), (dying, "ReLU whose inputs")],
)
@pytest.mark.parametrize("count", [None, 1, 9])
def test_model_whose_outputs_do_not_depend_on_its_inputs_is_an_error_that_says_why(
    runners, make, why, count
):
    runner, model = runners[make]
    inputs = None if count is None else np.random.default_rng(0).normal(size=(count, 4))
    with pytest.raises(RuntimeError, match=rf"outputs .*{why}") as info:
        check_outputs(lambda: runner, model, inputs, 1e-3)
    # Data help only where none were given and the weights let them through.
    assert ("`inputs`" in str(info.value)) == (make is dying and count is None)


def test_inputs_that_are_all_alike_are_enough_where_others_change_the_outputs(runners):
    runner, model = runners[dying]
    check_outputs(lambda: runner, model, np.full((2, 4), 3e6), 1e-3)


def with_a_dead_head():
    x = keras.Input((4,))
    heads = [keras.layers.Dense(2, name="alive")(x), keras.layers.Dense(3, name="killed")(x)]
    model = keras.Model(x, {"first": heads[0], "second": heads[1]})
    model.get_layer("killed").kernel.assign(np.zeros((4, 3)))
    return model


def with_anchors():
    x = keras.Input((4,))
    boxes = np.arange(24, dtype="float32").reshape(6, 4)
    anchors = keras.layers.Lambda(lambda t: keras.ops.zeros((keras.ops.shape(t)[0], 6, 4)) + boxes)
    return keras.Model(x, [keras.layers.Dense(2)(x), anchors(x)])


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (with_a_dead_head, r"output 'second' is .*No weight is left in 1 of 2 kernels: killed"),
        (with_anchors, r"output 'output_1' is the same for all inputs .*right for .* anchors"),
    ],
)
def test_constant_output_beside_one_that_varies_is_noted(make, note, tmp_path):
    model = make()
    result = export_tflite(model, tmp_path / "m.tflite")
    assert result.max_abs_error < 1e-5
    assert len(result.notes) == 1
    assert re.match(note, result.notes[0])
    runner = check_loads(result.path.read_bytes(), "default")
    for count in (1, 9):
        inputs = np.random.default_rng(0).normal(size=(count, 4))
        _, notes = check_outputs(lambda: runner, model, inputs, 1e-3)
        assert tuple(notes) == result.notes


def test_integer_output_that_is_constant_is_noted_too(tmp_path):
    x = keras.Input((4,))
    y = keras.layers.Dense(3)(x)
    model = keras.Model(x, [y, keras.ops.cast(y > 1e9, "int32")])
    (note,) = export_tflite(model, tmp_path / "m.tflite").notes
    assert note.startswith("output 'output_1' is the same for all inputs that were tried")


def test_all_rows_of_an_embedding_are_verified(tmp_path):
    model = integers()
    result = export_tflite(model, tmp_path / "m.tflite")
    embeddings = model.layers[1].embeddings
    changed = embeddings.numpy().copy()
    changed[4] += 1.0
    embeddings.assign(changed)
    with pytest.raises(RuntimeError, match="disagrees"):
        check_outputs(lambda: check_loads(result.path.read_bytes(), "default"), model, None, 1e-3)


def test_small_outputs_are_compared_at_their_own_scale(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    kernel = model.layers[0].kernel
    kernel.assign(kernel.numpy() * 1e-8)
    result = export_tflite(model, tmp_path / "m.tflite")
    kernel.assign(-kernel.numpy())
    with pytest.raises(RuntimeError, match="disagrees"):
        check_outputs(lambda: check_loads(result.path.read_bytes(), "default"), model, None, 1e-3)


def test_given_inputs_are_what_the_file_is_verified_with(tmp_path):
    model = dict_of_inputs()
    small = {"image": np.full((1, 4), 1e-3), "aux": np.full((1, 3), 1e-3)}
    large = {"image": np.full((1, 4), 1e3), "aux": np.full((1, 3), 1e3)}
    for quantization in (None, "float16"):
        errors = [
            export_tflite(
                model, tmp_path / "m.tflite", quantization=quantization, inputs=inputs
            ).max_abs_error
            for inputs in (small, large)
        ]
        assert errors[0] < 1e-4
    assert errors[1] > 1e-3


def test_inputs_may_be_a_list_or_named_for_a_model_that_takes_a_list(tmp_path):
    inputs = {"image": np.ones((3, 4)), "aux": np.ones((3, 3))}
    for given in (inputs, list(inputs.values())):
        result = export_tflite(list_of_inputs(), tmp_path / "m.tflite", inputs=given)
        assert result.max_abs_error < 1e-5


def test_subclassed_model_with_several_inputs_is_verified_with_given_inputs(tmp_path):
    model = Pair()
    inputs = [np.ones((2, 4), "float32"), np.zeros((2, 4), "float32")]
    model(inputs)
    with pytest.raises(ValueError, match=r"`inputs` is needed.*several inputs"):
        export_tflite(model, tmp_path / "m.tflite")
    assert export_tflite(model, tmp_path / "m.tflite", inputs=inputs).max_abs_error < 1e-5


def test_new_file_has_the_usual_mode_and_an_existing_one_keeps_its_own(model, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = tmp_path / "m.tflite"
    export_tflite(model, path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o600)
    path.write_bytes(b"old")
    export_tflite(model, path)
    assert path.stat().st_size > 1000
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["m.tflite", "plain"]


def test_link_stays_a_link_and_long_names_work(model, tmp_path):
    target = tmp_path / f"{'n' * 240}.tflite"
    target.write_bytes(b"old")
    link = tmp_path / "m.tflite"
    link.symlink_to(target)
    export_tflite(model, link, verify=False)
    assert link.is_symlink()
    assert target.stat().st_size > 1000


def test_exports_to_one_path_at_a_time_do_not_collide(tmp_path):
    path = tmp_path / "m.tflite"
    with ThreadPoolExecutor(8) as pool:
        contents = [bytes([index]) * 100_000 for index in range(32)]
        list(pool.map(lambda data: write_atomically(path, lambda p: p.write_bytes(data)), contents))
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["m.tflite"]


@pytest.fixture
def old_file(tmp_path):
    """A file that stands at the path, and a check that it and the folder are as they were."""
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")
    yield path
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_file_that_disagrees_is_an_error_and_harms_nothing(model, old_file, monkeypatch):
    convert = litert.convert

    def convert_another(model, *args, **kwargs):
        return convert(keras.models.clone_model(model), *args, **kwargs)

    monkeypatch.setattr(litert, "convert", convert_another)
    with pytest.raises(RuntimeError, match=r"nothing was written.*disagrees.*Largest error"):
        export_tflite(model, old_file)


def test_error_beyond_the_tolerance_is_an_error_and_harms_nothing(model, old_file):
    with pytest.raises(RuntimeError, match=r"disagrees with the model.*allowed 0"):
        export_tflite(
            model, old_file, quantization="float16", tolerance=0, inputs=np.ones((2, 8, 8, 1)) * 50
        )


def test_file_that_does_not_load_is_an_error_and_harms_nothing(model, old_file, monkeypatch):
    monkeypatch.setattr(litert, "encode_for", lambda runtime, data: (b"no flatbuffer", ()))
    with pytest.raises(RuntimeError, match="does not load in LiteRT"):
        export_tflite(model, old_file)


def test_model_of_nan_is_an_error_and_harms_nothing(model, old_file):
    model.layers[-1].bias.assign([float("nan")] * 10)
    with pytest.raises(RuntimeError, match=r"own output 'output_0' is NaN or infinite.*`inputs`"):
        export_tflite(model, old_file)


def test_conversion_that_fails_is_an_error_and_harms_nothing(model, old_file, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no such operation")

    monkeypatch.setattr("tensorflow.saved_model.save", fail)
    with pytest.raises(RuntimeError, match=r"could not be converted.*no such operation"):
        export_tflite(model, old_file)


def test_write_that_fails_leaves_no_partial_file(model, old_file, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_tflite(model, old_file)


def test_link_into_a_folder_that_does_not_exist_is_an_error_before_the_conversion(model, tmp_path):
    (tmp_path / "m.tflite").symlink_to(tmp_path / "none" / "m.tflite")
    with pytest.raises(FileNotFoundError, match=r"`path` does not exist.*none"):
        export_tflite(model, tmp_path / "m.tflite")


def test_inputs_may_be_nested_lists_of_numbers(tmp_path):
    one = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for inputs in ([[1, 2, 3, 4]], [[1, 2, 3, 4], [5, 6, 7, 8]], [np.ones((2, 4))]):
        assert export_tflite(one, tmp_path / "m.tflite", inputs=inputs).max_abs_error < 1e-5


def test_folder_that_does_not_exist_is_an_error_with_the_command_that_makes_it(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` does not exist.*mkdir -p .*Received: "):
        export_tflite(model, tmp_path / "none" / "m.tflite")


def test_command_that_makes_a_folder_can_be_run_as_it_stands(tmp_path):
    path = tmp_path / "a folder of 'mine'; $HOME" / "m.tflite"
    with pytest.raises(FileNotFoundError) as info:
        check_path(path, ".tflite")
    command = re.search(r"\(`(mkdir -p .*)`\)", str(info.value))[1]
    subprocess.run(command, shell=True, check=True)
    assert check_path(path, ".tflite") == path


def test_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    result = export_tflite(model, "~/m.tflite")
    assert result.path == tmp_path / "m.tflite"
    assert result.path.exists()
    assert check_source("first", "~/m.tflite") == result.path
    with pytest.raises(FileNotFoundError, match=r"mkdir -p /.*/none.*Received: path='~/none/m"):
        check_path("~/none/m.tflite", ".tflite")


@pytest.mark.parametrize("name", ["model", "model.h5", "model.tflite.txt", ""])
def test_path_that_does_not_end_in_tflite_is_an_error(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"`path` must end in `\.tflite`\. Received: path="):
        export_tflite(model, tmp_path / name)


def test_path_of_another_type_is_an_error(model):
    with pytest.raises(TypeError, match=r"`path` must be a string or a path\. Received: path=None"):
        export_tflite(model, None)


def test_path_that_is_a_folder_is_an_error(model, tmp_path):
    (tmp_path / "m.tflite").mkdir()
    with pytest.raises(ValueError, match="must name a file"):
        export_tflite(model, tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "int4"}, r"`quantization` must be None.*Received: quantization='int4'"),
        ({"quantization": ["float16"]}, r"`quantization` must be None.*quantization=\['float16'"),
        ({"tolerance": -1}, r"`tolerance` must be .*Received: tolerance=-1"),
        ({"tolerance": float("nan")}, r"`tolerance` must be .*Received: tolerance=nan"),
        ({"inputs": np.ones((2, 9, 8, 1))}, r"shape \(-1, 8, 8, 1\).*Received: shape \(2, 9, 8"),
        ({"inputs": np.ones((0, 8, 8, 1))}, r"must hold a non-empty array.*shape \(0, 8, 8, 1\)"),
        ({"inputs": "text"}, r"must hold numbers for input.*Received: 'text'"),
        ({"inputs": {"other": np.ones((2, 8, 8, 1))}}, r"by its name.*Received: arrays other"),
        (
            {"inputs": [np.ones((2, 8, 8, 1))] * 2},
            r"must hold one array.*Received: list of 2 arrays",
        ),
    ],
)
def test_bad_argument_is_an_error_that_names_value_and_remedy(model, old_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_tflite(model, old_file, **arguments)


def test_unbuilt_model_is_an_error(old_file, gan):
    with pytest.raises(ValueError, match=r"must be built.*pass one of the models in it"):
        export_tflite(gan, old_file)
    with pytest.raises(ValueError, match="must be built"):
        export_tflite(keras.Sequential([keras.layers.Dense(2)]), old_file)


def test_missing_litert_is_an_error_that_names_the_extra(model, old_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"`ai_edge_litert`.*pip install 'keras-lp\[deploy\]'"):
        export_tflite(model, old_file)


@pytest.mark.slow
def test_process_killed_during_the_export_leaves_the_old_file(old_file):
    script = (
        "import os, signal, sys, keras, keras_lp\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])\n"
        "keras_lp.export_tflite(model, sys.argv[1])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, old_file], capture_output=True, check=False)
    assert run.returncode == -9
    assert old_file.read_bytes() == b"old"
    for rest in old_file.parent.glob(".*.tmp.tflite"):
        rest.unlink()  # A kill gives nobody the time to clean up; the name hides it.


def test_stripped_model_goes_from_keras_file_to_litert(model, sparsify, tmp_path):
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    stripped = keras_lp.strip_pruning(sparsify(loaded, 0.95, 1e-14))
    result = export_tflite(stripped, tmp_path / "m.tflite", quantization="float16")
    assert result.bytes < result.dense_bytes / 8
