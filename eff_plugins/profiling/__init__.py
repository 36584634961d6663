"""Parameters, multiply-adds and latency of what is really executed."""
