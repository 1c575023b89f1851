"""Put databases that machines filled by themselves together into one; see :mod:`worker.merge.merging`."""
