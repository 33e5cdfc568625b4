"""Stage 1: video -> faces -> affect descriptors, and the feature store."""
