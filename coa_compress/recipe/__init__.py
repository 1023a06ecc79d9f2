"""Recipes: YAML to checked, frozen settings and back."""
