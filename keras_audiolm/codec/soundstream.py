"""SoundStream: a causal neural audio codec."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.codec.quantizer import ResidualVectorQuantizer
from keras_audiolm.layers.causal_conv import CausalConv1D, CausalConv1DTranspose
from keras_audiolm.layers.compiled import CompiledFunction, padded_frames
from keras_audiolm.layers.mdct import MDCT, compress, expand


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ResidualUnit(keras.layers.Layer):
    """`x + conv1(elu(conv7(elu(x))))`, the convolution of 7 dilated.

    Args:
        filters: int. Channels in and out.
        dilation_rate: int. Of the wide convolution.

    Call arguments:
        x: `(batch, time, filters)`.
    """

    def __init__(self, filters, dilation_rate, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.dilation_rate = dilation_rate
        self.wide = CausalConv1D(
            filters, 7, dilation_rate=dilation_rate, name="wide"
        )
        self.narrow = CausalConv1D(filters, 1, name="narrow")

    def build(self, input_shape):
        self.wide.build(input_shape)
        self.narrow.build(input_shape)

    def call(self, x):
        y = self.wide(ops.elu(x))
        return x + self.narrow(ops.elu(y))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "dilation_rate": self.dilation_rate,
        }


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SoundStream(keras.Model):
    """A causal convolutional codec with a residual vector quantizer.

    The encoder turns every `hop_length` samples into one embedding, the
    quantizer turns that into `num_quantizers` codes, and the decoder turns
    codes back into samples. All convolutions see the past only, so codes
    never depend on samples after their hop.

    With `transform="mdct"` the two ends are a fixed orthonormal transform,
    and the network works on its (square-root compressed) coefficients beside
    a linear path which starts from their principal components. It learns to
    speak intelligibly in minutes on a laptop where the waveform network takes
    days, at the price of one more hop of latency.

    Args:
        sample_rate: int. Hertz. Defaults to `16000`.
        channels: int. Width of the first block, doubled by every block.
            Defaults to `32`.
        strides: sequence of int. One encoder block each, first to last; the
            decoder mirrors them. Defaults to `(2, 4, 5, 8)`.
        embedding_dim: int. Defaults to `128`.
        num_quantizers: int. Levels of the quantizer. Defaults to `12`.
        codebook_size: int. Codes of a level. Defaults to `1024`.
        transform: `None` for the waveform (the paper's), or `"mdct"`.
        transform_hop: int. Samples of an MDCT frame; the codec's hop is it
            times the strides. Defaults to `320`.
        codebook_decay: float. Of the codebooks' moving averages.
        quantizer_dropout: float. The part of training examples whose number
            of levels is drawn at random. Defaults to `1.0`.
        seed: int. Of everything random in training.

    Call arguments:
        audio: `(batch, samples)` in [-1, 1] at `sample_rate`.
        training: bool. Whether to drop levels and learn codebooks; the
            commitment loss is then added to `losses`.

    Returns:
        Audio of the same shape, through all levels of the quantizer.

    Example:

    ```python
    codec = keras_audiolm.SoundStream()
    codes = codec.encode(audio)      # (batch, frames, 12) int32
    audio = codec.decode(codes)      # (batch, frames * 320)
    audio = codec.decode(codes[..., :4])  # fewer levels, fewer bits
    ```

    Reference:
     - [Zeghidour et al., 2021](https://arxiv.org/abs/2107.03312), section III
    """

    def __init__(
        self,
        sample_rate=16000,
        channels=32,
        strides=(2, 4, 5, 8),
        embedding_dim=128,
        num_quantizers=12,
        codebook_size=1024,
        transform=None,
        transform_hop=320,
        codebook_decay=0.99,
        quantizer_dropout=1.0,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if transform not in (None, "mdct"):
            raise ValueError(
                "`transform` must be None or 'mdct'. "
                f"Received: transform={transform!r}"
            )

        # === Config ===
        self.sample_rate = sample_rate
        self.channels = channels
        self.strides = tuple(strides)
        self.embedding_dim = embedding_dim
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.transform = transform
        self.transform_hop = transform_hop
        self.codebook_decay = codebook_decay
        self.quantizer_dropout = quantizer_dropout
        self.seed = seed
        self.hop_length = math.prod(self.strides)
        if transform:
            self.hop_length *= transform_hop

        # === Layers ===
        self.encoder = keras.Sequential(self._encoder_layers(), name="encoder")
        self.quantizer = ResidualVectorQuantizer(
            num_quantizers,
            codebook_size,
            decay=codebook_decay,
            dropout=quantizer_dropout,
            seed=seed,
            name="quantizer",
        )
        self.decoder = keras.Sequential(self._decoder_layers(), name="decoder")
        if transform:
            if math.prod(self.strides) != 1:
                raise ValueError(
                    "With a transform every stride is 1: the transform alone "
                    f"makes the hop. Received: strides={self.strides}"
                )
            if embedding_dim > transform_hop:
                raise ValueError(
                    "The linear path keeps `embedding_dim` components of a "
                    "frame, and no more than `transform_hop` exist. Received: "
                    f"embedding_dim={embedding_dim}, "
                    f"transform_hop={transform_hop}"
                )
            self.mdct = MDCT(transform_hop, name="mdct")
            self.analysis = keras.layers.Dense(
                embedding_dim, use_bias=False, name="analysis"
            )
            self.synthesis = keras.layers.Dense(
                transform_hop, use_bias=False, name="synthesis"
            )
        self.initialized = self.add_weight(
            name="initialized", shape=(), initializer="zeros", trainable=False
        )
        self._encode = CompiledFunction(self, self._encode_padded)
        self._decode = CompiledFunction(self, self._decode_codes)

    def _encoder_layers(self):
        width = self.channels
        layers = [CausalConv1D(width, 7)]
        for stride in self.strides:
            layers += [ResidualUnit(width, d) for d in (1, 3, 9)]
            width *= 2
            layers.append(keras.layers.Activation("elu"))
            layers.append(CausalConv1D(width, 2 * stride, strides=stride))
        layers.append(keras.layers.Activation("elu"))
        layers.append(
            CausalConv1D(
                self.embedding_dim, 3, kernel_initializer=self._last_kernel()
            )
        )
        return layers

    def _decoder_layers(self):
        width = self.channels * 2 ** len(self.strides)
        layers = [CausalConv1D(width, 7)]
        for stride in reversed(self.strides):
            width //= 2
            layers.append(keras.layers.Activation("elu"))
            layers.append(
                CausalConv1DTranspose(width, 2 * stride, strides=stride)
            )
            layers += [ResidualUnit(width, d) for d in (1, 3, 9)]
        layers.append(keras.layers.Activation("elu"))
        layers.append(
            CausalConv1D(
                self.transform_hop if self.transform else 1,
                7,
                kernel_initializer=self._last_kernel(),
            )
        )
        return layers

    def _last_kernel(self):
        # Beside the linear path the network starts as no change at all.
        return "zeros" if self.transform else "glorot_uniform"

    def build(self, input_shape=None):
        if self.quantizer.built:
            return
        channels = self.transform_hop if self.transform else 1
        self.encoder.build((None, None, channels))
        self.quantizer.build((None, None, self.embedding_dim))
        self.decoder.build((None, None, self.embedding_dim))
        if self.transform:
            self.mdct.build((None, None))
            self.analysis.build((None, None, self.transform_hop))
            self.synthesis.build((None, None, self.embedding_dim))

    # === Between audio and embeddings ===

    def embed(self, audio):
        """Audio `(batch, frames * hop)` to `(batch, frames, embedding_dim)`."""
        if not self.transform:
            return self.encoder(audio[..., None])
        coefficients = compress(self.mdct(audio))
        return self.analysis(coefficients) + self.encoder(coefficients)

    def render(self, embeddings):
        """Embeddings `(batch, frames, embedding_dim)` to audio."""
        if not self.transform:
            return ops.cast(self.decoder(embeddings)[..., 0], "float32")
        # The transform completes a hop when the next frame is there: an
        # empty frame at the end completes the last.
        embeddings = ops.pad(embeddings, [[0, 0], [0, 1], [0, 0]])
        coefficients = self.synthesis(embeddings) + self.decoder(embeddings)
        return self.mdct.inverse(expand(ops.cast(coefficients, "float32")))

    def call(self, audio, training=False):
        samples = audio.shape[-1]
        quantized = self.quantizer(
            self.embed(self._pad_to_hops(audio)), training=training
        )
        if training:
            self.add_loss(quantized.commitment_loss)
        return self.render(quantized.embeddings)[:, :samples]

    def _pad_to_hops(self, audio):
        rest = -audio.shape[-1] % self.hop_length
        return ops.pad(audio, [[0, 0], [0, rest]]) if rest else audio

    def compute_output_shape(self, input_shape):
        return input_shape

    # === Tokens ===

    def num_frames(self, num_samples):
        """Frames of so many samples: the last hop may be partly empty."""
        return -(-num_samples // self.hop_length)

    def encode(self, audio):
        """Audio to acoustic tokens.

        Args:
            audio: `(batch, samples)` float32 in [-1, 1] at `sample_rate`.

        Returns:
            NumPy int32 `(batch, ceil(samples / hop_length), num_quantizers)`.

        Raises:
            ValueError: on another rank than 2, no samples, or samples that
                are not finite.
        """
        self.build()
        audio = checked_audio(audio)
        frames = self.num_frames(audio.shape[1])
        samples = padded_frames(frames) * self.hop_length
        # What is padded on comes later and so changes nothing before.
        audio = np.pad(audio, [(0, 0), (0, samples - audio.shape[1])])
        return ops.convert_to_numpy(self._encode(audio))[:, :frames]

    def _encode_padded(self, audio):
        return self.quantizer.encode(self.embed(audio))

    def decode(self, codes, num_samples=None):
        """Acoustic tokens to audio.

        Args:
            codes: `(batch, frames, levels)` ints, with any number of levels
                from 1 to `num_quantizers`, coarsest first.
            num_samples: int, optional. Cuts the audio to so many samples,
                where the original did not end with a hop.

        Returns:
            NumPy float32 `(batch, frames * hop_length)`, or `num_samples` of
            them.

        Raises:
            ValueError: on another rank than 3, no frames, more levels than
                there are, codes outside of `[0, codebook_size)`, or more
                samples than the codes stand for.
        """
        self.build()
        codes = np.asarray(ops.convert_to_numpy(codes))
        self._check_codes(codes)
        frames = codes.shape[1]
        there = frames * self.hop_length
        if num_samples is not None and not 1 <= num_samples <= there:
            raise ValueError(
                f"{frames} frames stand for 1 to {there} samples. Received: "
                f"num_samples={num_samples}"
            )
        padding = padded_frames(frames) - frames
        codes = np.pad(
            codes.astype("int32"),
            [(0, 0), (0, padding), (0, 0)],
            constant_values=-1,
        )
        audio = ops.convert_to_numpy(self._decode(codes))
        return audio[:, : num_samples or there]

    def _check_codes(self, codes):
        if (
            codes.ndim != 3
            or 0 in codes.shape
            or codes.shape[2] > self.num_quantizers
        ):
            raise ValueError(
                "Codes to decode must be (batch, frames, levels), none of "
                f"them zero, with 1 to {self.num_quantizers} levels. "
                f"Received: shape {codes.shape}"
            )
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"Codes to decode must be integers. Received: {codes.dtype}"
            )
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(
                f"Codes must be from 0 to {self.codebook_size - 1}. Received: "
                f"{codes.min()} to {codes.max()}"
            )

    def _decode_codes(self, codes):
        # A frame of -1 is empty, like what follows the end of a recording.
        there = ops.cast(codes[..., :1] >= 0, "float32")
        embeddings = self.quantizer.decode(ops.maximum(codes, 0))
        return self.render(embeddings * there)

    # === Start ===

    def initialize_codebooks(self, batches, num_frames=50_000):
        """Starts the codebooks (and the linear path) from real audio.

        `SoundStreamTrainer.fit` calls it when nobody has.

        Args:
            batches: iterable of audio arrays `(batch, samples)`.
            num_frames: int. Batches are read until there are so many frames.

        Raises:
            ValueError: if there are fewer frames than codes, or on audio that
                `encode` refuses.
        """
        self.build()
        audio = []
        frames = 0
        for batch in batches:
            batch = checked_audio(batch)
            audio.append(batch)
            frames += batch.shape[0] * self.num_frames(batch.shape[1])
            if frames >= num_frames:
                break
        if not audio:
            raise ValueError("There is no audio to start the codebooks from.")
        if self.transform:
            self._initialize_linear_path(audio)
        embed = CompiledFunction(
            self, lambda x: self.embed(self._pad_to_hops(x))
        )
        vectors = [
            ops.convert_to_numpy(embed(x)).reshape(-1, self.embedding_dim)
            for x in audio
        ]
        self.quantizer.initialize(np.concatenate(vectors))
        self.initialized.assign(1.0)

    def _initialize_linear_path(self, audio):
        """The first principal components of the compressed coefficients."""
        hop = self.transform_hop
        covariance = np.zeros((hop, hop))
        analyse = CompiledFunction(
            self, lambda x: compress(self.mdct(self._pad_to_hops(x)))
        )
        for batch in audio:
            x = ops.convert_to_numpy(analyse(batch)).reshape(-1, hop)
            covariance += x.T @ x
        _, vectors = np.linalg.eigh(covariance)
        components = vectors[:, ::-1][:, : self.embedding_dim]
        self.analysis.kernel.assign(components)
        self.synthesis.kernel.assign(components.T)

    def get_config(self):
        return {
            **super().get_config(),
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "strides": list(self.strides),
            "embedding_dim": self.embedding_dim,
            "num_quantizers": self.num_quantizers,
            "codebook_size": self.codebook_size,
            "transform": self.transform,
            "transform_hop": self.transform_hop,
            "codebook_decay": self.codebook_decay,
            "quantizer_dropout": self.quantizer_dropout,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def checked_audio(audio):
    """NumPy float32 `(batch, samples)`, or a `ValueError` that says why not."""
    audio = np.asarray(ops.convert_to_numpy(audio), "float32")
    if audio.ndim != 2 or 0 in audio.shape:
        raise ValueError(
            "Audio must be (batch, samples), neither of them zero. Received: "
            f"shape {audio.shape}"
        )
    if not np.isfinite(audio).all():
        raise ValueError(
            f"The audio holds {int((~np.isfinite(audio)).sum())} samples that "
            "are not finite. Repair or drop the recording."
        )
    return audio
