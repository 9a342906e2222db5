"""Which token stands where: the three stages are three values of one type."""

import dataclasses

import numpy as np
from keras import ops

# Marks a frame that is not there, in codes; it becomes `pad_id` in ids.
PADDING = -1


@dataclasses.dataclass(frozen=True)
class Segment:
    """One run of frames in a stage's sequence.

    Args:
        name: str. The key of its codes in a model's inputs.
        levels: int. Codes of a frame.
        codebook_size: int. Codes of a level run from 0 to it, exclusive.
        frame_rate: float. Frames a second.
    """

    name: str
    levels: int
    codebook_size: int
    frame_rate: float

    def frames_in(self, seconds):
        """How many frames a stretch of time has, one or more."""
        return max(round(seconds * self.frame_rate), 1)


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """The order, the ids and the times of a stage's tokens.

    Each segment starts with an id of its own and goes on frame by frame, the
    levels of a frame in order, coarsest first:

        start_0 z_1 z_2 .. z_S start_1 y_1^1 y_1^2 y_2^1 y_2^2 .. y_T^2

    Every level of every segment has its own block of ids; the special ids
    come after all blocks, so that none collides. The last segment is the one
    that a stage predicts; the others are what it is told.

    Args:
        segments: sequence of `Segment` (or of their dictionaries).

    Example:

    >>> layout = TokenLayout.coarse(1024, 4, 1024, 25.0, 50.0)
    >>> layout.vocabulary_size
    5123
    >>> layout.offset("coarse", 1)
    2048

    Reference:
     - [AudioLM, section III-B and III-C](https://arxiv.org/abs/2209.03143)
    """

    segments: tuple

    def __post_init__(self):
        segments = tuple(
            Segment(**s) if isinstance(s, dict) else s for s in self.segments
        )
        object.__setattr__(self, "segments", segments)
        names = [s.name for s in segments]
        if not segments or len(set(names)) != len(names):
            raise ValueError(
                "A layout needs one or more segments with names of their own. "
                f"Received: {names}"
            )

    # === The paper's three stages ===

    @classmethod
    def semantic(cls, semantic_size, semantic_rate):
        """Stage 1: semantic tokens after semantic tokens."""
        return cls((Segment("semantic", 1, semantic_size, semantic_rate),))

    @classmethod
    def coarse(
        cls,
        semantic_size,
        coarse_levels,
        codebook_size,
        semantic_rate,
        acoustic_rate,
    ):
        """Stage 2: all semantic tokens, then the coarse acoustic levels."""
        return cls(
            (
                Segment("semantic", 1, semantic_size, semantic_rate),
                Segment("coarse", coarse_levels, codebook_size, acoustic_rate),
            )
        )

    @classmethod
    def fine(cls, coarse_levels, fine_levels, codebook_size, acoustic_rate):
        """Stage 3: all coarse tokens, then the fine acoustic levels."""
        return cls(
            (
                Segment("coarse", coarse_levels, codebook_size, acoustic_rate),
                Segment("fine", fine_levels, codebook_size, acoustic_rate),
            )
        )

    # === Ids ===

    @property
    def predicted(self):
        """The last segment."""
        return self.segments[-1]

    @property
    def num_code_ids(self):
        """How many ids stand for codes; the special ids follow them."""
        return sum(s.levels * s.codebook_size for s in self.segments)

    @property
    def vocabulary_size(self):
        return self.num_code_ids + len(self.segments) + 1

    @property
    def pad_id(self):
        return self.vocabulary_size - 1

    def index(self, name):
        return [s.name for s in self.segments].index(name)

    def start_id(self, name):
        """The id that opens a segment."""
        return self.num_code_ids + self.index(name)

    def offset(self, name, level):
        """The id of code 0 of a level."""
        index = self.index(name)
        before = sum(s.levels * s.codebook_size for s in self.segments[:index])
        return before + level * self.segments[index].codebook_size

    def offsets(self, name):
        """The first id of each level of a segment, `(levels,)` int32."""
        segment = self.segments[self.index(name)]
        return np.array(
            [self.offset(name, level) for level in range(segment.levels)],
            "int32",
        )

    # === Sequences ===

    def length(self, frames):
        """Tokens of a sequence.

        Args:
            frames: sequence of int, the frames of each segment.
        """
        return sum(
            1 + count * segment.levels
            for segment, count in zip(self.segments, frames, strict=True)
        )

    def flatten(self, codes):
        """Codes of every segment to one sequence of ids.

        Args:
            codes: dictionary of int32 `(batch, frames, levels)` by segment;
                -1 stands for what is not there.

        Returns:
            `(batch, length)` int32 ids.
        """
        parts = []
        for segment in self.segments:
            block = ops.cast(codes[segment.name], "int32")
            batch = ops.shape(block)[0]
            start = self.start_id(segment.name)
            parts.append(ops.full((batch, 1), start, "int32"))
            ids = block + self.offsets(segment.name)
            ids = ops.where(block == PADDING, self.pad_id, ids)
            parts.append(
                ops.reshape(ids, (batch, block.shape[1] * block.shape[2]))
            )
        return ops.concatenate(parts, axis=1)

    def times(self, frames):
        """When each token sounds, in frames of the predicted segment.

        Tokens of different segments that sound together get the same time;
        the levels of a frame follow each other within it.

        Args:
            frames: sequence of int, the frames of each segment.

        Returns:
            NumPy `(length,)` float32; a segment's start stands one frame
            before its first token.
        """
        parts = []
        for segment, count in zip(self.segments, frames, strict=True):
            step = self.predicted.frame_rate / segment.frame_rate
            level = np.arange(segment.levels) / segment.levels
            time = np.arange(count)[:, None] + level  # (frames, levels)
            parts += [[-step], time.reshape(-1) * step]
        return np.concatenate(parts).astype("float32")

    def check(self, codes):
        """Raises `ValueError` for codes that do not fit the layout.

        Args:
            codes: dictionary of NumPy `(batch, frames, levels)` by segment.
        """
        for name, block in codes.items():
            if name not in [s.name for s in self.segments]:
                raise ValueError(
                    f"There is no segment {name!r} in this layout, only "
                    f"{[s.name for s in self.segments]}"
                )
            segment = self.segments[self.index(name)]
            block = np.asarray(block)
            if block.ndim != 3 or block.shape[2] != segment.levels:
                raise ValueError(
                    f"{name} codes must be (batch, frames, {segment.levels}). "
                    f"Received: shape {block.shape}"
                )
            if not np.issubdtype(block.dtype, np.integer):
                raise ValueError(
                    f"{name} codes must be integers. Received: {block.dtype}"
                )
            if block.size and not (
                PADDING <= block.min() and block.max() < segment.codebook_size
            ):
                raise ValueError(
                    f"{name} codes must be from 0 to "
                    f"{segment.codebook_size - 1}, or -1 for padding. "
                    f"Received: {block.min()} to {block.max()}"
                )

    def check_generation(self, codes, num_frames):
        """Raises `ValueError` for codes that nothing can be generated from.

        Args:
            codes: dictionary of NumPy `(batch, frames, levels)` by segment:
                all that is told, and maybe a prompt, -1 before its start.
            num_frames: int. Frames of the predicted segment in the result.
        """
        if num_frames < 1:
            raise ValueError(
                f"`num_frames` must be 1 or more. Received: {num_frames}"
            )
        self.check(codes)
        for segment in self.segments[:-1]:
            if segment.name not in codes:
                raise ValueError(
                    f"The {segment.name!r} codes that this stage is "
                    f"conditioned on are missing. Received: {list(codes)}"
                )
        batches = {name: len(block) for name, block in codes.items()}
        if len(set(batches.values())) > 1 or 0 in batches.values():
            raise ValueError(
                "All codes must have the same batch size, one or more. "
                f"Received: {batches}"
            )
        name = self.predicted.name
        if name in codes and has_gap(np.asarray(codes[name]) == PADDING):
            raise ValueError(
                f"A {name} prompt may hold -1, which stands for frames that "
                "are not there, before its first frame alone. Cut them off."
            )

    def get_config(self):
        return {"segments": [dataclasses.asdict(s) for s in self.segments]}


def absent_frames(codes):
    """How many frames of -1 each row of NumPy codes has, `(batch,)`."""
    return (codes[..., 0] == PADDING).sum(axis=1)


def has_gap(absent):
    """Whether anything of `(batch, frames, levels)` is absent after the start
    of a row, or in a part of a frame."""
    frames = absent.any(axis=2)
    return bool(
        (frames != absent.all(axis=2)).any()
        or (frames[:, 1:] & ~frames[:, :-1]).any()
    )
