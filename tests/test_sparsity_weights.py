import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_lp
from keras_lp.sparsity.weights import weights_of

WORDS, SIZE = 20, 6


def numpy(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def kernels(model):
    """The kernels of a model by the ends of their paths."""
    return {
        "/".join(one.variable.path.split("/")[-2:]): one
        for one in weights_of(model)
        if one.is_kernel
    }


@pytest.fixture
def words():
    """A model whose layers can all be quantized; four of five weights are zero."""
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(WORDS, SIZE, name="embedding")(tokens)
    x = layers.EinsumDense("abc,cde->abde", (4, 2, 3), name="einsum")(x)
    x = layers.Dense(SIZE, use_bias=False, name="dense")(layers.Reshape((4, SIZE))(x))
    output = layers.ReversibleEmbedding(WORDS, SIZE, tie_weights=False, name="tied")
    model = keras.Model(tokens, [output(tokens), output(x, reverse=True)], name="words")
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(np.where(random.random(variable.shape) < 0.8, 0, numpy(variable)))
    return model


def computed(model):
    """What the layers of `words` compute with, found by calling them."""
    embedding, einsum, dense, tied = map(model.get_layer, ("embedding", "einsum", "dense", "tied"))
    every, eye = np.arange(WORDS), np.eye(SIZE, dtype="float32")
    return {
        "embedding/embeddings": numpy(embedding(every)),
        "einsum/kernel": numpy(einsum(eye[None])[0]),
        "dense/kernel": numpy(dense(eye)),
        "tied/embeddings": numpy(tied(every)),
        "tied/reverse_embeddings": numpy(tied(eye, reverse=True)),
    }


@pytest.mark.parametrize("quantization", ["int8", "int4", -1, 4])
def test_zeros_of_quantized_kernels_are_those_that_layers_compute_with(words, quantization):
    floats = keras_lp.sparsity_report(words)
    if isinstance(quantization, str):
        words.quantize(quantization)
    else:
        kind = keras.quantizers.Int4QuantizationConfig
        if "block_size" not in inspect.signature(kind).parameters:
            pytest.skip("this Keras has int4 without blocks")
        words.quantize(config=kind(block_size=quantization))
    for name, array in computed(words).items():
        one = kernels(words)[name]
        assert one.is_quantized
        assert one.count()[:2] == (np.sum(array == 0), array.size), name
        assert one.count(threshold=100.0) == one.count()
    report = keras_lp.sparsity_report(words)
    assert report.size == floats.size
    assert report.zeros >= floats.zeros
    assert [row.name for row in report.layers] == [row.name for row in floats.layers]


def test_kernels_of_gptq_are_counted_once_they_are_calibrated(words):
    class Tokenizer:
        """Asked for by Keras, and not needed where the calibration is of numbers."""

    floats = keras_lp.sparsity_report(words)
    embedding, dense = words.get_layer("embedding"), words.get_layer("dense")
    config = keras.quantizers.GPTQConfig(
        [np.arange(WORDS)],
        Tokenizer(),
        num_samples=2,
        sequence_length=4,
        group_size=2,
        quantization_layer_structure={
            "pre_block_layers": [embedding],
            "sequential_blocks": [dense],
        },
    )
    # It makes `einsum` ready, and calibrates the layers of the blocks alone.
    words.quantize(config=config, filters="dense|einsum")
    array = computed(words)["dense/kernel"]
    assert kernels(words)["dense/kernel"].count()[:2] == (np.sum(array == 0), array.size)
    assert keras_lp.sparsity_report(words).size == floats.size


def test_float8_keeps_kernels_that_train(words):
    floats = keras_lp.sparsity_report(words)
    words.quantize("float8", filters="dense|einsum")
    assert keras_lp.sparsity_report(words).layers == floats.layers
    assert keras_lp.prune(words, 0.9).sparsity >= 0.9


def test_every_weight_is_found_in_the_layer_that_owns_it():
    # Keras has no public name for this; where it fails, look at `weights_of`.
    x = keras.Input((4, 4))
    y = layers.MultiHeadAttention(2, 2)(x, x)
    y = layers.BatchNormalization()(layers.Bidirectional(layers.GRU(2))(y))
    model = keras.Sequential([keras.Input((4, 4)), keras.Model(x, y), layers.Dense(2)])
    for is_trained in (True, False):
        model.trainable = is_trained
        found = weights_of(model)
        assert list(map(id, (one.variable for one in found))) == list(map(id, model.weights))
        for one in found:
            assert one.variable.path.rpartition("/")[0].endswith(one.layer.name)
            assert any(one.variable is variable for variable in one.layer.variables)
            assert one.is_to_train is ("moving" not in one.variable.name)
            assert one.is_frozen is (one.is_to_train and not is_trained)


def adapt(model, *names):
    """Gives layers adapters that have trained: with the kernels they make sums without zeros."""
    for name in names:
        model.get_layer(name).enable_lora(2)
    for variable in model.trainable_variables:
        if "lora" in variable.name:
            variable.assign(np.random.default_rng(0).normal(size=variable.shape))


def test_layer_with_adapters_counts_by_what_it_computes_with(words):
    before = keras_lp.sparsity_report(words)
    words.get_layer("dense").enable_lora(2)  # The product is 0 at first.
    report = keras_lp.sparsity_report(words)
    assert report.layers == before.layers
    assert report.not_counted == before.not_counted + 2 * 2 * SIZE
    adapt(words, "embedding", "einsum")
    report = {row.name: row for row in keras_lp.sparsity_report(words).layers}
    for name, row in {row.name: row for row in before.layers}.items():
        zeros = 0 if name in ("embedding", "einsum", "dense") else row.zeros
        assert (report[name].zeros, report[name].size) == (zeros, row.size)
    words.get_layer("einsum").trainable = False
    assert keras_lp.sparsity_report(words).frozen == SIZE * 6


def test_adapters_of_convolutions_and_of_a_loaded_model_are_not_counted(tmp_path):
    layer = layers.Conv1D(4, 3, name="conv")
    model = keras.Sequential([keras.Input((6, 2)), layer, layers.Dense(3, name="logits")])
    keras_lp.prune(model, 0.5, scope="layer")
    layer.enable_lora(1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert keras_lp.sparsity_report(loaded).layers == keras_lp.sparsity_report(model).layers
    assert keras_lp.sparsity_report(loaded).layers[0].zeros == 12
    adapt(model)
    assert [row.zeros for row in keras_lp.sparsity_report(model).layers] == [0, 6]


def test_kernels_under_adapters_count_beside_what_an_optimizer_decays(mlp):
    model = mlp()
    adapt(model, "hidden")
    model.compile(keras_lp.LpAdamW(), "mse")
    model.optimizer.build(model.trainable_variables)
    assert keras_lp.sparsity_report(model).size == 128 + 48
    model.compile(keras_lp.LpAdamW(exclude="hidden"), "mse")
    model.optimizer.build(model.trainable_variables)
    assert keras_lp.sparsity_report(model).size == 48
    assert keras_lp.sparsity_report(model, exclude=[]).size == 128 + 48


def test_adapters_of_quantized_kernels_are_added_to_what_is_counted(mlp):
    model = mlp()
    keras_lp.prune(model, 0.5, scope="layer")
    model.quantize("int8", filters="hidden")
    model.get_layer("hidden").enable_lora(2)
    assert keras_lp.sparsity_report(model).zeros == 64 + 24
    adapt(model)
    assert keras_lp.sparsity_report(model).zeros == 24


def test_adapters_that_keras_loads_do_not_train_and_those_of_a_stripped_model_do(mlp, tmp_path):
    # Said in docs/counting.md; where this fails, Keras has mended it.
    model = mlp()
    adapt(model, "hidden")
    model.save(tmp_path / "model.keras")
    loaded, stripped = (
        keras.models.load_model(tmp_path / "model.keras"),
        keras_lp.strip_pruning(model),
    )
    stripped.get_layer("hidden").enable_lora(2)
    for each, trains in ((loaded, False), (stripped, True)):
        each.compile("sgd", "mse")
        each.fit(np.ones((4, 8)), np.ones((4, 3)), verbose=0)
        assert np.any(numpy(each.get_layer("hidden").lora_kernel_b)) == trains
