"""W2vBert: the self-supervised speech encoder behind the semantic tokens."""

import keras
from keras import ops

from keras_audiolm.layers.conformer import (
    ConformerBlock,
    conformer_layouts,
    dense,
    split_seed,
)
from keras_audiolm.layers.distribution import ShardedModel
from keras_audiolm.layers.initializers import GlorotUniform, RandomNormal
from keras_audiolm.layers.remat import recomputed
from keras_audiolm.semantic.log_mel import LogMel, frame_mask
from keras_audiolm.semantic.nearest_code import (
    NearestCodeQuantizer,
    normalize,
    perplexity,
)

_SUBSAMPLING = 4  # two convolutions of stride 2
_EXCLUDED = -1e9


@keras.saving.register_keras_serializable(package="keras_audiolm")
class ConvSubsampling(keras.layers.Layer):
    """Two strided convolutions over time: four frames become one.

    One zero is padded on each side whatever the length, so that the output
    has `ceil(frames / 2)` frames after each convolution and the alignment
    does not depend on the length's parity as with `padding="same"`:

        frames      0 a b c d e 0      kernel 3, stride 2
        output 0    [---]
        output 1        [---]
        output 2            [---]

    Args:
        filters: int. Channels of both convolutions.
        seed: int or None. Seed of the kernels.

    Call arguments:
        x: tensor of shape `(batch, frames, channels)`.
        lengths: optional integer tensor of shape `(batch,)`: valid samples.
        hop_length: int. Samples in a frame of `x`.
    """

    def __init__(self, filters, seed=None, **kwargs):
        super().__init__(**kwargs)
        # === Config ===
        self.filters = filters
        self.seed = seed

    def build(self, input_shape):
        self.convolutions, self.norms = [], []
        for i, seed in enumerate(split_seed(self.seed, 2)):
            convolution = keras.layers.Conv1D(
                self.filters,
                kernel_size=3,
                strides=2,
                padding="valid",
                kernel_initializer=GlorotUniform(seed=seed),
                dtype=self.dtype_policy,
                name=f"convolution_{i}",
            )
            convolution.build(input_shape)
            norm = keras.layers.LayerNormalization(
                epsilon=1e-5, dtype=self.dtype_policy, name=f"norm_{i}"
            )
            input_shape = (*input_shape[:-1], self.filters)
            norm.build(input_shape)
            self.convolutions.append(convolution)
            self.norms.append(norm)

    def call(self, x, lengths=None, hop_length=1):
        for convolution, norm in zip(
            self.convolutions, self.norms, strict=True
        ):
            x = convolution(ops.pad(x, [[0, 0], [1, 1], [0, 0]]))
            x = ops.silu(norm(x))
            hop_length *= 2
            if lengths is not None:
                mask = frame_mask(lengths, hop_length, ops.shape(x)[1], x.dtype)
                x = x * mask[:, :, None]
        return x  # (batch, ceil(ceil(frames / 2) / 2), filters)

    def get_config(self):
        config = super().get_config()
        config.update(filters=self.filters, seed=self.seed)
        return config


