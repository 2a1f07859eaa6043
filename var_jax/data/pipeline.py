"""The stateless input pipeline: batch i is a function of (seed, i) and of nothing else.

Every epoch is a fresh shuffle of all records, each of which appears exactly once, also where an
epoch ends inside a batch. A host makes the rows of global batch i that its devices hold, so any
number of hosts sees the same global batches in the same order, and resuming needs the step only.
Grain computes the batches ahead of time in threads or in worker processes; their number changes
nothing in what comes out.
"""

from __future__ import annotations

import atexit
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags, logging

from var_jax.data import reading
from var_jax.data.decode import UnreadableImage
from var_jax.data.reading import BrokenData, UnreadableRecord
from var_jax.data.sources import Source

Batch = dict[str, np.ndarray]
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]

#: If so many records drawn in place of an unreadable one are no better, the data set is broken.
MAX_REPLACEMENTS = 50
#: Up to so many records an epoch's order is kept as an array (8 bytes each).
MAX_ORDER_IN_MEMORY = 2**22


class Pipeline:
    """Batches of a source, by step.

    Training batches never end: {"image": uint8 [b, H, W, c] or "tokens": int32 [b, L],
    "label": int32 [b], "index": int64 [b]}, where b is the number of `rows` and index is the
    global sample number step * batch_size + row, from which all randomness that belongs to a
    sample is derived.

    Without `train` it is one pass in the order of the source. The last batch is filled up, so
    that all hosts take equally many steps, and "mask": bool [b] is False on what must not count:
    the filling and records that cannot be read. With passes > 1 each record comes that many
    times in a row, each time with its own randomness: sample s is pass s % passes of record
    s // passes.

    A record that cannot be read or decoded, whatever the reason, is tried again and then replaced
    by another one, drawn by (seed, sample): the same one on every host and after every resume. It
    is named in a warning once and listed in `skipped`; more of them than `reading.allowed` end
    the run.

    Args:
      source: random-access records.
      transform: record, rng -> fields; None takes the record's arrays as they are (tokens).
      batch_size: global batch size, over all hosts.
      seed: >= 0; of the order and of the augmentation.
      train: endless shuffled epochs, or one pass in order.
      rows: which of a batch's rows 0 .. batch_size - 1 this host makes
        (`parallel.arrays.process_rows`); None makes all.
      num_workers: 0 computes in threads of this process; n > 0 in n spawned processes, which
        is faster for photographs on machines with many cores (the script then needs the usual
        `if __name__ == "__main__":`).
      num_threads: threads (with num_workers = 0).
      prefetch: batches ready ahead of time, over all workers.
      passes: see above; 1 to train.

    Raises:
      ValueError: an argument out of range.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform | None,
        batch_size: int,
        *,
        seed: int = 0,
        train: bool = True,
        rows: np.ndarray | None = None,
        num_workers: int = 0,
        num_threads: int = 4,
        prefetch: int = 4,
        passes: int = 1,
    ) -> None:
        rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < batch_size:
            raise ValueError(
                f"rows must lie in 0..{batch_size - 1}, got {rows.min()}..{rows.max()}."
            )
        for name, value, low in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
            ("num_threads", num_threads, 1),
            ("prefetch", prefetch, 1),
            ("passes", passes, 1),
        ):
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}.")
        if train and passes != 1:
            raise ValueError("passes is for one pass in order; a training stream repeats anyway.")
        self.variants = getattr(source, "variants", 1)
        self.num_records = len(source) // self.variants
        if self.num_records < 1:
            raise ValueError("The data source has no record.")
        self.source = source
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.train = train
        self.rows = rows
        self.num_workers = num_workers
        self.num_threads = num_threads
        self.prefetch = prefetch
        self.passes = passes
        self._reader = reading.PatientReader(source)
        #: Record number -> name and reason, of all records found unreadable so far.
        self.skipped: dict[int, str] = {}

    @property
    def num_samples(self) -> int:
        """Samples of one epoch (train) or of the whole pass."""
        return self.num_records * self.passes

    @property
    def num_steps(self) -> int:
        """Batches of one pass, the padded last one included; to train, batches an epoch, up."""
        return -(-self.num_samples // self.batch_size)

    def sample_numbers(self, step: int) -> np.ndarray:
        """int64 [b]: the global sample numbers of this host's share of batch `step`."""
        return step * self.batch_size + self.rows

    def record_numbers(self, samples: np.ndarray) -> np.ndarray:
        """int64 [b]: which record of the source each global sample number reads."""
        if not self.train:
            return samples % self.num_samples // self.passes * self.variants
        epochs, positions = np.divmod(samples, self.num_records)
        images = np.array(
            [
                _order(self.num_records, self.seed, int(e))[int(p)]
                for e, p in zip(epochs, positions, strict=True)
            ]
        )
        # Another version of the image each epoch: all of them are seen in `variants` epochs.
        return images * self.variants + (images + epochs) % self.variants

    def batch(self, step: int) -> Batch:
        """This host's share of batch `step`, computed here and now.

        Raises:
          BrokenData: so many records are unreadable that the data must be broken.
          ValueError: a label out of range.
        """
        batch, skipped = self._compute(step)
        self._note(skipped)
        return batch

    def batches(self, start_step: int = 0, stop_step: int | None = None) -> Iterator[Batch]:
        """Iterates over this host's batches from `start_step` on, computed ahead of time.

        Closing the iterator (or leaving its loop) ends the threads and processes.

        Args:
          start_step: the first batch, e.g. the step that a checkpoint holds.
          stop_step: the batch before which to stop; by default never (train) or at the end.
        """
        import grain

        last = sys.maxsize if self.train else self.num_steps
        stop = last if stop_step is None else min(stop_step, last)
        if start_step >= stop:
            return
        dataset = grain.MapDataset.source(_Steps(self, stop))[start_step:]
        if self.num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's processes ask for flags.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.num_workers,
                    per_worker_buffer_size=max(1, self.prefetch // self.num_workers),
                )
            )
        else:
            dataset = dataset.to_iter_dataset(
                grain.ReadOptions(min(self.num_threads, self.prefetch), self.prefetch)
            )
        iterator = iter(dataset)
        # A loop left open must not outlive the modules that its workers need.
        atexit.register(iterator.close)
        try:
            for item in iterator:
                if "broken" in item:
                    raise BrokenData(item["broken"])
                self._note(item["skipped"])
                yield item.pop("batch")
        finally:
            atexit.unregister(iterator.close)
            iterator.close()

    def _compute(self, step: int) -> tuple[Batch, list[tuple[int, str]]]:
        samples = self.sample_numbers(step)
        numbers = self.record_numbers(samples)
        skipped: list[tuple[int, str]] = []
        fields, good = [], np.ones(len(samples), bool)
        records = self._read_together([int(n) for n in numbers])
        for i, (sample, number, record) in enumerate(zip(samples, numbers, records, strict=True)):
            try:
                fields.append(self._sample(int(number), int(sample), record))
            except UnreadableRecord as error:
                skipped.append((int(number), str(error)))
                fields.append(self._replacement(int(number), int(sample), skipped))
                good[i] = False
        batch = {key: np.stack([f[key] for f in fields]) for key in fields[0]}
        batch["label"] = batch["label"].astype(np.int32)
        for key, values in batch.items():
            if values.dtype == np.uint16:  # Tokens, as small as they are on disk.
                batch[key] = values.astype(np.int32)
        batch["index"] = samples
        if not self.train:
            batch["mask"] = good & (samples < self.num_samples)
        return batch, skipped

    def _read_together(self, numbers: list[int]) -> list[dict[str, Any] | None]:
        """The records, or None for each that is still to be read by itself."""
        read_many = getattr(self.source, "__getitems__", None)
        if read_many is not None:
            try:
                return list(read_many(numbers))
            except Exception:  # One of them: reading them one by one finds out which.
                pass
        return [None] * len(numbers)

    def _sample(
        self, number: int, sample: int, record: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The fields of one sample, from its record if that has been read already.

        Raises:
          UnreadableRecord: with the reason.
        """
        if record is None:
            record = self._reader.read(number)
        try:
            return self._prepare(record, number, sample)
        except UnreadableImage as error:
            # Half a file may have come over the network; the same bytes again are hopeless.
            again = self._reader.read(number)
            if bytes(again["image"]) == bytes(record["image"]):
                raise UnreadableRecord(str(error)) from error
        try:
            return self._prepare(again, number, sample)
        except UnreadableImage as error:
            raise UnreadableRecord(str(error)) from error

    def _prepare(self, record: dict[str, Any], number: int, sample: int) -> dict[str, Any]:
        label = record["label"]
        if not 0 <= label < self.source.num_classes:
            raise ValueError(
                f"Label {label} of {self.source.name(number)} lies outside "
                f"0..{self.source.num_classes - 1}; correct the data set."
            )
        if self.transform is None:
            return record
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, sample], np.uint64)))
        return {**self.transform(record, rng), "label": np.int32(label)}

    def _replacement(
        self, number: int, sample: int, skipped: list[tuple[int, str]]
    ) -> dict[str, Any]:
        """A record drawn from the whole source by (seed, sample), the first that can be read.

        Not the next one in order: damage comes in runs (a folder, a shard), whose neighbour would
        then stand for all of them.
        """
        count = len(self.source)
        key = np.random.SeedSequence((self.seed, sample, 1)).generate_state(2, np.uint64)
        for other in np.random.Philox(key=key).random_raw(MAX_REPLACEMENTS) % np.uint64(count):
            try:
                return self._sample(int(other), sample)
            except UnreadableRecord as error:
                skipped.append((int(other), str(error)))
        raise BrokenData(
            f"{self.source.name(number)} and {MAX_REPLACEMENTS} records drawn in its place cannot "
            f"be read ({skipped[0][1]}); the data set is broken, out of reach, or not what the "
            "transform expects."
        )

    def _note(self, skipped: list[tuple[int, str]]) -> None:
        for number, reason in skipped:
            if number in self.skipped:
                continue
            self.skipped[number] = f"{self.source.name(number)}: {reason}"
            logging.warning(
                "Skipping unreadable record %s (%d so far).",
                self.skipped[number],
                len(self.skipped),
            )
        if len(self.skipped) > reading.allowed(len(self.source)):
            raise BrokenData(
                f"{len(self.skipped)} of {len(self.source)} records cannot be read, the last one "
                f"{list(self.skipped.values())[-1]}; mend the data set or remove them from it."
            )


class _Steps:
    """The pipeline as Grain's random-access source, one element a batch."""

    def __init__(self, pipeline: Pipeline, stop: int) -> None:
        self._pipeline = pipeline
        self._stop = stop

    def __len__(self) -> int:
        return self._stop

    def __getitem__(self, step: int) -> dict[str, Any]:
        # An error that passes between processes loses its kind, so this one goes as a value.
        try:
            batch, skipped = self._pipeline._compute(int(step))
        except BrokenData as error:
            return {"broken": str(error)}
        return {"batch": batch, "skipped": skipped}


@functools.lru_cache(maxsize=4)
def _order(num_records: int, seed: int, epoch: int) -> Any:
    """The epoch's permutation of range(num_records), as something to index."""
    # Hashed, so that seed s + 1 is not seed s an epoch later.
    key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    if num_records <= MAX_ORDER_IN_MEMORY:
        # Raw words and a stable sort: the same for every version of NumPy.
        return np.argsort(np.random.Philox(key=key).random_raw(num_records), kind="stable")
    import grain

    # Computed entry by entry: takes no memory, but is slow for few records.
    return grain.MapDataset.range(num_records).shuffle(seed=int(key[0] >> np.uint64(32)))
