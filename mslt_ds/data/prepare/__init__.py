"""Text to token store: `mslt-ds prepare`."""
