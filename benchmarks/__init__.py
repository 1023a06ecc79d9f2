"""Commands that measure: each writes JSON and renders the tables of the README."""
