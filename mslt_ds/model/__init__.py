"""The encoder, cut into a frozen prefix and a trainable suffix."""
