"""Widths that meet a budget."""
