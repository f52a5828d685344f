"""Data sets: reading what exists, checking it, and cutting, splitting and counting it."""
