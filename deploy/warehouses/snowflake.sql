-- Snowpipe: objects are loaded as the bucket tells of them (its event notifications go to the queue that SHOW PIPES names).
CREATE STORAGE INTEGRATION egressd_logs
  TYPE = EXTERNAL_STAGE
  STORAGE_PROVIDER = 'S3'
  ENABLED = TRUE
  STORAGE_AWS_ROLE_ARN = 'arn:aws:iam::123456789012:role/snowflake-reads-logs'
  STORAGE_ALLOWED_LOCATIONS = ('s3://logs/orders/');

CREATE STAGE egressd_orders
  URL = 's3://logs/orders/'
  STORAGE_INTEGRATION = egressd_logs
  FILE_FORMAT = (TYPE = JSON COMPRESSION = GZIP);

CREATE TABLE orders (object STRING, line NUMBER, event VARIANT);

-- It remembers what it has loaded by the object's key.
CREATE PIPE egressd_orders AUTO_INGEST = TRUE AS
  COPY INTO orders (object, line, event)
  FROM (SELECT METADATA$FILENAME, METADATA$FILE_ROW_NUMBER, $1 FROM @egressd_orders);
