"""Which batches of an epoch, and which rows of them, a training sees."""

import keras

from keras_audiolm.layers.distribution import process


class FollowEpochs(keras.callbacks.Callback):
    """Tells crops which epoch it is: their batches depend on it."""

    def __init__(self, crops):
        super().__init__()
        self.crops = crops

    def on_epoch_begin(self, epoch, logs=None):
        self.crops.epoch = epoch


class Rest(keras.utils.PyDataset):
    """The batches of an epoch from `first` on."""

    def __init__(self, crops, first):
        super().__init__()
        self.crops = crops
        self.first = first

    def __len__(self):
        return len(self.crops) - self.first

    def __getitem__(self, index):
        return self.crops[self.first + index]


class Share(keras.utils.PyDataset):
    """The rows of each batch that are this process's.

    All processes draw the same batches, and so see together what one process
    would see.
    """

    def __init__(self, crops, number, count):
        super().__init__()
        self.crops = crops
        self.number = number
        self.count = count

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        return keras.tree.map_structure(self._rows, self.crops[index])

    def _rows(self, array):
        size = len(array) // self.count
        return array[self.number * size : (self.number + 1) * size]


def share(crops):
    """What this process sees of crops, of which there may be none."""
    number, count = process()
    return crops if crops is None or count == 1 else Share(crops, number, count)


def check_distribution(part, batch_size):
    """Raises `ValueError` unless processes and devices see equal shares."""
    distribution = keras.distribution.distribution()
    _, count = process()
    if count > 1 and not (
        isinstance(distribution, keras.distribution.DataParallel)
        and not distribution.auto_shard_dataset
    ):
        raise ValueError(
            f"There are {count} processes, which share out batches themselves "
            "and have the same weights: call keras.distribution."
            "set_distribution(keras.distribution.DataParallel("
            f"auto_shard_dataset=False)). Received: {distribution}"
        )
    replicas = 1 if distribution is None else distribution.num_model_replicas
    if batch_size % replicas:
        raise ValueError(
            f"The batch_size of {part} is {batch_size}, and it is shared by "
            f"{replicas} devices. Give a multiple: "
            f"batch_size={{{part!r}: {-(-batch_size // replicas) * replicas}}}"
        )
