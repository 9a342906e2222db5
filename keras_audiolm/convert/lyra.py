"""Lyra v2: the SoundStream that Google trained and deployed.

Its three TFLite graphs hold the light configuration of `SoundStream`, in a
streaming form: encoder, 46 codebooks of 16 codes, decoder. The deeper half of
the networks is stored in 8 bits and is dequantized here; Lyra itself computes
that half in 8 bits, so that its embeddings differ a little from ours.
"""

import pathlib

import numpy as np

from keras_audiolm.codec.soundstream import SoundStream

ENCODER = "soundstream_encoder.tflite"
QUANTIZER = "quantizer.tflite"
DECODER = "lyragan.tflite"
FILES = (ENCODER, QUANTIZER, DECODER)
CONFIG = dict(
    sample_rate=16000,
    channels=64,
    strides=(5, 2, 2),
    stem_stride=16,
    unit="separable",
    max_groups=4,
    activation="leaky_relu",
    embedding_dim=64,
)
CODES = 16  # of a codebook
KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "TRANSPOSE_CONV": "transposed",
}


def read_codec(folder, levels=None, group=1):
    """Lyra's codec as a `SoundStream`.

    Args:
        folder: path of the three files of `lyra/model_coeffs/`.
        levels: int, optional. How many of the 46 levels of 4 bits, coarsest
            first, to keep: 16, 30 and 46 are Lyra's own bit rates, 3.2, 6 and
            9.2 kbps. All by default.
        group: int. Levels that become one, whose codes are the sums of
            theirs: `levels=16, group=2` gives 8 levels of 256 codes, which
            language models like better, at the same 3.2 kbps.

    Returns:
        A built `SoundStream` with Lyra's weights.

    Raises:
        ImportError: without `ai-edge-litert`.
        ValueError: on files that are missing, broken or other models, more
            levels than there are, or a group that does not divide them.
    """
    folder = pathlib.Path(folder)
    books = read_codebooks(Graph(folder / QUANTIZER))
    levels = len(books) if levels is None else levels
    if not 1 <= levels <= len(books):
        raise ValueError(
            f"Lyra has {len(books)} levels. Received: levels={levels}"
        )
    books = grouped(books[:levels], group)
    codec = SoundStream(
        **CONFIG, num_quantizers=len(books), codebook_size=books.shape[1]
    )
    codec.build()
    set_layers(codec.encoder, Graph(folder / ENCODER))
    set_layers(codec.decoder, Graph(folder / DECODER))
    codec.quantizer.embedding_sum.assign(books)
    codec.quantizer.usage.assign(np.ones(books.shape[:2]))
    codec.initialized.assign(1.0)
    return codec


def grouped(books, group):
    """`(levels, codes, dim)` to `(levels / group, codes ** group, dim)`."""
    levels, codes, dim = books.shape
    if group < 1 or levels % group or codes**group > 65536:
        raise ValueError(
            f"`group` must divide the {levels} levels, and {codes} ** group "
            f"codes be 65536 or fewer. Received: group={group}"
        )
    sums = books[0::group]  # (levels / group, codes, dim)
    for i in range(1, group):
        sums = sums[:, :, None] + books[i::group, None]
        sums = sums.reshape(levels // group, -1, dim)
    return sums


# === Reading TFLite ===


class Graph:
    """The constants of a TFLite graph, in the order in which it uses them.

    Args:
        path: of the file.
    """

    def __init__(self, path):
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            raise ImportError(
                "Lyra's files are read by ai-edge-litert: pip install "
                "'keras-audiolm[convert]'"
            ) from error
        if not path.is_file():
            raise ValueError(
                f"{path} is missing. Lyra's codec is {', '.join(FILES)} in "
                "one folder, from lyra/model_coeffs of its repository."
            )
        plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self.interpreter = interpreter.Interpreter(
                str(path), experimental_op_resolver_type=plain
            )
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is not a TFLite graph: {error}") from None
        self.path = path
        self.tensors = {
            t["index"]: t for t in self.interpreter.get_tensor_details()
        }

    def operations(self):
        """Yields names and the indices of inputs, as they are executed."""
        for operation in self.interpreter._get_ops_details():
            yield operation["op_name"], list(operation["inputs"])

    def constant(self, index):
        """A tensor as float32, dequantized by its own scales."""
        value = self.interpreter.get_tensor(index)
        quantization = self.tensors[index]["quantization_parameters"]
        scales = quantization["scales"]
        if not len(scales):
            return value.astype("float32")
        if len(scales) > 1:  # one each of some dimension
            shape = np.ones(value.ndim, int)
            shape[quantization["quantized_dimension"]] = -1
            scales = scales.reshape(shape)
            zeros = quantization["zero_points"].reshape(shape)
        else:
            scales, zeros = scales[0], quantization["zero_points"][0]
        return ((value.astype("float32") - zeros) * scales).astype("float32")


def read_codebooks(graph):
    """`(46, 16, 64)` float32: what the graph makes of each code alone."""
    try:
        decode = graph.interpreter.get_signature_runner("decode")
        ((name, details),) = decode.get_input_details().items()
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{graph.path} is not Lyra v2's quantizer: {error}"
        ) from None
    levels = int(details["shape"][0])
    books = []
    for level, code in np.ndindex(levels, CODES):
        codes = np.full(details["shape"], -1, "int32")  # -1: no such level
        codes[level] = code
        (vector,) = decode(**{name: codes}).values()
        books.append(vector.reshape(-1))
    return np.stack(books).reshape(levels, CODES, -1)


def set_layers(stack, graph):
    """Gives the convolutions of a `CausalStack` a graph's weights, in order.

    Raises:
        ValueError: where the graph has others.
    """
    found = convolutions(graph)
    wanted = list(leaves(stack))
    try:
        if len(found) != len(wanted):
            raise ValueError(f"{len(found)} convolutions, not {len(wanted)}")
        for layer, (kernel, bias) in zip(wanted, found, strict=True):
            layer.kernel.assign(kernel)
            layer.bias.assign(bias)
    except ValueError as error:
        raise ValueError(
            f"{graph.path} is not Lyra v2's {stack.name}: {error}"
        ) from None


def leaves(stack):
    """The convolutions of a stack, in the order in which they run."""
    for layer in stack.layers:
        parts = [
            getattr(layer, name)
            for name in ("wide", "mix", "narrow")
            if hasattr(layer, name)
        ]
        yield from parts or ([layer] if hasattr(layer, "kernel") else [])


def convolutions(graph):
    """Kernels and biases of a graph as our layers have them, in order."""
    found, group = [], []
    for name, inputs in graph.operations():
        kind = KINDS.get(name)
        if kind is None:
            continue
        if kind == "transposed":
            # Grouped ones are several, one after the other, of as many parts
            # of the channels.
            _, kernel, _, bias = inputs
            group.append((graph.constant(kernel), graph.constant(bias)))
            continue
        found += joined(group)
        group = []
        _, kernel, bias = inputs
        kernel = graph.constant(kernel)[:, :, 0]
        # conv (filters, time, channels), depthwise (1, time, channels)
        axes = (1, 2, 0) if kind == "conv" else (1, 0, 2)
        found.append((kernel.transpose(axes), graph.constant(bias)))
    return found + joined(group)


def joined(group):
    """The transposed convolutions of a group as one."""
    if not group:
        return []
    kernels = [kernel[:, :, 0].transpose(1, 0, 2) for kernel, _ in group]
    biases = [bias for _, bias in group]
    return [(np.concatenate(kernels, axis=-1), np.concatenate(biases))]
