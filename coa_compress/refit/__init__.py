"""Closed-form repair of a student after the cut."""
