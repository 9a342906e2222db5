"""Audio files -> arrays -> token shards -> batches."""
