"""SemanticTokenizer: audio -> what is said, at 25 tokens a second."""

import keras
import numpy as np
from keras import ops

from keras_audiolm.layers.compiled import CompiledFunction, padded_frames
from keras_audiolm.presets import PresetPart
from keras_audiolm.semantic.hubert import Hubert  # noqa: F401 registers it
from keras_audiolm.semantic.kmeans import KMeans
from keras_audiolm.semantic.w2v_bert import W2vBert  # noqa: F401 registers it


@keras.saving.register_keras_serializable(package="keras_audiolm")
class SemanticTokenizer(PresetPart, keras.Model):
    """Encoder layer -> standardise -> nearest centroid.

    Audio longer than `max_duration` is encoded in windows of equal length, so
    that memory stays bounded; a window knows nothing of the others.

    Args:
        encoder: a `W2vBert`, `Hubert`, `W2vBert2`, or another model with
            `sample_rate`, `hop_length`, `hidden_dim` and `encode(audio, layer,
            lengths)`.
        num_clusters: int. Number of different tokens. Defaults to `1024`.
        layer: int. Block of the encoder's masked-prediction half whose
            activations are clustered, counted from 1. Defaults to `7`.
        max_duration: float. Seconds encoded at once. Defaults to `30.0`.
        seed: int. Of `fit_kmeans`. Defaults to `0`.

    Call arguments:
        audio: float tensor of shape `(batch, samples)` at `sample_rate`.
        lengths: optional integer tensor of shape `(batch,)`: valid samples.

    Returns:
        Int32 tokens of shape `(batch, frames)`, `frames = ceil(samples /
        hop_length)`. Frames after a row's `lengths` hold a valid token that
        means nothing.

    Example:

    ```python
    tokenizer = keras_audiolm.SemanticTokenizer(encoder, 512, layer=3)
    tokenizer.fit_kmeans(lambda: iter(crops))
    tokens = tokenizer.encode(audio)  # (batch, frames)
    ```

    Reference:
     - [AudioLM, section III-B](https://arxiv.org/abs/2209.03143)
    """

    part = "semantic_tokenizer"

    def __init__(
        self,
        encoder,
        num_clusters=1024,
        layer=7,
        max_duration=30.0,
        seed=0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        most = getattr(encoder, "num_masked_layers", layer)
        if not 1 <= layer <= most:
            raise ValueError(
                "`layer` counts the blocks of the encoder's masked-prediction "
                f"half from 1 to {most}. Received: layer={layer}."
            )
        # === Layers ===
        self.encoder = encoder
        self.kmeans = KMeans(num_clusters, seed=seed, name="kmeans")
        # === Config ===
        self.num_clusters = num_clusters
        self.layer = layer
        self.max_duration = max_duration
        self.seed = seed
        self.sample_rate = encoder.sample_rate
        self.hop_length = encoder.hop_length
        self.build((None, None))
        self._compiled = CompiledFunction(self, self.call)

    def build(self, input_shape):
        if not self.encoder.built:
            self.encoder.build(input_shape)
        if not self.kmeans.built:
            self.kmeans.build((None, self.encoder.hidden_dim))
        self.built = True

    @property
    def codebook_size(self):
        return self.num_clusters

    @property
    def initialized(self):
        """Whether the centroids were fitted or loaded."""
        return self.kmeans.initialized

    def call(self, audio, lengths=None):
        x = self.encoder.encode(audio, layer=self.layer, lengths=lengths)
        return self.kmeans(x)

    def encode(self, audio, lengths=None):
        """Tokens of audio, compiled where the backend can.

        Audio is padded to one of few lengths, each of which compiles once;
        padding changes nothing.

        Args:
            audio: float array of shape `(batch, samples)` at `sample_rate`.
            lengths: optional integers of shape `(batch,)`: valid samples.

        Returns:
            Int32 NumPy array of shape `(batch, frames)`.
        """
        if not self.initialized:
            raise ValueError(
                "This SemanticTokenizer has no centroids yet. Call "
                "`fit_kmeans(batches)` on audio, or load trained weights."
            )
        audio, lengths = self._check(audio, lengths)
        window = self.window_samples(audio.shape[1])
        tokens = []
        for start in range(0, audio.shape[1], window):
            part = audio[:, start : start + window]
            left = np.clip(lengths - start, 0, part.shape[1])
            tokens.append(self._encode_window(part, left))
        return np.concatenate(tokens, axis=1)

    def _check(self, audio, lengths):
        audio = np.asarray(ops.convert_to_numpy(audio), "float32")
        if audio.ndim != 2 or 0 in audio.shape:
            raise ValueError(
                "`audio` must have shape (batch, samples), neither of them "
                f"zero. Received: shape {audio.shape}."
            )
        if not np.isfinite(audio).all():
            raise ValueError(
                "`audio` holds "
                f"{int((~np.isfinite(audio)).sum())} values that are not "
                "finite. Repair or drop the recording."
            )
        if lengths is None:
            return audio, np.full(len(audio), audio.shape[1])
        lengths = np.asarray(ops.convert_to_numpy(lengths))
        bad = lengths.shape != audio.shape[:1] or np.any(
            (lengths < 0) | (lengths > audio.shape[1])
        )
        if bad:
            raise ValueError(
                "`lengths` must hold, for each row of `audio`, its number of "
                f"valid samples. Received: lengths={lengths.tolist()} for "
                f"audio of shape {audio.shape}."
            )
        return audio, lengths

    def window_samples(self, samples):
        """How much of so many samples `encode` hears at once.

        Whole frames, all windows about equal: `encode` of each window by
        itself gives what it gives for the whole.
        """
        frames = -(-samples // self.hop_length)
        most = max(int(self.max_duration * self.sample_rate), self.hop_length)
        count = -(-frames // (most // self.hop_length))
        return -(-frames // count) * self.hop_length

    def _encode_window(self, audio, lengths):
        frames = -(-audio.shape[1] // self.hop_length)
        padded = padded_frames(frames) * self.hop_length
        audio = np.pad(audio, [(0, 0), (0, padded - audio.shape[1])])
        tokens = self._compiled(audio, lengths.astype("int32"))
        return np.asarray(ops.convert_to_numpy(tokens))[:, :frames]

    def fit_kmeans(self, batches, passes=2, **kwargs):
        """Fits the centroids to the encoder's activations.

        Args:
            batches: callable that returns an iterator of audio arrays of shape
                `(batch, samples)` without padding, the same at every call.
            passes: int. See `KMeans.fit`. Defaults to `2`.
            **kwargs: other arguments of `KMeans.fit`.

        Returns:
            What `KMeans.fit` returns.
        """
        encode = CompiledFunction(
            self.encoder, lambda audio: self.encoder.encode(audio, self.layer)
        )

        def activations():
            for audio in batches():
                x = encode(ops.cast(audio, "float32"))
                x = np.asarray(ops.convert_to_numpy(x), "float32")
                yield x.reshape(-1, x.shape[-1])  # (batch * frames, dim)

        return self.kmeans.fit(activations, passes=passes, **kwargs)

    def get_config(self):
        config = super().get_config()
        config.update(
            encoder=keras.saving.serialize_keras_object(self.encoder),
            num_clusters=self.num_clusters,
            layer=self.layer,
            max_duration=self.max_duration,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["encoder"] = keras.saving.deserialize_keras_object(
            config["encoder"]
        )
        return cls(**config)
