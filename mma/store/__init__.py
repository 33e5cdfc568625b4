"""The feature store: a folder of Parquet files, one row a chunk, that is also the checkpoint of an extraction."""
