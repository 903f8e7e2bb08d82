-- Loads the objects under a prefix that were not loaded before. Run it as often as is wanted: each event comes in once.
--
-- For S3 itself: INSTALL httpfs; LOAD httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain, REGION 'us-east-1');
-- for a copy of the bucket in the file system: the path of that copy in the place of s3://logs.
SET VARIABLE objects = 's3://logs/orders/**/*.gz';

CREATE TABLE IF NOT EXISTS loaded (object VARCHAR PRIMARY KEY);
CREATE TABLE IF NOT EXISTS orders (batch_id VARCHAR, event JSON);

BEGIN;
CREATE OR REPLACE TEMPORARY TABLE fresh AS
  SELECT file AS object FROM glob(getvariable('objects')) WHERE file NOT IN (SELECT object FROM loaded);
INSERT INTO orders
  SELECT regexp_extract(filename, '([0-9a-f]{64})\.gz$', 1), json
  FROM read_json_objects(getvariable('objects'), format = 'newline_delimited', compression = 'gzip', filename = true)
  WHERE filename IN (SELECT object FROM fresh);
INSERT INTO loaded SELECT object FROM fresh;
COMMIT;
