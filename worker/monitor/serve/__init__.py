"""The page people keep open in the morning: ``carina serve``. Reads the database; writes nothing but retries."""