@keras.saving.register_keras_serializable(package="keras_audiolm")
class W2vBert(ShardedModel, keras.Model):
    """Speech encoder trained by contrastive and masked prediction together.

    Log-mel frames every 10 ms go through two strided convolutions to 25
    frames a second, then through two stacks of Conformer blocks. In training
    spans of frames are masked. After the first stack a contrastive loss asks
    which of the example's masked frames stood here; after the second a
    classifier predicts the code of the frame. Both targets come from one
    quantizer that reads the unmasked log-mel frames.

        audio -> log-mel -+-> convolutions -> mask -> contrastive half
                          |                              |       |
                          |               contrastive loss    masked half
                          |                       |              |
                          +----> quantizer -------+---------> MLM loss

    `compile(optimizer)` and `fit(audio)` are all that training takes. The
    activations that become semantic tokens are those of `encode`.

    Deviations from the paper, for training that neither collapses nor chases
    moving targets at small size: the quantizer reads coarse log-mel bands
    instead of the convolution features and picks the nearest code instead of
    a Gumbel sample (see `NearestCodeQuantizer`; Google's own successor BEST-RQ
    does likewise); masked frames become one learned vector instead of random
    ones; negatives that carry the positive's own code are left out, as in
    wav2vec 2.0.

    Args:
        sample_rate: int. Of the audio. Defaults to `16000`.
        num_mels: int. Mel bands. Defaults to `80`.
        window_duration: float. Seconds that a log-mel frame sees. Music wants
            some `0.064` (and more mel bands): semitones are too near to each
            other for less. Defaults to `0.025`.
        mels_per_target: int. So many neighbouring bands are one in what is to
            be predicted. `4` leaves words and takes pitch away; with `1`
            pitch has to be predicted too, as music wants it. Defaults to `4`.
        hidden_dim: int. Width of the blocks. Defaults to `1024`.
        num_heads: int. Attention heads. Defaults to `16`.
        intermediate_dim: int. Inner width of the feed-forward modules.
            Defaults to `4096`.
        num_contrastive_layers: int. Blocks of the first half. Defaults to
            `12`.
        num_masked_layers: int. Blocks of the second, masked-prediction half.
            Defaults to `12`.
        kernel_size: int, odd. Of the depthwise convolutions, in frames of 40
            ms. Defaults to `31`.
        codebook_size: int. Codes of the training targets (not the semantic
            tokens). Defaults to `1024`.
        codebook_dim: int. Dimension of the target codes. Defaults to `256`.
        num_negatives: int. Expected number of negatives, drawn from the
            example's other masked frames. Defaults to `100`.
        mask_probability: float. Chance that a span starts at a frame.
            Defaults to `0.065`.
        mask_length: int. Frames in a span. Defaults to `10`.
        contrastive_temperature: float. Divides the cosines. Defaults to
            `0.1`.
        contrastive_weight: float. Defaults to `1.0`.
        mlm_weight: float. Defaults to `1.0`.
        unmasked_weight: float. Weight of predicting the codes of the frames
            that were not masked, beside `mlm_weight`; HuBERT's other half.
            Short trainings gain from it. Defaults to `0.0`.
        perturbation: float. Strength of random changes of voice and channel
            (a shift along the mel axis, a spectral tilt, noise) in what the
            blocks see and the targets do not, so that the activations learn
            to ignore them, as in ContentVec and WavLM. `1.0` is strong.
            Defaults to `0.0`.
        diversity_weight: float. Defaults to `0.1`.
        commitment_weight: float. Defaults to `0.1`.
        codebook_decay: float. Of the codes' moving averages. Defaults to
            `0.99`.
        dropout: float. Defaults to `0.1`.
        seed: int or None. Of the initial weights, the masks, the negatives
            and dropout. Defaults to `0`.

    Call arguments:
        audio: float tensor of shape `(batch, samples)` in [-1, 1].
        training: bool.

    Returns:
        What the losses need, as a dictionary: `context` and `targets` of shape
        `(batch, frames, codebook_dim)`, `logits` of shape `(batch, frames,
        codebook_size)`, `codes` and the boolean `mask` of shape `(batch,
        frames)`. Use `encode` for activations.

    Attributes:
        remat: bool. Whether training recomputes the activations of the blocks
            in the backward pass, to save memory.

    Example:

    ```python
    encoder = keras_audiolm.W2vBert(
        hidden_dim=192,
        num_heads=4,
        intermediate_dim=768,
        num_contrastive_layers=2,
        num_masked_layers=4,
        kernel_size=15,
    )
    encoder.compile(keras.optimizers.AdamW(1e-3))
    encoder.fit(crops)  # batches of audio (batch, samples)
    activations = encoder.encode(audio, layer=3)  # (batch, frames, 192)
    ```

    Reference:
     - [Chung et al., 2021](https://arxiv.org/abs/2108.06209)
     - [AudioLM, section III-B](https://arxiv.org/abs/2209.03143)
    """

    # It is trained by its own `fit`, on audio alone.
    self_supervised = True

    def __init__(
        self,
        sample_rate=16000,
        num_mels=80,
        window_duration=0.025,
        mels_per_target=4,
        hidden_dim=1024,
        num_heads=16,
        intermediate_dim=4096,
        num_contrastive_layers=12,
        num_masked_layers=12,
        kernel_size=31,
        codebook_size=1024,
        codebook_dim=256,
        num_negatives=100,
        mask_probability=0.065,
        mask_length=10,
        contrastive_temperature=0.1,
        contrastive_weight=1.0,
        mlm_weight=1.0,
        unmasked_weight=0.0,
        perturbation=0.0,
        diversity_weight=0.1,
        commitment_weight=0.1,
        codebook_decay=0.99,
        dropout=0.1,
        seed=0,
        **kwargs,
    ):
        # Audio stays float32 up to the log-mel, whatever the policy.
        super().__init__(autocast=False, **kwargs)
        if num_masked_layers < 1 or num_contrastive_layers < 0:
            raise ValueError(
                "At least one masked-prediction layer is needed. Received: "
                f"num_contrastive_layers={num_contrastive_layers}, "
                f"num_masked_layers={num_masked_layers}."
            )
        if num_mels % mels_per_target:
            raise ValueError(
                "`num_mels` must be a multiple of `mels_per_target`. "
                f"Received: num_mels={num_mels}, "
                f"mels_per_target={mels_per_target}."
            )
        # === Config ===
        self.sample_rate = sample_rate
        self.num_mels = num_mels
        self.window_duration = window_duration
        self.mels_per_target = mels_per_target
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.num_contrastive_layers = num_contrastive_layers
        self.num_masked_layers = num_masked_layers
        self.kernel_size = kernel_size
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.num_negatives = num_negatives
        self.mask_probability = mask_probability
        self.mask_length = mask_length
        self.contrastive_temperature = contrastive_temperature
        self.contrastive_weight = contrastive_weight
        self.mlm_weight = mlm_weight
        self.unmasked_weight = unmasked_weight
        self.perturbation = perturbation
        self.diversity_weight = diversity_weight
        self.commitment_weight = commitment_weight
        self.codebook_decay = codebook_decay
        self.dropout = dropout
        self.seed = seed
        # === Layers ===
        self._make_layers()
        self.remat = False
        # === Metrics ===
        names = (
            "contrastive_loss",
            "contrastive_accuracy",
            "mlm_loss",
            "mlm_accuracy",
            "code_perplexity",
        )
        self._trackers = {n: keras.metrics.Mean(name=n) for n in names}
        self.build((None, None))

    def _make_layers(self):
        dtype = self.dtype_policy
        blocks = self.num_contrastive_layers + self.num_masked_layers
        seeds = split_seed(self.seed, 7 + blocks)
        self.log_mel = LogMel(
            self.sample_rate,
            self.num_mels,
            self.window_duration,
            name="log_mel",
        )
        self.subsampling = ConvSubsampling(
            self.hidden_dim, seeds[0], dtype=dtype, name="subsampling"
        )
        self.projection = dense(self.hidden_dim, seeds[1], "projection", dtype)
        self.input_dropout = keras.layers.Dropout(
            self.dropout, seed=seeds[2], dtype=dtype
        )
        self.blocks = [
            ConformerBlock(
                self.num_heads,
                self.intermediate_dim,
                self.kernel_size,
                self.dropout,
                seed=seeds[7 + i],
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(blocks)
        ]
        self.quantizer = NearestCodeQuantizer(
            self.codebook_size,
            self.codebook_dim,
            decay=self.codebook_decay,
            diversity_weight=self.diversity_weight,
            commitment_weight=self.commitment_weight,
            seed=seeds[3],
            name="quantizer",
        )
        self.context_head = dense(
            self.codebook_dim, seeds[4], "context_head", "float32"
        )
        self.code_head = dense(
            self.codebook_size, seeds[5], "code_head", "float32"
        )
        self.mask_seed = seeds[6]
        self.seed_generator = keras.random.SeedGenerator(self.mask_seed)

    @property
    def hop_length(self):
        """Samples in a frame: 640 at 16 kHz, 25 frames a second."""
        return self.log_mel.hop_length * _SUBSAMPLING

    def build(self, input_shape):
        if self.built:
            return
        hidden = (None, None, self.hidden_dim)
        self.log_mel.build((None, None))
        self.subsampling.build((None, None, self.num_mels))
        self.quantizer.build(
            (None, None, _SUBSAMPLING * self.num_mels // self.mels_per_target)
        )
        for layer in (
            self.projection,
            *self.blocks,
            self.context_head,
            self.code_head,
        ):
            layer.build(hidden)
        # What a masked frame becomes, in place of its features.
        self.mask_embedding = self.add_weight(
            shape=(self.hidden_dim,),
            initializer=RandomNormal(stddev=0.1, seed=self.mask_seed),
            name="mask_embedding",
        )
        self.built = True

    # === Inference ===

    def encode(self, audio, layer=None, lengths=None):
        """Activations of a block of the masked-prediction half.

        Args:
            audio: float tensor of shape `(batch, samples)`.
            layer: int. Which block of the masked-prediction half, counted
                from 1. Defaults to the last.
            lengths: optional integer tensor of shape `(batch,)`: how many
                samples of each row are audio; the rest is padding, and the
                row gives what it would give alone.

        Returns:
            Tensor of shape `(batch, frames, hidden_dim)` with `frames =
            ceil(samples / hop_length)`; zero at frames of padding.
        """
        layer = self._check_layer(layer)
        x, mask = self._features(audio, lengths), None
        if lengths is not None:
            frames = ops.shape(x)[1]
            mask = frame_mask(lengths, self.hop_length, frames)
        x = self.projection(x)
        for block in self.blocks[: self.num_contrastive_layers + layer]:
            x = block(x, padding_mask=mask)
        if mask is not None:
            x = x * ops.cast(mask, x.dtype)[:, :, None]
        return x

    def _check_layer(self, layer):
        if layer is None:
            return self.num_masked_layers
        if not 1 <= layer <= self.num_masked_layers:
            raise ValueError(
                "`layer` counts the blocks of the masked-prediction half from "
                f"1 to {self.num_masked_layers}. Received: layer={layer}."
            )
        return layer

    def _features(self, audio, lengths=None):
        x = self.log_mel(self._check_audio(audio), lengths=lengths)
        return self._subsample(x, lengths)

    def _check_audio(self, audio):
        audio = ops.convert_to_tensor(audio)
        if len(audio.shape) != 2:
            raise ValueError(
                "`audio` must have shape (batch, samples). Received: shape "
                f"{tuple(audio.shape)}."
            )
        return audio

    def _subsample(self, log_mel, lengths=None):
        return self.subsampling(
            ops.cast(log_mel, self.compute_dtype),
            lengths=lengths,
            hop_length=self.log_mel.hop_length,
        )

    # === Training ===

    def call(self, audio, training=False):
        log_mel = self.log_mel(self._check_audio(audio))
        targets, codes = self.quantizer(
            self._target_features(log_mel), training=training
        )
        if training and self.perturbation:
            log_mel = self.log_mel.perturb(
                log_mel, self.perturbation, self.seed_generator
            )
        features = self._subsample(log_mel)
        x = self.projection(features)
        mask = self._draw_mask(ops.shape(x)[0], ops.shape(x)[1], training)
        embedding = ops.cast(self.mask_embedding, x.dtype)
        x = ops.where(mask[:, :, None], embedding, x)
        x = self.input_dropout(x, training=training)
        for block in self.blocks[: self.num_contrastive_layers]:
            x = self._apply(block, x, training)
        context = normalize(self.context_head(x))
        for block in self.blocks[self.num_contrastive_layers :]:
            x = self._apply(block, x, training)
        return {
            "context": context,
            "targets": targets,
            "logits": self.code_head(x),
            "codes": codes,
            "mask": mask,
        }

    def _target_features(self, log_mel):
        """The four log-mel frames of a frame, in bands of the targets."""
        wide = self.mels_per_target
        bands = self.num_mels // wide
        x = ops.reshape(log_mel, (-1, ops.shape(log_mel)[1], bands, wide))
        x = ops.mean(x, axis=-1)  # (batch, mel frames, bands)
        x = ops.pad(x, [[0, 0], [0, _SUBSAMPLING - 1], [0, 0]])
        frames = ops.shape(x)[1] // _SUBSAMPLING
        x = x[:, : frames * _SUBSAMPLING]
        return ops.reshape(x, (-1, frames, _SUBSAMPLING * bands))

    def _apply(self, block, x, training):
        if self.remat and training:
            return recomputed(block, x, training=True)
        return block(x, training=training)

    def _draw_mask(self, batch, frames, training):
        """Spans to predict: `(batch, frames)`, at least one in each row.

        Evaluation uses the same spans every time.
        """
        seed = self.seed_generator if training else self.mask_seed or 0
        # Column 0 of the draw places the span that every row gets.
        draw = keras.random.uniform((batch, frames + 1), seed=seed)
        first = draw[:, :1] * ops.cast(frames, "float32")
        first = ops.cast(ops.floor(first), "int32")
        start = draw[:, 1:] < self.mask_probability
        start = ops.logical_or(start, ops.arange(frames)[None, :] == first)
        # A frame is masked when a span started at most `mask_length` ago.
        started = ops.cumsum(ops.cast(start, "int32"), axis=1)
        past = ops.pad(started, [[0, 0], [self.mask_length, 0]])[:, :frames]
        return started > past

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        mask = ops.cast(y_pred["mask"], "float32")
        contrastive = self._contrastive_loss(
            y_pred["context"], y_pred["targets"], y_pred["codes"], mask
        )
        mlm, unmasked = self._mlm_losses(
            y_pred["logits"], y_pred["codes"], mask
        )
        usage = ops.one_hot(y_pred["codes"], self.codebook_size)
        usage = perplexity(ops.mean(ops.cast(usage, "float32"), axis=(0, 1)))
        self._trackers["code_perplexity"].update_state(usage)
        loss = self.contrastive_weight * contrastive + self.mlm_weight * mlm
        return loss + self.unmasked_weight * unmasked + sum(self.losses)

    def _contrastive_loss(self, context, targets, codes, mask):
        """InfoNCE of each masked frame against others of its own example."""
        cosine = ops.matmul(context, ops.transpose(targets, (0, 2, 1)))
        logits = cosine / self.contrastive_temperature
        same_code = codes[:, :, None] == codes[:, None, :]
        negative = ops.where(same_code, 0.0, mask[:, None, :])
        negative = negative * self._thin_negatives(mask)
        positive = ops.sum(context * targets, axis=-1)
        positive = positive / self.contrastive_temperature
        logits = ops.where(negative > 0, logits, _EXCLUDED)
        everything = ops.concatenate([positive[:, :, None], logits], axis=-1)
        loss = ops.logsumexp(everything, axis=-1) - positive
        # A frame without negatives teaches nothing and counts nowhere.
        weight = mask * ops.max(negative, axis=-1)
        right = ops.cast(positive > ops.max(logits, axis=-1), "float32")
        loss = _weighted_mean(loss, weight)
        self._trackers["contrastive_loss"].update_state(loss)
        self._trackers["contrastive_accuracy"].update_state(
            _weighted_mean(right, weight)
        )
        return loss

    def _thin_negatives(self, mask):
        """Keeps each candidate with the chance that leaves `num_negatives`."""
        frames = mask.shape[1]
        if frames is not None and frames <= self.num_negatives:
            return 1.0
        frames = ops.shape(mask)[1]
        shape = (ops.shape(mask)[0], frames, frames)
        draw = keras.random.uniform(shape, seed=self.seed_generator)
        candidates = ops.maximum(ops.sum(mask, axis=1) - 1.0, 1.0)
        rate = self.num_negatives / candidates
        return ops.cast(draw < rate[:, None, None], "float32")

    def _mlm_losses(self, logits, codes, mask):
        """Cross entropy of the codes at masked and at other frames."""
        loss = keras.losses.sparse_categorical_crossentropy(
            codes, logits, from_logits=True
        )
        right = ops.cast(ops.argmax(logits, axis=-1), codes.dtype) == codes
        right = _weighted_mean(ops.cast(right, "float32"), mask)
        masked = _weighted_mean(loss, mask)
        self._trackers["mlm_loss"].update_state(masked)
        self._trackers["mlm_accuracy"].update_state(right)
        return masked, _weighted_mean(loss, 1.0 - mask)

    @staticmethod
    def weight_layouts(data, model):
        """The layouts of `get_layout_map`, given the names of its axes."""
        return {
            r"[^/]+/subsampling/convolution_\d+/kernel": (None, None, model),
            r"[^/]+/projection/kernel": (data, model),
            **conformer_layouts(data, model),
        }

    def get_config(self):
        config = super().get_config()
        config.update(
            sample_rate=self.sample_rate,
            num_mels=self.num_mels,
            window_duration=self.window_duration,
            mels_per_target=self.mels_per_target,
            hidden_dim=self.hidden_dim,
            num_heads=self.num_heads,
            intermediate_dim=self.intermediate_dim,
            num_contrastive_layers=self.num_contrastive_layers,
            num_masked_layers=self.num_masked_layers,
            kernel_size=self.kernel_size,
            codebook_size=self.codebook_size,
            codebook_dim=self.codebook_dim,
            num_negatives=self.num_negatives,
            mask_probability=self.mask_probability,
            mask_length=self.mask_length,
            contrastive_temperature=self.contrastive_temperature,
            contrastive_weight=self.contrastive_weight,
            mlm_weight=self.mlm_weight,
            unmasked_weight=self.unmasked_weight,
            perturbation=self.perturbation,
            diversity_weight=self.diversity_weight,
            commitment_weight=self.commitment_weight,
            codebook_decay=self.codebook_decay,
            dropout=self.dropout,
            seed=self.seed,
        )
        return config


def _weighted_mean(x, weight):
    return ops.sum(x * weight) / ops.maximum(ops.sum(weight), 1.0)
