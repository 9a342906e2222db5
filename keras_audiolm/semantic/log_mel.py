"""Log-mel spectrogram of level-normalised audio, safe for padded batches."""

import keras
import numpy as np
from keras import ops

# Log-mel values of level-normalised speech, roughly centred and scaled.
_LOG_MEAN, _LOG_SCALE = 2.0, 3.0
# Added to the mel power of audio at unit level, about 45 dB below loud speech:
# what lies under it is the room and the microphone.
_FLOOR = 0.3
# Quieter than this is left as quiet as it is, not blown up into noise.
_MIN_RMS = 1e-4


@keras.saving.register_keras_serializable(package="keras_audiolm")
class LogMel(keras.layers.Layer):
    """Log-mel spectrogram, one frame every 10 ms, in float32.

    The audio is first scaled to unit RMS, so that a gain changes nothing.
    Frame `i` is centred on its own hop of samples and the audio is continued
    by zeros, so that `frames = ceil(samples / hop)` and the end of the audio
    looks the same with and without padding:

        zeros |  hop 0  |  hop 1  |  hop 2  | zeros
          [---- frame 0 ----]
                    [---- frame 1 ----]
                              [---- frame 2 ----]

    Args:
        sample_rate: int. Of the audio. Defaults to `16000`.
        num_mels: int. Mel bands between 20 Hz and half the sample rate.
            Defaults to `80`.
        window_duration: float. Seconds that a frame sees. Short ones tell
            syllables apart, long ones semitones. Defaults to `0.025`.

    Call arguments:
        audio: tensor of shape `(batch, samples)`.
        lengths: optional integer tensor of shape `(batch,)`: valid samples.

    Returns:
        Float32 tensor of shape `(batch, frames, num_mels)`, zero at frames
        that start after the valid samples.
    """

    def __init__(
        self, sample_rate=16000, num_mels=80, window_duration=0.025, **kwargs
    ):
        # Spectra need all of float32, whatever the policy.
        kwargs.update(dtype="float32", trainable=False)
        super().__init__(**kwargs)
        # === Config ===
        self.sample_rate = sample_rate
        self.num_mels = num_mels
        self.window_duration = window_duration
        self.hop_length = sample_rate // 100
        self.window_length = round(window_duration * sample_rate)
        self.fft_length = 2 ** (self.window_length - 1).bit_length()

    def build(self, input_shape):
        mel = keras.layers.MelSpectrogram(
            fft_length=self.fft_length, dtype="float32"
        )
        matrix = mel.linear_to_mel_weight_matrix(
            num_mel_bins=self.num_mels,
            num_spectrogram_bins=self.fft_length // 2 + 1,
            sampling_rate=self.sample_rate,
            lower_edge_hertz=20.0,
            upper_edge_hertz=self.sample_rate / 2,
        )
        self.mel_matrix = np.asarray(ops.convert_to_numpy(matrix))

    def call(self, audio, lengths=None):
        samples = ops.shape(audio)[1]
        audio = ops.cast(audio, "float32")
        if lengths is None:
            count = ops.cast(samples, "float32")
        else:
            audio = audio * frame_mask(lengths, 1, samples, "float32")
            count = ops.cast(lengths, "float32")[:, None]
        energy = ops.sum(ops.square(audio), axis=1, keepdims=True)
        rms = ops.sqrt(energy / ops.maximum(count, 1.0))
        log_mel = self._log_mel(audio / ops.maximum(rms, _MIN_RMS))
        if lengths is not None:
            frames = ops.shape(log_mel)[1]
            mask = frame_mask(lengths, self.hop_length, frames, "float32")
            log_mel = log_mel * mask[:, :, None]
        return ops.stop_gradient(log_mel)

    def _log_mel(self, audio):
        left = (self.fft_length - self.hop_length) // 2
        right = self.fft_length - left - 1
        real, imaginary = ops.stft(
            ops.pad(audio, [[0, 0], [left, right]]),
            self.window_length,
            self.hop_length,
            self.fft_length,
            center=False,
        )
        power = ops.square(real) + ops.square(imaginary)
        mel = ops.matmul(power, self.mel_matrix)  # (batch, frames, mels)
        return (ops.log(mel + _FLOOR) - _LOG_MEAN) / _LOG_SCALE

    def perturb(self, log_mel, strength, seed):
        """Another voice through another channel, the same words.

        Args:
            log_mel: tensor of shape `(batch, frames, num_mels)`.
            strength: float. At `1.0` an example's spectrum moves by up to 5 %
                of the mel axis, tilts by up to 10 dB from end to end, and gets
                noise up to 25 dB below speech.
            seed: int or `keras.random.SeedGenerator`.
        """
        draw = keras.random.uniform(
            (ops.shape(log_mel)[0], 3, 1), -strength, strength, seed=seed
        )
        bins = np.arange(self.num_mels, dtype="int32")
        shift = ops.round(draw[:, 0] * (0.05 * self.num_mels))  # (batch, 1)
        source = ops.cast(shift, "int32") + ops.convert_to_tensor(bins[None])
        source = ops.clip(source, 0, self.num_mels - 1)[:, None, :]
        x = ops.take_along_axis(log_mel, source, axis=2)
        x = x * _LOG_SCALE + _LOG_MEAN
        ramp = np.linspace(-0.5, 0.5, self.num_mels).astype("float32")
        x = x + draw[:, 1:2] * ops.convert_to_tensor(2.3 * ramp)
        # From far below the floor to 20 times above it.
        noise = _FLOOR * ops.exp(3.0 * draw[:, 2:3])
        x = ops.log(ops.exp(x) + noise)
        return (x - _LOG_MEAN) / _LOG_SCALE

    def get_config(self):
        config = super().get_config()
        del config["dtype"], config["trainable"]
        config.update(
            sample_rate=self.sample_rate,
            num_mels=self.num_mels,
            window_duration=self.window_duration,
        )
        return config


def frame_mask(lengths, hop_length, frames, dtype="bool"):
    """Which of `frames` hops hold valid samples: `(batch, frames)`."""
    start = ops.arange(frames, dtype="int32") * hop_length
    mask = start[None, :] < ops.cast(lengths, "int32")[:, None]
    return ops.cast(mask, dtype)
