import keras
import pytest
from keras import layers

from keras_lp.sparsity.reach import find_cut_off
from keras_lp.sparsity.weights import weights_of


def cut_off(model, *dead):
    """Paths of what is cut off once the kernels whose paths end so are dead; whether all is."""
    kernels = {one.variable.path: one.variable for one in weights_of(model) if one.is_kernel}
    is_dead = {id(v): path.endswith(dead) for path, v in kernels.items()}
    assert sum(is_dead.values()) == len(dead)
    found, is_constant = find_cut_off(model, is_dead)
    paths = (path.removeprefix(f"{model.name}/") for path, v in kernels.items() if id(v) in found)
    return sorted(path.rpartition("/")[0] for path in paths), is_constant


def dense(name):
    return layers.Dense(4, name=name)


def test_all_behind_a_dead_layer_of_a_chain_is_cut_off():
    model = keras.Sequential([keras.Input((4,)), dense("a"), layers.ReLU(), dense("b"), dense("c")])
    assert cut_off(model, "b/kernel") == (["c"], True)
    assert cut_off(model, "c/kernel") == ([], True)


def test_a_way_around_keeps_what_is_behind_it():
    x = keras.Input((4,))
    y = dense("b")(dense("a")(x))
    out = dense("d")(layers.Add()([x, y]))
    model = keras.Model(x, out)
    assert cut_off(model, "a/kernel") == (["b"], False)
    assert cut_off(model, "a/kernel", "d/kernel") == (["b"], True)


def test_operations_that_are_no_layers_pass_on_what_they_get():
    x = keras.Input((4,))
    y = keras.ops.relu(dense("a")(x)) * 2
    model = keras.Model(x, dense("c")(keras.ops.concatenate([y, dense("b")(x)])))
    assert cut_off(model, "a/kernel") == ([], False)
    assert cut_off(model, "a/kernel", "b/kernel") == (["c"], True)


def test_one_output_of_several_is_not_all():
    x = keras.Input((4,))
    model = keras.Model(x, {"one": dense("b")(dense("a")(x)), "two": dense("c")(x)})
    assert cut_off(model, "a/kernel") == (["b"], False)
    assert cut_off(model, "a/kernel", "c/kernel") == (["b"], True)


def test_layer_that_is_called_twice_is_cut_off_where_both_calls_are():
    x = keras.Input((4,))
    shared = dense("shared")
    model = keras.Model(x, [shared(dense("a")(x)), shared(dense("b")(x))])
    assert cut_off(model, "a/kernel") == ([], False)
    assert cut_off(model, "a/kernel", "b/kernel") == (["shared"], True)


def test_models_within_models_are_walked_through():
    left, right = keras.Input((4,)), keras.Input((4,))
    pair = keras.Model([left, right], [dense("l")(left), dense("r")(right)], name="pair")
    chain = keras.Sequential([keras.Input((4,)), dense("last")], name="chain")
    x = keras.Input((4,))
    first, second = pair([dense("a")(x), x])
    model = keras.Model(x, [chain(first), second])
    assert cut_off(model, "a/kernel") == (["chain/last", "l"], False)
    assert cut_off(model, "l/kernel", "r/kernel") == (["chain/last"], True)


@pytest.mark.parametrize(
    ("layer", "shape", "dead", "blocks"),
    [
        (layers.SeparableConv1D(4, 2), (6, 3), ["depthwise_kernel"], True),
        (layers.SeparableConv1D(4, 2), (6, 3), ["pointwise_kernel"], True),
        (layers.LSTM(4), (6, 3), ["/kernel"], True),
        (layers.LSTM(4), (6, 3), ["recurrent_kernel"], False),
        (layers.Bidirectional(layers.GRU(2)), (6, 3), ["forward_gru/gru_cell/kernel"], False),
        (layers.Embedding(5, 3), (6,), ["embeddings"], True),
        (layers.MultiHeadAttention(2, 2), (6, 3), ["value/kernel"], False),
    ],
)
def test_what_is_known_of_layers_with_several_kernels(layer, shape, dead, blocks):
    x = keras.Input(shape)
    y = layer(x, x) if isinstance(layer, layers.MultiHeadAttention) else layer(x)
    assert cut_off(keras.Model(x, y), *dead)[1] is blocks


def test_recurrent_layer_passes_on_the_state_that_it_is_given():
    x, state = keras.Input((6, 3)), keras.Input((4,))
    model = keras.Model([x, state], layers.GRU(4)(x, initial_state=state))
    assert cut_off(model, "/kernel") == ([], False)
    assert cut_off(model, "/kernel", "recurrent_kernel") == ([], True)


@keras.saving.register_keras_serializable("tests")
class Residual(layers.Layer):
    def build(self, shape):
        self.dense = dense("inner")
        self.dense.build(shape)

    def call(self, x):
        return x + self.dense(x)


class WithoutConfig(layers.Dense):
    def __init__(self, size):
        super().__init__(size)

    def get_config(self):
        raise NotImplementedError


@pytest.mark.parametrize("layer", [Residual(), WithoutConfig(4)])
def test_layers_of_ones_own_are_thought_to_lead_past_their_kernels(layer):
    x = keras.Input((4,))
    assert cut_off(keras.Model(x, layer(x)), "kernel") == ([], False)


def test_of_a_subclassed_model_nothing_is_said():
    class Chain(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = dense("a"), dense("b")

        def call(self, x):
            return self.b(self.a(x))

    model = Chain()
    model(keras.ops.ones((1, 4)))
    assert cut_off(model, "a/kernel") == ([], False)
