"""Stage 2: sequences of descriptors -> reaction intensities."""
