"""Several norms, schedules and overrides: what they do to the numbers and how they are saved."""

import keras
import numpy as np
import pytest
from keras.optimizers.schedules import PiecewiseConstantDecay, PolynomialDecay

from keras_lp import LpAdamW, LpDecay, LpSGD

LR = 0.1


def variables(*names, value=0.7):
    made = []
    for name in names:
        with keras.name_scope(name):
            made.append(keras.Variable(np.full((2, 3), value), dtype="float32", name="kernel"))
    return made


def step(optimizer, weights, steps=1):
    """Steps with gradients of zero, so that the decay alone moves the weights."""
    for _ in range(steps):
        zeros = [keras.ops.zeros(w.shape) for w in weights]
        optimizer.apply(zeros, weights)
    return [keras.ops.convert_to_numpy(w).flat[0] for w in weights]


def decayed(w, *norms, steps=1):
    """The formula in float64 for norms of (weight_decay, p)."""
    for _ in range(steps):
        w = w / (1 + LR * sum(strength * w ** (p - 2) for strength, p in norms))
    return w


def test_several_norms_add_up_in_the_denominator():
    optimizer = LpSGD(LR, weight_decay=(0.3, 0.05, 0.0), p=(0.8, 2.0, 1.0))
    result = step(optimizer, variables("a"), steps=5)
    assert result[0] == pytest.approx(decayed(0.7, (0.3, 0.8), (0.05, 2.0), steps=5), rel=1e-6)


def test_elastic_net_makes_zeros():
    optimizer = LpSGD(LR, weight_decay=[0.5, 0.01], p=[0.5, 2])
    assert step(optimizer, variables("a", value=1e-3), steps=5) == [0.0]


def test_each_of_several_strengths_is_a_scalar_that_can_be_set():
    optimizer = LpSGD(LR, weight_decay=(0.3, 0.05), p=(0.8, 2.0))
    (w,) = variables("a")
    optimizer.build([w])
    assert [float(each) for each in optimizer.weight_decay] == pytest.approx([0.3, 0.05])
    assert optimizer.p == (0.8, 2.0)
    optimizer.weight_decay = (0.0, 0.2)
    assert step(optimizer, [w]) == pytest.approx([decayed(0.7, (0.2, 2.0))])
    optimizer.weight_decay[1].assign(0.0)
    before = keras.ops.convert_to_numpy(w).copy()
    step(optimizer, [w])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(w), before)


@pytest.mark.parametrize("value", [0.1, (0.1,), (0.1, 0.2, 0.3)])
def test_setting_another_number_of_strengths_is_an_error_and_leaves_the_old_ones(value):
    optimizer = LpSGD(LR, weight_decay=(0.3, 0.05), p=(0.8, 2.0))
    with pytest.raises(ValueError, match=r"`weight_decay` and `p` .*Received: weight_decay="):
        optimizer.weight_decay = value
    with pytest.raises(ValueError, match=r"Received: weight_decay=.*p="):
        optimizer.p = value
    assert [float(each) for each in optimizer.weight_decay] == pytest.approx([0.3, 0.05])
    assert optimizer.p == (0.8, 2.0)


def test_schedules_can_be_mixed_with_numbers_among_several_norms():
    schedule = PiecewiseConstantDecay([1], [0.0, 0.4])
    optimizer = LpSGD(LR, weight_decay=(schedule, 0.05), p=(0.8, PolynomialDecay(2.0, 2, 1.0)))
    (w,) = variables("a")
    expected = 0.7
    for wd, p in [(0.0, 2.0), (0.0, 1.5), (0.4, 1.0), (0.4, 1.0)]:
        expected = decayed(expected, (wd, 0.8), (0.05, p))
        assert step(optimizer, [w]) == pytest.approx([expected], rel=1e-6)
    assert [float(each) for each in optimizer.p] == pytest.approx([0.8, 1.0])
    with pytest.raises(TypeError, match=r"schedule.*Received: weight_decay=\(0.1, 0.1\)"):
        optimizer.weight_decay = (0.1, 0.1)


@pytest.mark.parametrize("kind", [keras.optimizers.SGD, LpSGD])
def test_schedules_count_every_batch_while_gradients_accumulate_as_keras_does(kind):
    # For the learning rate this is Keras's own rule; the strength follows it.
    schedule = PiecewiseConstantDecay([2], [0.0, 1.0])
    arguments = {"weight_decay": schedule, "p": 2.0} if kind is LpSGD else {}
    rate = LR if kind is LpSGD else schedule
    optimizer = kind(rate, gradient_accumulation_steps=2, **arguments)
    (w,) = variables("a")
    ones = [keras.ops.ones((2, 3))]
    seen = []
    for _ in range(4):
        optimizer.apply(ones if kind is not LpSGD else [keras.ops.zeros((2, 3))], [w])
        seen.append(float(keras.ops.convert_to_numpy(w)[0, 0]))
    assert seen[0] == seen[1] == pytest.approx(0.7)  # count 1, in the first half
    assert seen[3] == pytest.approx(0.7 - 1.0 if kind is not LpSGD else 0.7 / (1 + LR))


