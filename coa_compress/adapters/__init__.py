"""Bridges to other libraries, loaded by name through entry points and imported by nobody."""
