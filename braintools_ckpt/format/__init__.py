"""Bytes: the writer and the reader of our own format, and those of plain state dicts."""
