"""Counting and timing a network."""
