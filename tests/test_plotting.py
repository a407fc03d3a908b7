import sys

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp.plotting import plot_layers, plot_sparsity, plot_weights

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

CURVES = {"loss": [2.0, 1.0, 0.5], "sparsity": [0.0, 0.5, 0.9]}


@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    """An Axes of a figure that pyplot does not know."""
    return matplotlib.figure.Figure(layout="constrained").add_subplot()


@pytest.fixture
def history():
    """A History of three epochs after ten others."""
    history = keras.callbacks.History()
    history.epoch, history.history = [10, 11, 12], CURVES
    return history


def dense(array, name="model", dtype="float32"):
    """A model with one decayed variable, `array`."""
    array = np.atleast_2d(array)
    layer = keras.layers.Dense(array.shape[1], use_bias=False, name="dense", dtype=dtype)
    model = keras.Sequential([keras.Input(array.shape[:1]), layer], name=name)
    layer.kernel.assign(array)
    return model


def report_of(*layers):
    return keras_lp.SparsityReport(
        tuple(keras_lp.LayerSparsity(*layer) for layer in layers), threshold=0.0, not_counted=0
    )


def histograms(ax):
    return [patch for patch in ax.patches if isinstance(patch, matplotlib.patches.StepPatch)]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def twin_of(ax):
    (twin,) = set(ax.get_shared_x_axes().get_siblings(ax)) - {ax}
    return twin


def overlap(artists):
    """Whether any two of the artists, which are in one figure, overlap."""
    artists[0].figure.draw_without_rendering()
    boxes = [artist.get_window_extent() for artist in artists]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def plots(model):
    return {
        "sparsity": lambda **options: plot_sparsity(CURVES, **options),
        "weights": lambda **options: plot_weights(model, **options),
        "layers": lambda **options: plot_layers(keras_lp.sparsity_report(model), **options),
    }


@pytest.mark.parametrize("name", ["sparsity", "weights", "layers"])
def test_plot_draws_into_the_given_axes_and_makes_no_figure(name, mlp, ax):
    before = plt.get_fignums()  # Other tests of this process may have left some.
    assert plots(mlp())[name](ax=ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == before


@pytest.mark.parametrize("name", ["sparsity", "weights", "layers"])
def test_plot_without_axes_makes_a_new_figure_each_time(name, mlp):
    current = plt.figure()
    axes = [plots(mlp())[name](), plots(mlp())[name]()]
    assert len({current, axes[0].figure, axes[1].figure}) == 3
    assert not current.axes


@pytest.mark.parametrize("name", ["sparsity", "weights", "layers"])
def test_missing_matplotlib_is_an_error_that_names_the_extra(name, mlp, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"`matplotlib`.*pip install 'keras-lp\[plot\]'"):
        plots(mlp())[name]()


def test_sparsity_is_drawn_in_percent_over_the_epochs_of_the_history(history, ax):
    plot_sparsity(history, ax=ax)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [11, 12, 13])
    np.testing.assert_allclose(line.get_ydata(), [0, 50, 90])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "sparsity (%)")
    assert ax.get_ylim()[0] < 0
    assert ax.get_ylim()[1] > 100


def test_epochs_of_a_dict_are_counted_from_one(ax):
    plot_sparsity(CURVES, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])


def test_tick_of_a_single_epoch_is_a_whole_number(ax):
    plot_sparsity({"sparsity": [0.5]}, ax=ax)
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low < tick < high] == [1]


def test_metric_is_drawn_on_an_axis_of_its_own_unlike_the_sparsity(history, ax):
    plot_sparsity(history, metric="loss", ax=ax)
    twin = twin_of(ax)
    (line,) = twin.lines
    np.testing.assert_array_equal(line.get_xdata(), [11, 12, 13])
    np.testing.assert_array_equal(line.get_ydata(), CURVES["loss"])
    assert twin.get_ylabel() == "loss"
    assert line.get_linestyle() != ax.lines[0].get_linestyle()
    assert line.get_marker() != ax.lines[0].get_marker()
    assert labels(ax) == ["sparsity", "loss"]


