import contextlib
import json
import re
import warnings

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, selection


def paths(variables):
    return [variable.path for variable in variables]


def test_kernels_are_decayed_and_biases_are_not(mlp):
    decayed = selection.decayed_variables(mlp().trainable_variables)
    assert paths(decayed) == ["mlp/hidden/kernel", "mlp/logits/kernel"]


def test_biases_of_two_dimensions_are_not_decayed():
    inputs = keras.Input((4, 8))
    outputs = keras.layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    outputs = keras.layers.GRU(5, name="gru")(outputs)
    model = keras.Model(inputs, outputs)
    biases = [v for v in model.trainable_variables if v.name == "bias"]
    assert {2} <= {len(v.shape) for v in biases}  # else the rank alone would do
    assert set(paths(selection.decayed_variables(model.trainable_variables))) == {
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
        "attention/attention_output/kernel",
        "gru/gru_cell/kernel",
        "gru/gru_cell/recurrent_kernel",
    }


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("kernel", True),
        ("embeddings", True),
        ("lora_kernel_a", False),
        ("lora_embeddings_b", False),
        ("lora_a", False),
        ("floral_kernel", True),
        ("biased_walk", True),
        ("multi_scale_kernel", True),
        ("alpha_weight", True),
        ("kernel_scale", False),
        ("bias", False),
        ("bias_1", False),
        ("relative_position_bias_table", False),
        ("gamma", False),
        ("beta2", False),
        ("layer_scale", False),
        ("alpha", False),
    ],
)
def test_default_rule_goes_by_the_words_of_the_name(name, decayed):
    with keras.name_scope("scale"):  # only the name counts, not the layer's
        variable = keras.Variable(keras.ops.ones((2, 3)), name=name)
    assert selection.is_decayed_by_default(variable) is decayed


def test_variables_that_their_gradient_replaces_are_not_decayed():
    variable = keras.Variable(keras.ops.ones((2, 3)), name="kernel")
    variable.overwrite_with_gradient = True
    assert not selection.is_decayed_by_default(variable)


def test_vectors_are_not_decayed_whatever_their_name():
    assert not selection.is_decayed_by_default(keras.Variable([1.0, 2.0], name="kernel"))


def test_excluded_variables_are_not_decayed(mlp):
    variables = mlp().trainable_variables
    assert paths(selection.decayed_variables(variables, ["logits/kernel$"])) == [
        "mlp/hidden/kernel"
    ]


def own(path, shape=(2, 3)):
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(keras.ops.ones(shape), name=name)


def test_included_variables_are_decayed_although_their_names_or_shapes_are_those_of_others():
    variables = [own("W_alpha"), own("scale_mat"), own("bias", (3,)), own("kernel")]
    assert selection.decayed_variables(variables) == variables[3:]
    found = selection.decayed_variables(variables, include=["alpha$", "scale_mat", "bias"])
    assert found == variables
    found = selection.decayed_variables(variables, exclude=["W_"], include=["alpha$"])
    assert found == variables[3:]
    with pytest.raises(ValueError, match=r"`include` has a pattern .*include='beta'.*W_alpha"):
        selection.decayed_variables(variables, include=["beta"])


