-- By hand, or as a scheduled query for a day that is over. Without a schedule of one's own: BigQuery Data Transfer Service for
-- Amazon S3, with the same table, the URI s3://logs/orders/*.gz, the format JSONL and write preference APPEND; it loads objects that
-- were changed since its last run, and egressd's never change.
CREATE TABLE IF NOT EXISTS warehouse.orders (event JSON);

LOAD DATA INTO warehouse.orders (event JSON)
FROM FILES (
  uris = ['s3://logs/orders/2026/11/30/*'],
  format = 'CSV',
  -- One column, a line of JSON: neither of these two stands in it.
  field_delimiter = '\x01',
  quote = '',
  compression = 'GZIP'
)
WITH CONNECTION `us-east-1.egressd_logs`;
