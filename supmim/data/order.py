"""The order of samples: an endless stream of reshuffled epochs that can be read at any place.

It imports no jax, since reader processes use it. Grain, which imports Orbax, is imported later.
"""

import numpy as np

# For a shorter source, Grain's shuffle of an epoch takes as long as for one of this length.
SHORT = 2**16


class Order:
    """places in the stream -> records and epochs; each epoch is a permutation of `length` records.

    It depends on seed, key and place alone. spawn_key: tells two orders of one seed apart, as in
    NumPy's SeedSequence. Short sources are permuted by NumPy's RandomState, whose results stay the
    same in all versions of NumPy.
    """

    def __init__(self, length: int, seed: int, spawn_key: tuple[int, ...] = ()) -> None:
        self.length, self.seed, self.spawn_key = length, seed, spawn_key
        self._epoch, self._permutation = -1, np.empty(0, np.int32)
        if length > SHORT:
            import grain

            # Grain shuffles epoch e with seed + e: spread the seeds, or they would share epochs.
            spread = int(np.random.SeedSequence(seed, spawn_key=spawn_key).generate_state(1)[0])
            self._long = grain.MapDataset.range(length).shuffle(spread)

    def __call__(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the record and the epoch, int32 [n], of each place [n]."""
        epoch = (place // self.length).astype(np.int32)
        if self.length > SHORT:
            return np.array([self._long[int(n)] for n in place], np.int32), epoch
        record = np.empty(len(place), np.int32)
        for number in np.unique(epoch):
            own = epoch == number
            record[own] = self._shuffled(int(number))[place[own] % self.length]
        return record, epoch

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Return the records of an epoch of a short source, int32 [length]."""
        if epoch != self._epoch:
            entropy = np.random.SeedSequence([self.seed, epoch], spawn_key=self.spawn_key)
            random = np.random.RandomState(np.random.MT19937(entropy))
            records = np.arange(self.length, dtype=np.int32)
            self._epoch, self._permutation = epoch, random.permutation(records)
        return self._permutation
