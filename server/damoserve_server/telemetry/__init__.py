"""What is told of calls besides the metrics: traces, and lines in the log."""
