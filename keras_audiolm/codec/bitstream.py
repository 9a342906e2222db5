"""Acoustic tokens as a file: each code at its true number of bits.

    offset  bytes  what
         0      4  b"SKA" and the version of the format, 1
         4      4  sample rate, hertz
         8      4  hop, samples
        12      4  codebook size
        16      2  quantizer levels
        18      8  samples of the original
        26      4  checksum of the weights that decide what codes mean
        30      1  length n of the preset's name
        31      n  the preset's name, UTF-8
      31+n         the codes, frame by frame, coarsest level first, most
                   significant bit first; zeros up to a whole byte
        -4      4  CRC-32 of all bytes before

Numbers are little-endian and unsigned.
"""

import dataclasses
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from keras_audiolm.layers.checksum import weights_checksum

MAGIC = b"SKA\x01"
HEADER = struct.Struct("<4sIIIHQIB")
CHECKSUM = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class CompressedAudio:
    """One recording's codes and what it takes to decode them.

    Args:
        codes: `(frames, levels)` int32.
        num_samples: int. Of the original, which may end within a hop.
        sample_rate: int. Hertz.
        hop_length: int. Samples of a frame.
        codebook_size: int.
        weights: int. `weights_checksum` of the codec's `encoding_layers()`.
        preset: str. What to load the codec from, for the reader.

    Example:

    ```python
    compressed = CompressedAudio.encode(codec, audio, bandwidth=3000)
    data = compressed.to_bytes()
    audio = CompressedAudio.from_bytes(data).decode(codec)
    ```
    """

    codes: np.ndarray
    num_samples: int
    sample_rate: int
    hop_length: int
    codebook_size: int
    weights: int = 0
    preset: str = ""

    @classmethod
    def encode(cls, codec, audio, bandwidth=None, preset="", denoise=None):
        """Compresses one recording.

        Args:
            codec: `SoundStream`.
            audio: `(samples,)` float32 at the codec's rate.
            bandwidth, denoise: as of `SoundStream.encode`.
            preset: str. Where the codec came from.
        """
        audio = np.asarray(audio)
        codec.build()
        codes = codec.encode(audio[None], bandwidth, denoise)[0]
        return cls(
            codes,
            len(audio),
            codec.sample_rate,
            codec.hop_length,
            codec.codebook_size,
            weights_checksum(*codec.encoding_layers()),
            preset,
        )

    def decode(self, codec):
        """The recording, `(num_samples,)` float32.

        Raises:
            ValueError: if the codec is not the one that made the codes.
        """
        codec.build()
        for name in ("sample_rate", "hop_length", "codebook_size"):
            if getattr(self, name) != getattr(codec, name):
                raise ValueError(
                    f"The codes have {name}={getattr(self, name)} and the "
                    f"codec {getattr(codec, name)}.{self._origin()}"
                )
        if weights_checksum(*codec.encoding_layers()) != self.weights:
            raise ValueError(
                "The codes were made with other weights than the codec's."
                + self._origin()
            )
        return codec.decode(self.codes[None], num_samples=self.num_samples)[0]

    def _origin(self):
        return f" They come from the preset {self.preset!r}."

    @property
    def bits_per_code(self):
        return max(math.ceil(math.log2(self.codebook_size)), 1)

    @property
    def bits_per_second(self):
        """Of the codes alone, as codecs are compared."""
        rate = self.sample_rate / self.hop_length
        return self.codes.shape[1] * self.bits_per_code * rate

    def to_bytes(self):
        """The file's content."""
        name = self.preset.encode()
        if len(name) > 255:
            raise ValueError(
                f"A preset's name takes at most 255 bytes. Received: {name!r}"
            )
        header = HEADER.pack(
            MAGIC,
            self.sample_rate,
            self.hop_length,
            self.codebook_size,
            self.codes.shape[1],
            self.num_samples,
            self.weights,
            len(name),
        )
        content = header + name + pack(self.codes, self.bits_per_code)
        return content + CHECKSUM.pack(zlib.crc32(content))

    @classmethod
    def from_bytes(cls, data, name="The data"):
        """Reads what `to_bytes` gave.

        Args:
            data: bytes.
            name: str. What to call the data in errors.

        Raises:
            ValueError: if it is something else, of a later version, cut short
                or changed on the way.
        """
        if len(data) < 4 or data[:3] != MAGIC[:3]:
            raise ValueError(f"{name} is not SoundStream-compressed audio.")
        if data[3] != MAGIC[3]:
            raise ValueError(
                f"{name} has version {data[3]} of the format; version "
                f"{MAGIC[3]} can be read here."
            )
        if len(data) < HEADER.size + CHECKSUM.size:
            raise ValueError(f"{name} is cut short within its header.")
        fields = HEADER.unpack_from(data)
        rate, hop, size, levels, samples, weights, length = fields[1:]
        if not (rate and hop and size and levels and samples):
            raise ValueError(f"{name} has zeros in its header: {fields[1:6]}.")
        start = HEADER.size + length
        frames = -(-samples // hop)
        made = cls(np.zeros((0, levels)), samples, rate, hop, size, weights)
        body = -(-frames * levels * made.bits_per_code // 8)
        expected = start + body + CHECKSUM.size
        if len(data) != expected:
            raise ValueError(
                f"{name} should take {expected} bytes by its header and has "
                f"{len(data)}: it was cut short or something was added."
            )
        if CHECKSUM.unpack(data[-CHECKSUM.size :])[0] != zlib.crc32(
            data[: -CHECKSUM.size]
        ):
            raise ValueError(f"{name} was changed: its checksum is wrong.")
        return dataclasses.replace(
            made,
            codes=unpack(
                data[start : start + body], (frames, levels), made.bits_per_code
            ),
            preset=data[HEADER.size : start].decode(errors="replace"),
        )

    def save(self, path):
        """Writes the file, whole or not at all."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(self.to_bytes())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path):
        return cls.from_bytes(pathlib.Path(path).read_bytes(), str(path))


def pack(codes, bits):
    """Codes of any shape to bytes, `bits` each."""
    places = np.arange(bits - 1, -1, -1)
    digits = (np.asarray(codes).reshape(-1, 1) >> places) & 1
    return np.packbits(digits.astype("uint8")).tobytes()


def unpack(data, shape, bits):
    """The inverse of `pack`."""
    count = math.prod(shape) * bits
    digits = np.unpackbits(np.frombuffer(data, "uint8"), count=count)
    places = 1 << np.arange(bits - 1, -1, -1, dtype="int32")
    return (digits.reshape(-1, bits) @ places).reshape(shape).astype("int32")
