"""The embedded benchmark: emoji in random scenes."""