def test_target_is_a_dotted_line_with_its_percentage_in_the_legend(ax):
    plot_sparsity(CURVES, target=0.29, ax=ax)
    line = ax.lines[1]
    np.testing.assert_allclose(line.get_ydata(), [29, 29])
    assert line.get_linestyle() == ":"
    assert labels(ax) == ["sparsity", "target 29 %"]


@pytest.mark.parametrize("loss", [[0.1, 0.2, 2.0], [2.0, 0.2, 0.1], [0.1, 0.1, 0.1]])
def test_legend_covers_no_curve(loss, ax):
    plot_sparsity(CURVES | {"loss": loss}, metric="loss", target=0.9, ax=ax)
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    for line in (*ax.lines, *twin_of(ax).lines):
        assert not line.get_transform().transform_path(line.get_path()).intersects_bbox(box, False)


def test_history_without_sparsity_is_an_error_that_names_the_callbacks():
    with pytest.raises(
        ValueError, match=r"`history`.*SparsityLogger.*no 'sparsity' among the keys loss, accuracy$"
    ):
        plot_sparsity({"loss": [1.0], "accuracy": [0.5]})
    with pytest.raises(ValueError, match=r"`history`.*no 'sparsity' among the keys \(none\)$"):
        plot_sparsity(keras.callbacks.History())
    assert not plt.get_fignums()


def test_metric_that_is_not_there_is_an_error_that_lists_those_that_are():
    with pytest.raises(ValueError, match=r"`metric`.*no 'val_loss' among the keys loss, sparsity$"):
        plot_sparsity(CURVES, metric="val_loss")


def test_curve_with_gaps_is_an_error():
    with pytest.raises(ValueError, match=r"'val_loss'.*`validation_freq=1`.*1 values, 3 epochs"):
        plot_sparsity(CURVES | {"val_loss": [1.0]}, metric="val_loss")


@pytest.mark.parametrize("history", [None, [0.1, 0.9], keras.layers.Dense(2)])
def test_what_is_no_history_is_an_error_that_names_its_type(history):
    with pytest.raises(TypeError, match=r"`history` must be what `model.fit` returns.*type "):
        plot_sparsity(history)


@pytest.mark.parametrize(
    ("history", "metric", "message"),
    [
        ({"sparsity": [0.1], "loss": [1.0]}, ["loss"], r"`metric` must be a key.*no \['loss'\]"),
        ({"sparsity": [np.nan, np.nan]}, None, r"finite value of 'sparsity'.*nan"),
        ({"sparsity": []}, None, r"finite value of 'sparsity'. Received: \[\]"),
    ],
)
def test_curve_that_cannot_be_drawn_is_an_error(history, metric, message):
    with pytest.raises(ValueError, match=message):
        plot_sparsity(history, metric=metric)


@pytest.mark.parametrize("name", ["sparsity", "weights", "layers"])
def test_several_axes_at_once_are_an_error_that_says_to_pass_one(name, mlp):
    with pytest.raises(TypeError, match=r"`ax` must be one matplotlib Axes.*`axes\[0\]`"):
        plots(mlp())[name](ax=plt.subplots(1, 2)[1])


def test_histories_in_one_picture_differ_in_black_and_white_and_have_their_names(ax):
    for label in ("p = 0.8", "p = 0.5", "p = 1"):
        plot_sparsity(CURVES, label=label, ax=ax)
    assert len({line.get_marker() for line in ax.lines}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "p = 0.8",
        "p = 0.5",
        "p = 1",
    ]


