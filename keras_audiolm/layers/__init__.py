"""Layers that the codec, the semantic encoder and the language models share."""
