"""Waveform -> semantic tokens."""