@pytest.mark.parametrize("target", [90, -0.1, "0.9", float("nan")])
def test_target_that_is_no_share_is_an_error(target):
    with pytest.raises(ValueError, match=r"`target` must be a number from 0 to 1.*Received: targ"):
        plot_sparsity(CURVES, target=target)
    assert not plt.get_fignums()


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_histogram_counts_the_nonzero_weights_of_each_part_of_a_decade(bins, ax):
    random = np.random.default_rng(0)
    weights = random.normal(size=(40, 50)) * 10 ** random.uniform(-6, 2, (40, 50))
    weights[random.random(weights.shape) < 0.25] = 0
    weights = weights.astype("float32")
    plot_weights(dense(weights), bins=bins, ax=ax)
    counts, edges, _ = histograms(ax)[0].get_data()
    expected, _ = np.histogram(np.log10(np.abs(weights[weights != 0].astype("float64"))), edges)
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == np.count_nonzero(weights)
    np.testing.assert_allclose(edges * bins, np.round(edges * bins), atol=1e-9)
    np.testing.assert_allclose(np.diff(edges), 1 / bins)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("log10 |w|", "weights")
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1
    assert ax.get_ylim()[1] > counts.max()
    assert labels(ax) == [f"model ({100 * np.mean(weights == 0):.2f} % exact zeros)"]


def test_weights_on_the_edge_of_a_bin_are_all_counted(ax):
    weights = 10.0 ** np.arange(-30, 30) * np.ones((2, 1))
    plot_weights(dense(weights), ax=ax)
    assert histograms(ax)[0].get_data().values.sum() == 120


def test_models_laid_over_each_other_share_bins_and_differ_without_color(ax):
    models = [dense([[1e-3, 0.02], [0.3, 0]], "first"), dense([[0.05, 4], [0, 0]], "second")]
    plot_weights(models[0], ax=ax)
    plot_weights(models[1], ax=ax, label="other")
    plot_weights(models[1], ax=ax, label="third")
    assert labels(ax) == [
        "first (25.00 % exact zeros)",
        "other (50.00 % exact zeros)",
        "third (50.00 % exact zeros)",
    ]
    edges = [patch.get_data().edges for patch in histograms(ax)]
    shared = np.intersect1d(*(np.round(edge, 9) for edge in edges[:2]))
    assert len(shared) == 10  # from -1.4, below log10(0.05), to -0.5, above log10(0.3)
    styles = {
        (patch.get_linestyle(), patch.get_hatch(), patch.get_facecolor())
        for patch in histograms(ax)
    }
    assert len(styles) == 3


def test_limits_hold_the_highest_count_whichever_model_comes_first(ax):
    random = np.random.default_rng(0)
    plot_weights(dense(random.normal(size=(100, 100))), ax=ax)
    plot_weights(dense(random.normal(size=(2, 2))), ax=ax)
    assert ax.get_ylim()[1] > max(patch.get_data().values.max() for patch in histograms(ax)) > 100


@pytest.mark.parametrize("size", [(6.4, 4.0), (4.0, 2.5)])
def test_legend_covers_no_bar(size, ax):
    ax.figure.set_size_inches(size)
    model = dense(np.random.default_rng(0).uniform(0.1, 1, (100, 100)))
    for name in ("first", "second"):
        plot_weights(model, ax=ax, label=name)
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    top = max(patch.get_data().values.max() for patch in histograms(ax))
    assert box.y0 > ax.transData.transform((0, top))[1]