def test_pattern_that_matches_the_name_of_the_model_and_so_everything_is_warned_of(mlp):
    decayed = selection.decayed_variables(mlp().trainable_variables)
    message = r"`overrides` has a pattern that matches every decayed variable.*\{'mlp': \.\.\.\}"
    with pytest.warns(UserWarning, match=message):
        selection.find_overrides(decayed, ["mlp"])
    with pytest.warns(UserWarning, match="`include` has a pattern that matches every trainable"):
        selection.decayed_variables(mlp().trainable_variables, include=["mlp"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection.find_overrides(decayed[:1], ["hidden"])  # The only variable there is.
        selection.find_overrides(decayed, ["hidden"])


class EmbeddingNet(keras.Model):
    """The paths of its variables all begin with `embedding_net/`."""

    def __init__(self):
        super().__init__()
        self.words = keras.layers.Embedding(5, 4, name="words")
        self.head = keras.layers.Dense(2, name="head")

    def call(self, x):
        return self.head(self.words(x))


@pytest.mark.parametrize(
    "use",
    [
        lambda model, exclude: LpAdamW(exclude=exclude).build(model.trainable_variables),
        lambda model, exclude: keras_lp.sparsity_report(model, exclude=exclude),
        lambda model, exclude: keras_lp.prune(model, 0.5, exclude=exclude),
        lambda model, exclude: keras_lp.freeze_zeros(model, exclude=exclude),
        lambda model, exclude: keras_lp.strip_pruning(model, exclude=exclude),
    ],
    ids=["optimizer", "report", "prune", "freeze", "strip"],
)
def test_exclusion_that_matches_the_name_of_the_model_says_so_and_the_remedy_helps(use):
    model = EmbeddingNet()
    model(np.zeros((1, 3), "int32"))
    message = r"`exclude` has a pattern that matches every trainable.*the model's own name.*'embed"
    with pytest.raises(ValueError, match=message):
        use(model, "embedding")
    use(model, "words/embedding")


def test_optimizer_of_a_quantized_model_says_so_and_the_remedy_helps(mlp):
    model = mlp()
    LpAdamW().build(model.trainable_variables)  # As in a training before.
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"no variable to decay.*quantized layers are integers"):
        LpAdamW().build(model.trainable_variables)


def made(decayed, names=("dense/kernel", "dense/bias", "dense_1/kernel"), patterns=((), ())):
    variables = [own(name) for name in names]
    chosen = [(variables[position], override) for position, override in decayed]
    return selection.Selection.of(variables, chosen, patterns), variables


def test_selection_survives_json_in_short():
    chosen = [(0, None), (1, None), (2, 1), (3, None), (4, 0), (5, 1), (7, 1)]
    one, _ = made(chosen, [f"v{n}" for n in range(8)])
    described = json.loads(json.dumps(one.to_dict()))
    assert described["decayed"] == ["0-1 3", "4", "2 5 7"]
    assert selection.Selection.from_dict(described) == one
    assert selection.Selection.from_dict(made([])[0].to_dict()).decayed == ()


@pytest.mark.parametrize(
    ("names", "patterns", "fits"),
    [
        (("dense/kernel", "dense/bias", "dense_1/kernel"), ((), ()), True),
        (("dense_4/kernel", "dense_4/bias", "dense_5/kernel"), ((), ()), True),
        (("dense_4/kernel", "dense_4/bias", "dense_6/kernel"), ((), ()), False),
        (("conv/kernel", "conv/bias", "conv_1/kernel"), ((), ()), False),
        (("dense/kernel", "dense/bias", "dense_1/kernel"), (("a",), ()), False),
        (("dense/kernel", "dense/bias"), ((), ()), False),
    ],
)
def test_selection_fits_variables_that_automatic_names_alone_tell_apart(names, patterns, fits):
    one, _ = made([(0, None)])
    assert one.fits([own(name) for name in names], patterns) is fits


def test_selection_does_not_fit_variables_of_other_shapes():
    one, variables = made([(0, None)])
    assert one.fits(variables, ((), ()))
    assert not one.fits([own(v.path, (3, 3)) for v in variables], ((), ()))


def test_pattern_that_matches_no_variable_is_an_error_that_lists_the_paths(mlp):
    with pytest.raises(ValueError, match=r"`exclude`.*exclude='embed'.*mlp/hidden/kernel"):
        selection.decayed_variables(mlp().trainable_variables, ["embed"])


def test_no_variable_left_to_decay_is_an_error(mlp):
    with pytest.raises(ValueError, match=r"no variable to decay.*Received: .*exclude=\['kernel'\]"):
        selection.decayed_variables(mlp().trainable_variables, ["kernel"])


def test_long_lists_of_paths_are_cut_in_messages():
    variables = [keras.Variable(0.0, name=f"v{index}") for index in range(30)]
    assert selection.list_paths(variables).endswith("v19, and 10 more")


@pytest.mark.parametrize(
    "patterns", ["(", ["kernel", "*"], [3], 7, b"x", re.compile("head", re.IGNORECASE)]
)
def test_malformed_patterns_are_errors_that_name_the_argument(patterns):
    with pytest.raises(ValueError, match=r"`exclude` must be a regular expression.*Received: "):
        selection.check_patterns("exclude", patterns)


def test_patterns_may_be_none_one_or_many():
    assert selection.check_patterns("exclude", None) == ()
    assert selection.check_patterns("exclude", "a|b") == ("a|b",)
    assert selection.check_patterns("exclude", ["a", "b"]) == ("a", "b")
    assert selection.check_patterns("exclude", (p for p in "ab")) == ("a", "b")


def test_first_override_that_matches_wins(mlp):
    decayed = selection.decayed_variables(mlp().trainable_variables)
    assert selection.find_overrides(decayed, ["logits", "kernel", "hidden"]) == [1, 0]
    assert selection.find_overrides(decayed, ["logits"]) == [None, 0]
    assert selection.find_overrides([], ["logits"]) == []
    with pytest.raises(ValueError, match=r"overrides=\{'embed': \.\.\.\}.*mlp/hidden/kernel"):
        selection.find_overrides(decayed, ["hidden", "embed"])