def test_strengths_are_kept_in_float32_where_keras_computes_in_float16():
    keras.config.set_floatx("float16")
    try:
        optimizer = LpSGD(0.5, weight_decay=1e-7, p=0.0)
        (w,) = variables("a", value=1e-4)
        result = step(optimizer, [w])
    finally:
        keras.config.set_floatx("float32")
    assert float(optimizer.weight_decay) == pytest.approx(1e-7)
    assert result == pytest.approx([1e-4 / (1 + 0.5 * 1e-7 / 1e-8)], rel=1e-3)


@keras.saving.register_keras_serializable(package="tests", name="Registered")
class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of a user's."""

    def __call__(self, step):
        return 0.5 ** keras.ops.cast(step, "float32")

    def get_config(self):
        return {}


class Unregistered(Halving):
    """Another one, which is loaded by custom objects."""


@pytest.mark.parametrize(
    "make", [LpAdamW, lambda **kwargs: LpDecay(keras.optimizers.SGD(), **kwargs)]
)
def test_schedules_of_a_users_class_are_loaded_by_custom_objects(make):
    optimizer = make(
        weight_decay=Unregistered(), overrides={"a": {"p": Unregistered(), "weight_decay": 0.1}}
    )
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config, {"Unregistered": Unregistered})
    assert float(again.weight_decay) == 1.0
    assert float(again.overrides["a"]["p"]) == 1.0


def test_overrides_hold_for_the_variables_that_they_match_and_the_first_one_wins():
    optimizer = LpSGD(
        LR,
        weight_decay=0.2,
        p=1.5,
        overrides={
            "embedding": {"weight_decay": 0.5},
            "block_1/": {"p": 1.0},
            "block": {"weight_decay": 0.0},
            "head": {"weight_decay": (0.1, 0.3), "p": (1.0, 2.0)},
        },
    )
    weights = variables("embedding", "block_1", "block_2", "head", "rest")
    expected = [
        decayed(0.7, (0.5, 1.5)),
        decayed(0.7, (0.2, 1.0)),
        np.float32(0.7),
        decayed(0.7, (0.1, 1.0), (0.3, 2.0)),
        decayed(0.7, (0.2, 1.5)),
    ]
    assert step(optimizer, weights) == pytest.approx(expected, rel=1e-6)
    assert len(optimizer.decayed_variables) == 5


def test_override_of_p_alone_follows_the_strength_that_is_set():
    optimizer = LpSGD(LR, weight_decay=0.2, p=1.5, overrides={"a": {"p": 1.0}})
    weights = variables("a", "b")
    optimizer.build(weights)
    optimizer.weight_decay = 0.4
    assert step(optimizer, weights) == pytest.approx(
        [decayed(0.7, (0.4, 1.0)), decayed(0.7, (0.4, 1.5))], rel=1e-6
    )


def test_strength_of_an_override_can_be_set_during_training():
    optimizer = LpSGD(LR, weight_decay=0.2, p=1.0, overrides={"a": {"weight_decay": 0.5}})
    weights = variables("a", "b")
    optimizer.build(weights)
    optimizer.overrides["a"]["weight_decay"].assign(0.0)
    assert step(optimizer, weights) == pytest.approx([0.7, decayed(0.7, (0.2, 1.0))], rel=1e-6)
    assert optimizer.get_config()["overrides"] == {"a": {"weight_decay": 0.0}}


def test_overrides_take_schedules():
    schedule = PiecewiseConstantDecay([0], [0.5, 0.0])
    optimizer = LpSGD(
        LR, weight_decay=0.2, p=1.0, overrides={"a": {"weight_decay": schedule, "p": 2.0}}
    )
    weights = variables("a", "b")
    expected = [decayed(0.7, (0.5, 2.0)), decayed(0.7, (0.2, 1.0), steps=3)]
    assert step(optimizer, weights, steps=3) == pytest.approx(expected, rel=1e-6)


def test_overrides_cannot_be_set_in_place_where_it_would_have_no_effect():
    optimizer = LpSGD(overrides={"a": {"weight_decay": 0.5}})
    with pytest.raises(TypeError, match="does not support item assignment"):
        optimizer.overrides["a"]["weight_decay"] = 0.1


def test_schedule_cannot_replace_a_strength_during_training():
    optimizer = LpSGD(weight_decay=0.5)
    with pytest.raises(TypeError, match=r"schedule .*when the optimizer is created.*Received: "):
        optimizer.weight_decay = PolynomialDecay(0.1, 10)
    assert float(optimizer.weight_decay) == 0.5