def test_model_of_zeros_alone_gives_an_empty_histogram_that_says_so(ax):
    plot_weights(dense(np.zeros((3, 4))), ax=ax)
    ax.figure.draw_without_rendering()
    assert histograms(ax)[0].get_data().values.sum() == 0
    assert labels(ax) == ["model (100.00 % exact zeros)"]
    assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_counted_to_its_smallest_numbers(dtype, ax):
    plot_weights(dense([[2.0**-24, 0.0, 2.0, 2.0]], dtype=dtype), bins=1, ax=ax)
    counts, edges, _ = histograms(ax)[0].get_data()
    assert (edges[0], edges[-1]) == (-8, 1)
    np.testing.assert_array_equal(counts, [1, 0, 0, 0, 0, 0, 0, 0, 2])
    assert labels(ax) == ["model (25.00 % exact zeros)"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_that_names_them(value):
    with pytest.raises(ValueError, match=r"not finite.*NaN or infinity in .*dense/kernel"):
        plot_weights(dense([[1.0, value]]))
    assert not plt.get_fignums()


def test_excluded_weights_are_left_out(mlp, ax):
    plot_weights(mlp(), exclude="logits", ax=ax)
    assert histograms(ax)[0].get_data().values.sum() == 8 * 16


@pytest.mark.parametrize("bins", [0, -1, 2.5, "auto", None])
def test_bins_that_are_no_positive_integer_are_an_error(mlp, bins):
    with pytest.raises(ValueError, match=r"`bins` must be a positive integer.*Received: bins="):
        plot_weights(mlp(), bins=bins)


def test_layers_are_bars_from_top_to_bottom_with_what_is_left(ax):
    plot_layers(report_of(("hidden", 6958, 8192), ("logits", 0, 10), ("empty", 7, 7)), ax=ax)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [100 * 6958 / 8192, 0, 100])
    assert [text.get_text() for text in ax.texts] == [
        "1,234 of 8,192 left",
        "10 of 10 left",
        "0 of 7 left",
    ]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["hidden", "logits", "empty"]
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == list(ax.get_yticks())
    assert ax.yaxis_inverted()
    assert ax.get_xlim() == (0, 100)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sparsity (%)", "layer")


@pytest.mark.parametrize("count", [1, 3, 60])
def test_figure_has_room_for_all_names_and_numbers(count):
    name = "transformer_encoder/transformer_block_{}/feed_forward/intermediate_dense"
    ax = plot_layers(report_of(*((name.format(i), 10**6, 10**7) for i in range(count))))
    ticks = ax.get_yticklabels()
    assert not overlap([*ticks, *ax.texts])
    assert ticks[-1].get_text().startswith("transformer_encoder/")
    assert ticks[-1].get_text().endswith("/intermediate_dense")
    for text in (*ticks, *ax.texts):
        box = text.get_window_extent()
        assert ax.figure.bbox.x0 <= box.x0 < box.x1 <= ax.figure.bbox.x1
    assert ax.bbox.width > 200


def test_model_in_place_of_a_report_is_an_error_that_says_how_to_make_one(mlp):
    with pytest.raises(TypeError, match=r"`report` must be .*`keras_lp.sparsity_report\(model\)`"):
        plot_layers(mlp())


def test_layers_that_are_dead_are_named_so_and_kernels_of_one_layer_have_bars_of_their_own(ax):
    layer = keras.layers.SeparableConv1D(4, 3, name="separable")
    model = keras.Sequential([keras.Input((6, 2)), layer, keras.layers.Dense(2, name="dense")])
    layer.depthwise_kernel.assign(np.zeros((3, 2, 1)))
    plot_layers(keras_lp.sparsity_report(model), ax=ax)
    assert [text.get_text() for text in ax.texts] == [
        "0 of 6 left, dead",
        "8 of 8 left",
        "8 of 8 left, cut off",
    ]
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "dense",
    ]


def test_weights_of_a_quantized_model_are_refused_and_adapted_ones_drawn_as_computed(mlp, ax):
    model = mlp()
    keras_lp.prune(model, 0.5)
    model.get_layer("hidden").enable_lora(2)
    model.get_layer("hidden").lora_kernel_b.assign(np.ones((2, 16)))
    plot_weights(model, ax=ax)
    zeros = keras_lp.sparsity_report(model).sparsity
    assert f"({100 * zeros:.2f} % exact zeros)" in ax.get_legend().get_texts()[0].get_text()
    model.quantize("int8", filters="logits")
    with pytest.raises(ValueError, match=r"no magnitudes. Draw it before `model.quantize`.*logits"):
        plot_weights(model, ax=ax)
