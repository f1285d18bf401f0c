"""Measured speed, beside other programs."""
