"""Tokens -> more tokens."""
