"""Tests, a folder for each room of `minigpt/`; `system/` has what is slow or spans them all."""
