"""Text to token store to global batches."""
