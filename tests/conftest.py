"""Settings of all tests."""

from hypothesis import settings

# The first example of a test may be the one that compiles the code, on a machine that is busy.
settings.register_profile("mslt", deadline=None)
settings.load_profile("mslt")