def test_override_with_its_own_strength_is_a_scalar_of_state_more():
    weights = variables("a", "b")
    optimizer = LpSGD(overrides={"a": {"weight_decay": 0.5}, "b": {"p": 1.0}})
    optimizer.build(weights)
    added = optimizer.variables[len(keras.optimizers.SGD().variables) :]
    # Two strengths, how they are scaled for each of the two variables, and up to which rate.
    assert sorted(tuple(variable.shape) for variable in added) == [(), (), (), (2, 1)]


@pytest.mark.parametrize(
    "make", [LpAdamW, lambda **kwargs: LpDecay(keras.optimizers.SGD(), **kwargs)]
)
def test_config_of_everything_survives_a_round_trip(make):
    optimizer = make(
        weight_decay=(0.1, PolynomialDecay(0.0, 10, 0.5)),
        p=(PolynomialDecay(2.0, 20, 0.8), 2.0),
        reference="updated",
        exclude=["c"],
        overrides={
            "a": {"weight_decay": [0.1, 0.2]},
            "b": {"p": [1.0, PolynomialDecay(1.0, 5, 0.5)]},
        },
    )
    weights = variables("a", "b", "c", "d")
    optimizer.build(weights)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    twins = variables("a", "b", "c", "d")
    results = step(optimizer, weights, steps=3), step(again, twins, steps=3)
    assert results[0] == results[1]
    assert len(set(results[0])) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("a", r"`overrides` must be a dictionary .*Received: overrides='a'"),
        ({"(": {"p": 1.0}}, r"`overrides` must be a regular expression.*Received: overrides='\('"),
        ([], r"`overrides` must be a dictionary .*Received: overrides=\[\]"),
        ({("a", "b"): {"p": 1}}, r"`overrides` has keys .*Received: overrides=\{\('a', 'b'\)"),
        ({"a": 0.1}, r"`weight_decay`, `p` or both.*Received: overrides\['a'\]=0.1"),
        ({"a": {}}, r"`weight_decay`, `p` or both.*Received: overrides\['a'\]=\{\}"),
        ({"a": {"lr": 1.0}}, r"`weight_decay`, `p` or both.*Received: overrides\['a'\]=.*lr"),
        ({"a": {"p": -1}}, r"`overrides` for the pattern 'a': .*Received: p=-1"),
        ({"a": {"weight_decay": "x"}}, r"for the pattern 'a': .*Received: weight_decay='x'"),
        ({"a": {"p": (1.0, 2.0)}}, r"another number of norms.*set both.*overrides\['a'\]="),
    ],
)
def test_bad_override_is_an_error_that_names_it_and_the_remedy(overrides, message):
    with pytest.raises(ValueError, match=message):
        LpAdamW(overrides=overrides)


@pytest.mark.parametrize("pattern", ["embed", "bias"])
def test_override_that_matches_no_decayed_variable_is_an_error_that_lists_them(mlp, pattern):
    optimizer = LpAdamW(overrides={"hidden": {"p": 1.0}, pattern: {"p": 1.0}})
    message = rf"`overrides` has a pattern.*'{pattern}'.*mlp/hidden/kernel, mlp/logits/kernel"
    with pytest.raises(ValueError, match=message):
        optimizer.build(mlp().trainable_variables)
    assert not optimizer.built


def test_overrides_survive_save_and_load_where_keras_changes_the_paths(mlp, tmp_path):
    model = mlp()
    # The path of a loaded Sequential lacks the first part.
    model.compile(
        LpSGD(LR, weight_decay=0.2, p=1.0, overrides={"^mlp/logits": {"p": 2.0}}), loss="mse"
    )
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.get_layer("logits").kernel.path.startswith("mlp")
    for each in (model, loaded):
        step(each.optimizer, each.trainable_variables)
    for left, right in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_one_norm_with_p_below_2_keeps_zeros_whatever_the_other_does():
    (w,) = variables("a", value=0.0)
    optimizer = LpSGD(LR, weight_decay=(0.1, 0.1), p=(2.0, 0.8), use_ema=True)
    with pytest.warns(UserWarning, match="a/kernel"):
        optimizer.build([w])
    optimizer.apply([keras.ops.ones((2, 3))], [w])
    assert not keras.ops.convert_to_numpy(w).any()


def test_zeros_that_an_override_lets_train_are_not_warned_of(mlp, recwarn):
    model = mlp()
    model.get_layer("logits").kernel.assign(np.zeros((16, 3)))
    LpAdamW(overrides={"logits": {"p": 2.0}}).build(model.trainable_variables)
    assert not [w for w in recwarn if "With p < 2" in str(w.message)]
    with pytest.warns(UserWarning, match="logits"):
        LpAdamW(p=2.0, overrides={"logits": {"p": 1.0}}).build(model.trainable_variables)
