"""Sparse weights for those runtimes that compute them rightly."""

from keras_lp.deploy.sparse_convolutions import BROKEN, find_sparse_convolutions
from keras_lp.deploy.sparse_encoding import encode_zeros


def encode_for(runtime: str, data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The file with sparse weights, unless a device of the runtime would compute it wrongly.

    Args:
        runtime: One of `RUNTIMES`.
        data: A `.tflite` file.

    Returns:
        The bytes of the file, and what the caller should know of it.
    """
    encoded = encode_zeros(data)
    if encoded is data or runtime == "no_delegate":
        return encoded, ()
    found = find_sparse_convolutions(data)
    if found.kind != BROKEN:
        return encoded, ()
    why = (
        "with sparse weights XNNPACK computes it wrongly on ARM, in browsers and on x86 without "
        "AVX (LiteRT 2.3), as it begins with a 3x3 convolution of stride 2 on 3 channels, padded "
        f"by 1 on all sides, and there is {found.misfit} before the mean over the space"
    )
    if runtime == "x86":
        return encoded, (f"for x86 with AVX alone: {why}",)
    return data, (
        f'has dense weights: {why}. `runtime="x86"` writes sparse ones; a first layer with '
        '`padding="same"` is right everywhere',
    )
