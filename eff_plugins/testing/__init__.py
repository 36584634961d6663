"""Checks that the tests, the benchmarks and a user's own modules share."""
