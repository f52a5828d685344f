"""Answers held to the grammar of boxes: tokens that must come are not asked for, and only legal ones are compared."""
