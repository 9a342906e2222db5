"""SoundStream: a causal neural audio codec."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.codec.audio_codec import AudioCodec, checked_audio
from keras_audiolm.codec.network import (
    ACTIVATIONS,
    UNITS,
    Architecture,
    CausalStack,
)
from keras_audiolm.codec.noise_filling import PERIOD, NoiseFilling
from keras_audiolm.codec.quantizer import ResidualVectorQuantizer
from keras_audiolm.layers.compiled import CompiledFunction
from keras_audiolm.layers.initializers import GlorotUniform
from keras_audiolm.layers.lapped_transform import MDCT, compress, expand
from keras_audiolm.layers.spectrogram import Spectrogram

TRANSFORMS = {"mdct": MDCT, "spectrogram": Spectrogram}


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SoundStream(AudioCodec):
    """A causal convolutional codec with a residual vector quantizer.

    The encoder turns every `hop_length` samples into one embedding, the
    quantizer turns that into `num_quantizers` codes, and the decoder turns
    codes back into samples. All convolutions see the past only, so codes
    never depend on samples after their hop: the latency is one hop, 20 ms at
    the default sizes.

    The default is the paper's architecture. Lyra v2's, a tenth of the
    arithmetic, is `channels=64, strides=(5, 2, 2), stem_stride=16,
    unit="separable", max_groups=4, activation="leaky_relu"`.

    With a `transform` the two ends are fixed, and the network works on
    (square-root compressed) coefficients at the rate of the codes. A linear
    path beside the network starts from the coefficients' principal
    components: it learns to speak intelligibly in minutes on a laptop where
    waveforms take days. `"mdct"` keeps the waveform, and costs one more hop
    of latency in the decoder. `"spectrogram"` spends no bits on phases: the
    decoder follows the partials of its magnitudes. That is for music at few
    bits; it costs three hops.

    Args:
        sample_rate: int. Hertz. Defaults to `16000`.
        channels: int. Width of the first block, doubled by every block.
            Defaults to `32`.
        strides: sequence of int. One encoder block each, first to last; the
            decoder mirrors them. Defaults to `(2, 4, 5, 8)`.
        embedding_dim: int. Defaults to `128`.
        num_quantizers: int. Levels of the quantizer. Defaults to `12`.
        codebook_size: int. Codes of a level. Defaults to `1024`.
        stem_stride: int. Of the first convolution. Defaults to `1`.
        activation: `"elu"` or `"leaky_relu"` (with a slope of 0.3).
        unit: the residual units: `"dense"` convolutions (the paper's),
            `"separable"` ones (Lyra v2's), or `"convnext"`, with a
            normalization.
        dilations: sequence of int. Of the residual units of each block, as
            many as these. Defaults to `(1, 3, 9)`.
        max_groups: int. Wide convolutions are split into up to so many
            groups, twice as many with each block. Defaults to `1`.
        transform: `None` for the waveform (the paper's), `"mdct"` or
            `"spectrogram"`.
        transform_hop: int. Samples of the transform's hop, which is the
            codec's then. Defaults to `320`.
        noise_filling: bool. Whether an `"mdct"` codec also codes the level of
            each band of frequencies, and the decoder fills with noise what
            its coefficients lack of it. The noise is a function of a frame's
            place, the same in every run.
        denoising: `None`, or the side, `"encoder"` or `"decoder"`, whose
            bottleneck can be switched to leave noise out.
        code_dim: int, optional, split_first: bool, and beam_width: int, of
            the `ResidualVectorQuantizer`: options of later codecs.
        codebook_decay: float. Of the codebooks' moving averages.
        quantizer_dropout: float. The part of training examples whose number
            of levels is drawn at random. Defaults to `1.0`.
        seed: int. Of everything random in training.

    Call arguments:
        audio: `(batch, samples)` in [-1, 1] at `sample_rate`.
        denoise: `(batch,)` or `(batch, frames)`, whether to leave noise out.
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
    codes = codec.encode(audio, bandwidth=3000)  # at most 3 kbps: 6 levels

    state = codec.init_state(batch_size=1)  # hop by hop, as it comes in
    for chunk in chunks:             # (1, 320)
        codes, state = codec.encode_step(chunk, state)
        audio, state = codec.decode_step(codes, state)
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
        stem_stride=1,
        activation="elu",
        unit="dense",
        dilations=(1, 3, 9),
        max_groups=1,
        transform=None,
        transform_hop=320,
        noise_filling=False,
        denoising=None,
        code_dim=None,
        split_first=False,
        beam_width=1,
        codebook_decay=0.99,
        quantizer_dropout=1.0,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("unit", unit, UNITS)
        check_choice("transform", transform, (None, *TRANSFORMS))
        check_choice("denoising", denoising, (None, "encoder", "decoder"))

        # === Config ===
        self.sample_rate = sample_rate
        self.channels = channels
        self.strides = tuple(strides)
        self.embedding_dim = embedding_dim
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.stem_stride = stem_stride
        self.activation = activation
        self.unit = unit
        self.dilations = tuple(dilations)
        self.max_groups = max_groups
        self.transform = transform
        self.transform_hop = transform_hop
        self.noise_filling = noise_filling
        self.denoising = denoising
        self.code_dim = code_dim
        self.split_first = split_first
        self.beam_width = beam_width
        self.codebook_decay = codebook_decay
        self.quantizer_dropout = quantizer_dropout
        self.seed = seed
        if transform:
            self._check_transform()
        if noise_filling and transform != "mdct":
            raise ValueError(
                '`noise_filling` is of transform="mdct" alone. Received: '
                f"transform={transform!r}"
            )
        self.hop_length = (
            transform_hop
            if transform
            else math.prod(self.strides) * stem_stride
        )

        # === Layers ===
        self._add_networks()
        self.quantizer = ResidualVectorQuantizer(
            num_quantizers,
            codebook_size,
            decay=codebook_decay,
            dropout=quantizer_dropout,
            code_dim=code_dim,
            split_first=split_first,
            beam_width=beam_width,
            seed=seed,
            name="quantizer",
        )
        if noise_filling:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.initialized = self.add_weight(
            name="initialized", shape=(), initializer="zeros", trainable=False
        )

    def _check_transform(self):
        if math.prod(self.strides) * self.stem_stride != 1:
            raise ValueError(
                "With a transform every stride is 1: the transform alone "
                f"makes the hop. Received: strides={self.strides}, "
                f"stem_stride={self.stem_stride}"
            )
        if self.embedding_dim > self.transform_hop:
            raise ValueError(
                "The linear path keeps `embedding_dim` components of a "
                "frame, and no more than `transform_hop` exist. Received: "
                f"embedding_dim={self.embedding_dim}, "
                f"transform_hop={self.transform_hop}"
            )

    def _add_networks(self):
        architecture = Architecture(
            self.channels,
            self.strides,
            self.stem_stride,
            self.activation,
            self.unit,
            self.dilations,
            self.max_groups,
        )
        self.ends = None
        self.width = 1
        if self.transform:
            self.ends = TRANSFORMS[self.transform](
                self.transform_hop, name="transform"
            )
            self.width = self.ends.num_coefficients
        self.filling = None
        if self.noise_filling:
            self.filling = NoiseFilling(
                self.width, self.sample_rate, name="filling"
            )
            self.width += self.filling.num_bands
        last_kernel = None
        if self.transform:
            # Beside the linear path the network starts as no change at all.
            last_kernel = "zeros"
            self.analysis = keras.layers.Dense(
                self.embedding_dim,
                use_bias=False,
                kernel_initializer=GlorotUniform(),
                name="analysis",
            )
            self.synthesis = keras.layers.Dense(
                self.width,
                use_bias=False,
                kernel_initializer=GlorotUniform(),
                name="synthesis",
            )
        self.encoder = CausalStack(
            architecture.encoder(
                self.embedding_dim, self.denoising == "encoder", last_kernel
            ),
            name="encoder",
        )
        self.decoder = CausalStack(
            architecture.decoder(
                self.width, self.denoising == "decoder", last_kernel
            ),
            name="decoder",
        )

    def encoding_layers(self):
        layers = [self.encoder, self.quantizer]
        return [*layers, self.analysis] if self.transform else layers

    @property
    def delay(self):
        return self.ends.delay if self.transform else 0

    def build(self, input_shape=None):
        if self.quantizer.built:
            return
        self.encoder.build((None, None, self.width))
        self.quantizer.build((None, None, self.embedding_dim))
        self.decoder.build((None, None, self.embedding_dim))
        if self.transform:
            self.analysis.build((None, None, self.width))
            self.synthesis.build((None, None, self.embedding_dim))

    # === Between audio and embeddings ===

    def embed(self, audio, denoise=None):
        """Audio `(batch, frames * hop)` to `(batch, frames, embedding_dim)`."""
        if self.transform:
            return self._embed(self._features(self.ends(audio)), denoise)
        return self._embed(audio[..., None], denoise)

    def _features(self, coefficients):
        """What the encoder sees of a transform."""
        x = compress(coefficients)
        if not self.noise_filling:
            return x
        return ops.concatenate([x, self.filling.levels(coefficients)], axis=-1)

    def _embed(self, x, denoise):
        embeddings = self.encoder(x, denoise)
        return embeddings + self.analysis(x) if self.transform else embeddings

    def embed_step(self, chunk, state, denoise=None):
        """`embed` of a chunk, given the encoder's state, and the new state."""
        if not self.transform:
            x, state = self.encoder.step(chunk[..., None], state, denoise)
            return x, state
        hop, inner = state
        x, hop = self.ends.step(chunk, hop)
        x = self._features(x)
        embeddings, inner = self.encoder.step(x, inner, denoise)
        if self.transform:
            embeddings = embeddings + self.analysis(x)
        return embeddings, [hop, inner]

    def render(self, embeddings, denoise=None, place=None):
        """Embeddings `(batch, frames, embedding_dim)` to audio.

        `place`, `(batch,)` int, is where in a recording the frames begin.
        """
        if not self.transform:
            x = self.decoder(embeddings, denoise)
            return ops.cast(x[..., 0], "float32")
        # The transform completes a hop when the next frames are there: empty
        # frames at the end complete the last.
        after = self.ends.overlap - 1
        embeddings = ops.pad(embeddings, [[0, 0], [0, after], [0, 0]])
        if denoise is not None:
            denoise = ops.pad(denoise, [[0, 0], [0, after]])
        x = self.decoder(embeddings, denoise)
        return self.ends.inverse(self._coefficients(x, embeddings, place))

    def render_step(self, embeddings, state, denoise=None):
        """`render` of a chunk, `delay` late, and the decoder's new state."""
        if not self.transform:
            x, state = self.decoder.step(embeddings, state, denoise)
            return ops.cast(x[..., 0], "float32"), state
        hop, inner, *place = state
        x, inner = self.decoder.step(embeddings, inner, denoise)
        x = self._coefficients(x, embeddings, *place)
        audio, hop = self.ends.inverse_step(x, hop)
        place = [p + embeddings.shape[1] for p in place]
        return audio, [hop, inner, *place]

    def initial_state(self, batch_size):
        state = super().initial_state(batch_size)
        if self.transform:
            hops = {
                "encoder": self.ends.init_state(batch_size),
                "decoder": self.ends.init_inverse_state(batch_size),
            }
            state = {k: [hops[k], inner] for k, inner in state.items()}
        if self.noise_filling:
            state["decoder"].append(ops.zeros((batch_size,), "int32"))
        return state

    def _coefficients(self, x, embeddings, place=None):
        """What the transform inverts, of what the decoder gives."""
        x = ops.cast(x + self.synthesis(embeddings), "float32")
        if not self.noise_filling:
            return expand(x)
        size = self.ends.num_coefficients
        return self.filling.fill(expand(x[..., :size]), x[..., size:], place)

    def call(self, audio, denoise=None, training=False):
        samples = audio.shape[-1]
        audio = self._pad_to_hops(audio)
        sides = {"encoder": None, "decoder": None}
        if self.denoising and denoise is not None:
            shape = (ops.shape(audio)[0], audio.shape[1] // self.hop_length)
            sides[self.denoising] = spread_switch(denoise, shape)
        quantized = self.quantizer(
            self.embed(audio, sides["encoder"]), training=training
        )
        if training:
            self.add_loss(quantized.commitment_loss)
        place = None
        if training and self.noise_filling:
            # Anywhere in the noise, lest the start of it be learnt by heart.
            place = keras.random.randint(
                (ops.shape(audio)[0],), 0, PERIOD, seed=self.seed_generator
            )
        audio = self.render(quantized.embeddings, sides["decoder"], place)
        return audio[:, :samples]

    # === Training ===

    def freeze_codes(self):
        """Has training change the decoder alone.

        Audio keeps its codes, and with them what was made of these: files,
        tokens, language models. Call it before the trainer's `compile`.

        ```python
        codec = keras_audiolm.SoundStream.from_preset("soundstream_voices")
        codec.freeze_codes()
        trainer = keras_audiolm.SoundStreamTrainer(codec, None)
        ```

        Raises:
            ValueError: if the codec is untrained, and has no codes to keep.
        """
        self.build()
        if not float(ops.convert_to_numpy(self.initialized)):
            raise ValueError(
                "This SoundStream is untrained: it has no codes to keep. "
                "Train it first, or load trained weights."
            )
        for layer in self.encoding_layers():
            layer.trainable = False

    @property
    def codes_frozen(self):
        return not any(layer.trainable for layer in self.encoding_layers())

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
        """The first principal components of what the encoder sees."""
        covariance = np.zeros((self.width, self.width))
        analyse = CompiledFunction(
            self, lambda x: self._features(self.ends(self._pad_to_hops(x)))
        )
        for batch in audio:
            x = ops.convert_to_numpy(analyse(batch)).reshape(-1, self.width)
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
            "stem_stride": self.stem_stride,
            "activation": self.activation,
            "unit": self.unit,
            "dilations": list(self.dilations),
            "max_groups": self.max_groups,
            "transform": self.transform,
            "transform_hop": self.transform_hop,
            "noise_filling": self.noise_filling,
            "denoising": self.denoising,
            "code_dim": self.code_dim,
            "split_first": self.split_first,
            "beam_width": self.beam_width,
            "codebook_decay": self.codebook_decay,
            "quantizer_dropout": self.quantizer_dropout,
            "seed": self.seed,
        }


def check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}"
        )


def spread_switch(denoise, shape):
    """`denoise` of a batch as float `(batch, frames)`."""
    denoise = ops.cast(denoise, "float32")
    if len(denoise.shape) == 1:
        denoise = denoise[:, None]
    return ops.broadcast_to(denoise, shape)
