"""What all codecs share: audio to codes and back, whole or step by step."""

import math

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction, padded_frames
from keras_audiolm.presets import PresetPart


class AudioCodec(PresetPart, keras.Model):
    """A model that turns audio into a few codes a frame, and back.

    A subclass has `sample_rate`, `hop_length`, `num_quantizers`,
    `codebook_size` and `embedding_dim`, a `quantizer` with `encode` and
    `decode`, and an `encoder` and a `decoder`, each a `CausalStack`. One whose
    ends are not plain samples writes `build`, `embed`, `render`, their steps
    and `initial_state` anew. The steps and the state are of causal codecs
    alone.

    Attributes:
        causal: bool. Whether no code depends on samples after its hop.
        codes_frozen: bool. Whether training leaves the codes as they are.
        denoising: `None`, or the side that can be switched to leave noise out.
        delay: int. Samples by which `decode_step` comes after what `decode`
            gives.
        window_step: int. Of a codec that takes audio in windows of its own,
            up to a second long, the frames from one to the next: codes from
            there on are decoded alike with and without those before.
    """

    part = "codec"
    causal = True
    codes_frozen = False
    denoising = None
    delay = 0
    window_step = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._encode = CompiledFunction(self, self._encode_padded)
        self._decode = CompiledFunction(self, self._decode_codes)
        self._encode_step = CompiledFunction(self, self._encode_chunk)
        self._decode_step = CompiledFunction(self, self._decode_chunk)

    def build(self, input_shape=None):
        if self.quantizer.built:
            return
        self.encoder.build((None, None, 1))
        self.quantizer.build((None, None, self.embedding_dim))
        self.decoder.build((None, None, self.embedding_dim))

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    # No property: saving walks through those that hold layers.
    def encoding_layers(self):
        """Those whose weights decide what a code means."""
        return [self]

    @property
    def can_stream(self):
        """Whether `encode_step` and `decode_step` give what the whole gives."""
        return self.causal

    def _pad_to_hops(self, audio):
        rest = -audio.shape[-1] % self.hop_length
        return ops.pad(audio, [[0, 0], [0, rest]]) if rest else audio

    def compute_output_shape(self, input_shape):
        return input_shape

    # === Between audio and embeddings ===

    def embed(self, audio, denoise=None):
        """Audio `(batch, frames * hop)` to `(batch, frames, dim)`."""
        return self.encoder(audio[..., None])

    def embed_step(self, chunk, state, denoise=None):
        """`embed` of a chunk, given the encoder's state, and the new state."""
        return self.encoder.step(chunk[..., None], state)

    def render(self, embeddings, denoise=None):
        """Embeddings `(batch, frames, dim)` to audio."""
        return ops.cast(self.decoder(embeddings)[..., 0], "float32")

    def render_step(self, embeddings, state, denoise=None):
        """`render` of a chunk, `delay` late, and the decoder's new state."""
        x, state = self.decoder.step(embeddings, state)
        return ops.cast(x[..., 0], "float32"), state

    def initial_state(self, batch_size):
        """The states of both sides before a stream begins."""
        return {
            "encoder": self.encoder.init_state(batch_size),
            "decoder": self.decoder.init_state(batch_size),
        }

    def call(self, audio, training=False):
        samples = audio.shape[-1]
        embeddings = self.embed(self._pad_to_hops(audio))
        quantized = self.quantizer(embeddings, training=training)
        if training:
            self.add_loss(quantized.commitment_loss)
        return self.render(quantized.embeddings)[:, :samples]

    # === Tokens ===

    def num_frames(self, num_samples):
        """Frames of so many samples: the last hop may be partly empty."""
        return -(-num_samples // self.hop_length)

    def num_levels(self, bandwidth):
        """The most levels that fit into so many bits per second.

        Raises:
            ValueError: if not even one level fits, or more than all.
        """
        bits = math.ceil(math.log2(self.codebook_size))
        rate = bits * self.sample_rate / self.hop_length
        if not rate <= bandwidth < (self.num_quantizers + 1) * rate:
            raise ValueError(
                f"A level takes {rate:g} bits per second and there are "
                f"{self.num_quantizers}. Received: bandwidth={bandwidth}"
            )
        return int(bandwidth // rate)

    def encode(self, audio, bandwidth=None, denoise=None, sample_rate=None):
        """Audio to acoustic tokens.

        Args:
            audio: `(batch, samples)` float32 in [-1, 1] at `sample_rate`.
            bandwidth: float, optional. Bits per second that the codes may
                take; all levels by default.
            denoise: bool, or array `(batch,)` or `(batch, frames)` of them:
                whether to leave noise out (with `denoising="encoder"`).
            sample_rate: int, optional. That of `audio`, to be checked.

        Returns:
            NumPy int32 `(batch, ceil(samples / hop_length), levels)`.

        Raises:
            ValueError: on another rank than 2, no samples, samples that are
                not finite, another rate than the codec's, a bandwidth that
                is too low or too high, or `denoise` without that switch.
        """
        self.build()
        if sample_rate not in (None, self.sample_rate):
            raise ValueError(
                f"The codec works at {self.sample_rate} Hz and the audio is "
                f"at {sample_rate}. `keras_audiolm.load_audio` resamples."
            )
        levels = self._levels(bandwidth)
        audio = checked_audio(audio)
        frames = self.num_frames(audio.shape[1])
        padded = self._padded(frames)
        switch = self._switch("encoder", denoise, len(audio), frames, padded)
        samples = padded * self.hop_length
        audio = np.pad(audio, [(0, 0), (0, samples - audio.shape[1])])
        codes = self._encode_whole(audio, *switch, levels=levels)
        return ops.convert_to_numpy(codes)[:, :frames]

    def _encode_whole(self, audio, *switch, levels):
        return self._encode(audio, *switch, levels=levels)

    def _padded(self, frames):
        """How many frames are computed.

        What a causal codec is given after the end changes nothing before: few
        lengths are compiled. For others every length is one.
        """
        return padded_frames(frames) if self.causal else frames

    def _levels(self, bandwidth):
        if bandwidth is None:
            return self.num_quantizers
        return self.num_levels(bandwidth)

    def _encode_padded(self, audio, switch=None, levels=None):
        return self.quantizer.encode(self.embed(audio, switch), levels)

    def decode(self, codes, num_samples=None, denoise=None):
        """Acoustic tokens to audio.

        Args:
            codes: `(batch, frames, levels)` ints, with any number of levels
                from 1 to `num_quantizers`, coarsest first.
            num_samples: int, optional. Cuts the audio to so many samples,
                where the original did not end with a hop.
            denoise: as of `encode`, with `denoising="decoder"`.

        Returns:
            NumPy float32 `(batch, frames * hop_length)`, or `num_samples` of
            them.

        Raises:
            ValueError: on another rank than 3, no frames, more levels than
                there are, codes outside of `[0, codebook_size)`, more
                samples than the codes stand for, or `denoise` without that
                switch.
        """
        self.build()
        codes = self._checked_codes(codes)
        frames = codes.shape[1]
        there = frames * self.hop_length
        if num_samples is not None and not 1 <= num_samples <= there:
            raise ValueError(
                f"{frames} frames stand for 1 to {there} samples. Received: "
                f"num_samples={num_samples}"
            )
        padded = self._padded(frames)
        switch = self._switch("decoder", denoise, len(codes), frames, padded)
        codes = np.pad(
            codes, [(0, 0), (0, padded - frames), (0, 0)], constant_values=-1
        )
        audio = ops.convert_to_numpy(self._decode_whole(codes, *switch))
        return audio[:, : num_samples or there]

    def _decode_whole(self, codes, *switch):
        return self._decode(codes, *switch)

    def _decode_codes(self, codes, switch=None):
        return self.render(self._lookup(codes), switch)

    def _lookup(self, codes):
        # A frame of -1 is empty, like what follows the end of a recording.
        there = ops.cast(codes[..., :1] >= 0, "float32")
        return self.quantizer.decode(ops.maximum(codes, 0)) * there

    def _switch(self, side, denoise, batch, frames, padded=None):
        """What a compiled function gets of `denoise`: nothing, or an array."""
        if self.denoising != side:
            if denoise is not None and np.any(denoise):
                raise ValueError(
                    f"This codec has denoising={self.denoising!r}, so that "
                    f"its {side} cannot leave noise out. Received: "
                    f"denoise={denoise}"
                )
            return ()
        denoise = np.asarray(False if denoise is None else denoise)
        if denoise.shape not in ((), (batch,), (batch, frames)):
            raise ValueError(
                "`denoise` must be one value, or of shape (batch,) or (batch, "
                f"frames), here {(batch, frames)}. Received: shape "
                f"{denoise.shape}"
            )
        if denoise.ndim == 1:
            denoise = denoise[:, None]
        switch = np.zeros((batch, padded or frames), "float32")
        switch[:, :frames] = denoise
        return (switch,)

    # === Step by step ===

    def init_state(self, batch_size):
        """The state before a stream begins, of encoder and decoder.

        Args:
            batch_size: int. How many streams run side by side.

        Returns:
            A dictionary of the two sides' tensors. `encode_step` and
            `decode_step` each give a new one with their side gone on; the one
            given is left as it was.
        """
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be 1 or more. Received: {batch_size}"
            )
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__} is not causal: it needs samples that a "
                "stream does not have yet."
            )
        self.build()
        return self.initial_state(batch_size)

    def encode_step(self, chunk, state, bandwidth=None, denoise=None):
        """The codes of the next chunk of a stream.

        Args:
            chunk: `(batch, samples)`, a whole number of hops.
            state: from `init_state` or the step before.
            bandwidth, denoise: as of `encode`.

        Returns:
            NumPy int32 `(batch, frames, levels)`, those that `encode` gives
            for the whole, and the new state.

        Raises:
            ValueError: on what `encode` refuses, a chunk that is not whole
                hops, or a state of another batch size.
        """
        self.build()
        levels = self._levels(bandwidth)
        chunk = checked_audio(chunk)
        batch, samples = chunk.shape
        if samples % self.hop_length:
            raise ValueError(
                "A chunk must be a whole number of hops of "
                f"{self.hop_length} samples. Received: {samples} samples"
            )
        frames = samples // self.hop_length
        switch = self._switch("encoder", denoise, batch, frames)
        check_state(state, "encoder", batch)
        codes, after = self._encode_step(
            chunk, state["encoder"], *switch, levels=levels
        )
        state = {**state, "encoder": after}
        return ops.convert_to_numpy(codes), state

    def _encode_chunk(self, chunk, state, switch=None, levels=None):
        embeddings, state = self.embed_step(chunk, state, switch)
        return self.quantizer.encode(embeddings, levels), state

    def decode_step(self, codes, state, denoise=None):
        """The audio of the next codes of a stream.

        Args:
            codes: `(batch, frames, levels)`, as of `decode`.
            state: from `init_state` or the step before.
            denoise: as of `decode`.

        Returns:
            NumPy float32 `(batch, frames * hop_length)` and the new state.
            The audio comes `delay` samples after what `decode` gives for the
            whole; `flush` gives the rest at the end.

        Raises:
            ValueError: on what `decode` refuses, or a state of another batch
                size.
        """
        self.build()
        codes = self._checked_codes(codes)
        switch = self._switch("decoder", denoise, *codes.shape[:2])
        return self._decode_on(codes, state, switch)

    def flush(self, state):
        """The last `delay` samples of a stream, NumPy `(batch, delay)`."""
        batch = keras.tree.flatten(state["decoder"])[0].shape[0]
        frames = self.delay // self.hop_length
        if not frames:
            return np.zeros((batch, 0), "float32")
        nothing = np.full((batch, frames, 1), -1, "int32")
        switch = self._switch("decoder", None, batch, frames)
        return self._decode_on(nothing, state, switch)[0]

    def _decode_on(self, codes, state, switch):
        check_state(state, "decoder", len(codes))
        audio, after = self._decode_step(codes, state["decoder"], *switch)
        return ops.convert_to_numpy(audio), {**state, "decoder": after}

    def _decode_chunk(self, codes, state, switch=None):
        return self.render_step(self._lookup(codes), state, switch)

    def _checked_codes(self, codes):
        codes = np.asarray(ops.convert_to_numpy(codes))
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
        return codes.astype("int32")


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


def check_state(state, side, batch_size):
    """Raises `ValueError` for a state of other streams."""
    if not isinstance(state, dict) or side not in state:
        raise ValueError(
            "`state` must come from `init_state` or the step before. "
            f"Received: {type(state).__name__}"
        )
    there = keras.tree.flatten(state[side])[0].shape[0]
    if there != batch_size:
        raise ValueError(
            f"The state is of {there} streams, and the chunk of {batch_size}. "
            f"Start with `init_state({batch_size})`."
        )
