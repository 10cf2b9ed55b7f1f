"""Spiking vision transformers."""
