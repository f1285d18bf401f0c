"""Models and caches on disk and on the hub."""
