"""Crops as a Grain dataset, for runs on many machines."""


def grain_batches(crops, epochs=1, process_index=0, process_count=1):
    """The batches of crops as a `grain.MapDataset`.

    Its order is that of the crops: batch `i` of epoch `e` is what `crops[i]`
    is in that epoch, whichever threads or processes make it. Each of
    `process_count` training processes gets every so many-th batch. Iterators
    tell where they are (`get_state`) and go on from there (`set_state`), and a
    slice, `dataset[steps:]`, leaves out what is done.

    Args:
        crops: `AudioCrops`, `NoisyCrops` or `TokenCrops`.
        epochs: int.
        process_index: int. Which of the training processes this is.
        process_count: int. How many there are.

    Raises:
        ValueError: if Grain is not installed, there is no batch for each
            process, or no such process.

    Example:

    ```python
    dataset = grain_batches(crops, epochs=10)
    batches = dataset[steps_done:].to_iter_dataset(
        grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    )
    model.fit(batches, steps_per_epoch=len(crops), epochs=10)
    ```

    Reference:
     - [Grain](https://google-grain.readthedocs.io)
    """
    try:
        import grain
    except ImportError as error:
        raise ValueError(
            "Grain is not installed: pip install 'keras-audiolm[scale]', or "
            "pip install grain alone."
        ) from error
    total = len(crops) * epochs
    if not 0 <= process_index < process_count <= total:
        raise ValueError(
            "`process_index` must be from 0 to `process_count` - 1, and "
            f"there must be a batch for each, of {total}. Received: "
            f"process_index={process_index}, process_count={process_count}"
        )
    dataset = grain.MapDataset.source(Batches(crops, epochs))
    # As many for each, or some would wait for the others for ever.
    whole = total - total % process_count
    return dataset[process_index:whole:process_count]


class Batches:
    """The batches of all epochs in a row, by their place."""

    def __init__(self, crops, epochs):
        self.crops, self.epochs = crops, epochs

    def __len__(self):
        return len(self.crops) * self.epochs

    def __getitem__(self, place):
        return self.crops.batch(*divmod(int(place), len(self.crops)))
