"""EnCodec of 48 kHz: a second at a time, and its loudness apart."""

import keras
from keras import ops

from keras_audiolm.codec.encodec import EnCodec, ShortcutUnit
from keras_audiolm.layers.causal_conv import CausalConv1DTranspose
from keras_audiolm.layers.centred_conv import CentredConv1D

# Decibels from the first code of loudness to the last, which is that of a
# full square wave: the first is under the noise of 16 bits.
LOUDNESS_RANGE = 100.0


@keras.saving.register_keras_serializable(package="keras_audiolm")
class WindowedEnCodec(EnCodec):
    """EnCodec's stereo model, which sees both ways and a second at a time.

    Windows of a second are coded on their own, each brought to one loudness
    and normalized as a whole. Neighbours share a few frames, in which one
    fades into the other:

        |--------- window 0 ---------|
                                 |--------- window 1 ---------|
        codes of window 0 ......... codes of window 1 ......

    What a window's loudness was does not show in its codes: normalization
    takes it out of them. The public model hands it on as a number beside
    them; here it is the first level of codes, the same in all frames of a
    window, and those of the public model follow it. So what is decoded is as
    loud as what was encoded, and a language model can say how loud its sound
    is to be.

    Audio is mono as everywhere: both channels hear it, and the two that come
    back are averaged.

    Args:
        sample_rate: int. Hertz, a multiple of the hop. Defaults to `48000`.
        num_quantizers: int. Levels of codes: that of loudness, and those of
            the quantizer. Defaults to `17`.
        overlap_frames: int. Frames that neighbouring windows share. The public
            model shares 1.5; rounded up, each frame is one hop of the audio.
            Defaults to `2`.
        **kwargs: others of `EnCodec`.

    Call arguments:
        audio: `(batch, samples)` in [-1, 1] at `sample_rate`.

    Returns:
        Audio of the same shape, through all levels of codes.

    Raises:
        ValueError: if a second is not whole hops, or if windows share nothing
            or half of themselves.

    Example:

    ```python
    codec = keras_audiolm.codec_from("hf://facebook/encodec_48khz")
    codes = codec.encode(audio, bandwidth=6000)  # (batch, frames, 4)
    audio = codec.decode(codes)  # (batch, frames * 320)
    ```

    Reference:
     - [Défossez et al., 2022](https://arxiv.org/abs/2210.13438), section 3
    """

    causal = False
    can_stream = False
    audio_channels = 2

    def __init__(
        self,
        sample_rate=48000,
        num_quantizers=17,
        overlap_frames=2,
        **kwargs,
    ):
        super().__init__(
            sample_rate=sample_rate,
            num_quantizers=num_quantizers - 1,
            **kwargs,
        )
        # === Config ===
        self.num_quantizers = num_quantizers
        self.overlap_frames = overlap_frames
        self.window_frames = sample_rate // self.hop_length
        self.window_step = self.window_frames - overlap_frames
        if sample_rate % self.hop_length:
            raise ValueError(
                "A window is a second, which must be whole hops of "
                f"{self.hop_length} samples. Received: {sample_rate=}"
            )
        if not 0 < overlap_frames < self.window_frames / 2:
            raise ValueError(
                "Windows must share at least a frame, and less than half of "
                f"their {self.window_frames}. Received: {overlap_frames=}"
            )

    def _conv(self, filters, kernel_size, **kwargs):
        return NormalizedConv1D(
            filters, kernel_size, padding=self.padding, **kwargs
        )

    def _transposed_conv(self, filters, stride):
        return NormalizedConv1DTranspose(filters, 2 * stride, strides=stride)

    def _unit(self, filters):
        return NormalizedUnit(filters, self.residual_kernel_size, self.padding)

    def build(self, input_shape=None):
        if self.quantizer.built:
            return
        self.encoder.build((None, None, self.audio_channels))
        self.quantizer.build((None, None, self.embedding_dim))
        self.decoder.build((None, None, self.embedding_dim))

    # === A window ===

    def embed(self, audio, denoise=None):
        return self.encoder(ops.stack([audio] * self.audio_channels, axis=-1))

    def render(self, embeddings, denoise=None):
        audio = ops.cast(self.decoder(embeddings), "float32")
        return ops.mean(audio, axis=-1)

    def _encode_padded(self, audio, switch=None, levels=None):
        levels = (levels or self.num_quantizers) - 1
        loudness = ops.sqrt(ops.mean(ops.square(audio), axis=1, keepdims=True))
        loudness = loudness + 1e-8  # (batch, 1)
        codes = self.quantizer.encode(self.embed(audio / loudness), levels)
        first = self._loudness_code(loudness)[..., None]
        first = ops.broadcast_to(first, (*codes.shape[:2], 1))
        return ops.concatenate([first, codes], axis=-1)

    def _decode_codes(self, codes, switch=None):
        # Beside a window's own frames stand fewer of its neighbours'.
        middle = ops.sort(codes[..., 0], axis=1)[:, codes.shape[1] // 2]
        audio = self.render(self._lookup(codes[..., 1:]))
        return audio * self._loudness(middle)[:, None]

    def _loudness_code(self, loudness):
        """The code of a root mean square, in equal steps of decibels."""
        decibels = 20.0 * ops.log10(loudness)
        place = 1.0 + decibels / LOUDNESS_RANGE
        code = ops.round(place * (self.codebook_size - 1))
        return ops.cast(ops.clip(code, 0, self.codebook_size - 1), "int32")

    def _loudness(self, code):
        place = ops.cast(code, "float32") / (self.codebook_size - 1)
        return ops.power(10.0, (place - 1.0) * LOUDNESS_RANGE / 20.0)

    # === All windows ===

    def _windows(self, frames):
        """Yields where each window starts and stops, and where its own frames
        do: of what two share, the first half is the earlier one's."""
        step, overlap = self.window_step, self.overlap_frames
        count = max(-(-(frames - overlap) // step), 1)
        half = overlap // 2
        for start in range(0, count * step, step):
            last = start + step == count * step
            stop = frames if last else start + self.window_frames
            own_start = start + half if start else 0
            own_stop = frames if last else start + step + half
            yield start, stop, own_start, own_stop

    def _join_codes(self, encode, audio, levels=None):
        """The codes of the whole, by `encode` of its windows."""
        hop, parts = self.hop_length, []
        for start, stop, first, last in self._windows(audio.shape[1] // hop):
            part = encode(audio[:, start * hop : stop * hop], levels=levels)
            parts.append(part[:, first - start : last - start])
        return ops.concatenate(parts, axis=1)

    def _join_audio(self, decode, codes):
        """The audio of the whole, by `decode` of its windows."""
        shared = self.overlap_frames * self.hop_length
        fade = ops.arange(1, shared + 1, dtype="float32") / (shared + 1)
        parts, tail = [], None
        for start, stop, _, _ in self._windows(codes.shape[1]):
            audio = decode(codes[:, start:stop])
            if start:
                parts.append((1 - fade) * tail + fade * audio[:, :shared])
                audio = audio[:, shared:]
            rest = max(audio.shape[1] - shared, 0)
            parts.append(audio[:, :rest])
            tail = audio[:, rest:]
        return ops.concatenate([*parts, tail], axis=1)

    def _encode_whole(self, audio, *switch, levels):
        return self._join_codes(self._encode, audio, levels)

    def _decode_whole(self, codes, *switch):
        return self._join_audio(self._decode, codes)

    def call(self, audio):
        samples = audio.shape[-1]
        codes = self._join_codes(self._encode_padded, self._pad_to_hops(audio))
        return self._join_audio(self._decode_codes, codes)[:, :samples]

    # === Levels ===

    def num_levels(self, bandwidth):
        levels = super().num_levels(bandwidth)
        self._check_levels(levels, f"bandwidth={bandwidth}")
        return levels

    def _checked_codes(self, codes):
        codes = super()._checked_codes(codes)
        self._check_levels(codes.shape[2], f"shape {codes.shape}")
        return codes

    def _check_levels(self, levels, received):
        if levels < 2:
            raise ValueError(
                "The first level is loudness alone: 2 or more are wanted. "
                f"Received: {received}"
            )

    def get_config(self):
        return {**super().get_config(), "overlap_frames": self.overlap_frames}


@keras.saving.register_keras_serializable(package="keras_audiolm")
class NormalizedConv1D(CentredConv1D):
    """A convolution whose output is normalized over time and channels.

    Args:
        Those of `CentredConv1D`.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time / strides, filters)`.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.norm = make_norm(self.filters)

    def call(self, x):
        return self.norm(super().call(x))


@keras.saving.register_keras_serializable(package="keras_audiolm")
class NormalizedConv1DTranspose(CausalConv1DTranspose):
    """The way back up, normalized, then cut on both sides.

    Of an odd number of steps to cut, the past loses one more.

    Args:
        Those of `CausalConv1DTranspose`.

    Call arguments:
        x: `(batch, time, channels)`.

    Returns:
        `(batch, time * strides, filters)`.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.norm = make_norm(self.filters)

    def call(self, x):
        time = x.shape[1] * self.strides
        cut = (self.tail + 1) // 2
        x = self.norm(self._spread(x) + self.bias)
        return x[:, cut : cut + time]


def make_norm(filters):
    norm = keras.layers.GroupNormalization(1, epsilon=1e-5, name="norm")
    norm.build((None, None, filters))
    return norm


@keras.saving.register_keras_serializable(package="keras_audiolm")
class NormalizedUnit(ShortcutUnit):
    """A `ShortcutUnit` of normalized convolutions."""

    conv = NormalizedConv1D
