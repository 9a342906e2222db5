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
        ends: bool. Whether a code more, the `end_code`, says that a recording
            is over. Of the predicted segment alone, with one level.
        deduplicated: bool. Whether runs of a code are one token, whose
            duration is not told. Of segments with one level.
    """

    name: str
    levels: int
    codebook_size: int
    frame_rate: float
    ends: bool = False
    deduplicated: bool = False

    @property
    def end_code(self):
        """The code that stands after a recording's last frame, or `None`."""
        return self.codebook_size if self.ends else None

    @property
    def num_codes(self):
        """Codes of a level, that of the end among them."""
        return self.codebook_size + self.ends

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
        for segment in segments:
            if segment.levels > 1 and (segment.ends or segment.deduplicated):
                raise ValueError(
                    "Only a segment of one level can be de-duplicated or have "
                    f"an end. Received: {segment}"
                )
            if segment.ends and segment != segments[-1]:
                raise ValueError(
                    "Only the last segment, which is predicted, can have an "
                    f"end. Received: {segment}"
                )

    # === The paper's three stages ===

    @classmethod
    def semantic(
        cls, semantic_size, semantic_rate, ends=False, deduplicated=False
    ):
        """Stage 1: semantic tokens after semantic tokens."""
        segment = Segment(
            "semantic", 1, semantic_size, semantic_rate, ends, deduplicated
        )
        return cls((segment,))

    @classmethod
    def coarse(
        cls,
        semantic_size,
        coarse_levels,
        codebook_size,
        semantic_rate,
        acoustic_rate,
        deduplicated=False,
    ):
        """Stage 2: all semantic tokens, then the coarse acoustic levels.

        `deduplicated` is of the semantic tokens.
        """
        return cls(
            (
                Segment(
                    "semantic",
                    1,
                    semantic_size,
                    semantic_rate,
                    deduplicated=deduplicated,
                ),
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
        return sum(s.levels * s.num_codes for s in self.segments)

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
        before = sum(s.levels * s.num_codes for s in self.segments[:index])
        return before + level * self.segments[index].num_codes

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
        the levels of a frame follow each other within it. The tokens of a
        de-duplicated segment are told as though each took a frame.

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
                PADDING <= block.min() and block.max() < segment.num_codes
            ):
                raise ValueError(
                    f"{name} codes must be from 0 to "
                    f"{segment.num_codes - 1}, or -1 for padding. "
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
    """With how many frames of -1 each row of NumPy codes begins, `(batch,)`."""
    return np.cumprod(codes[..., 0] == PADDING, axis=1).sum(axis=1)


def from_start(codes):
    """NumPy codes whose rows begin at once, with the -1 that stood before
    them at the end."""
    absent = absent_frames(codes)[:, None]
    places = (np.arange(codes.shape[1]) + absent) % max(codes.shape[1], 1)
    return np.take_along_axis(codes, places[..., None], axis=1)


def without_repeats(codes):
    """Codes of one level, each run of one of them as a single token.

    Args:
        codes: NumPy int `(batch, frames, 1)`; -1 is left out.

    Returns:
        NumPy int32 `(batch, tokens, 1)`, as many tokens as the longest row
        has; the others begin with -1.
    """
    first = np.full_like(codes[:, :1], PADDING)
    before = np.concatenate([first, codes[:, :-1]], axis=1)
    kept = ((codes != before) & (codes != PADDING))[..., 0]
    rows = [row[keep, 0] for row, keep in zip(codes, kept, strict=True)]
    longest = max(map(len, rows))
    result = np.full((len(codes), longest, 1), PADDING, "int32")
    for row, tokens in enumerate(rows):
        result[row, longest - len(tokens) :, 0] = tokens
    return result


def has_gap(absent):
    """Whether anything of `(batch, frames, levels)` is absent after the start
    of a row, or in a part of a frame."""
    frames = absent.any(axis=2)
    return bool(
        (frames != absent.all(axis=2)).any()
        or (frames[:, 1:] & ~frames[:, :-1]).any()
    )
