"""Training data: token stores, instances, global batches. `prepare` makes the stores."""
