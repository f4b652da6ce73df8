"""Click logs: raw formats to Parquet, Parquet to jagged batches, synthetic clicks."""
