"""What a person runs: one file a job, and the command line."""
