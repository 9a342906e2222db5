"""Waveform <-> acoustic tokens."""
