"""Which layers train when, at which learning rate, and what it costs. Pure values."""
