"""Recipes in several variants and seeds, side by side."""
