"""Operators: a plain reference and, where it pays, a fast path behind one function."""
