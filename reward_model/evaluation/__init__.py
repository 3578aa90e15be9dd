"""Honest tables: agreement metrics and the benchmark that runs a judge over rated clips."""
