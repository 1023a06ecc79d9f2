"""Plug-ins, loaded by name; nothing in the engine imports them."""
