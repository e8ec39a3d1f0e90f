"""The commands of `damoserve-compress`, one module for each subject."""
