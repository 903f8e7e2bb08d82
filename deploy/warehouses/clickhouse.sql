-- A queue over the prefix: it remembers which objects it has processed, by their keys, in ClickHouse Keeper.
CREATE TABLE orders (object String, event JSON) ENGINE = MergeTree ORDER BY object;

CREATE TABLE orders_queue (event JSON)
ENGINE = S3Queue('https://logs.s3.us-east-1.amazonaws.com/orders/**/*.gz', 'JSONAsObject', 'gzip')
SETTINGS mode = 'unordered', keeper_path = '/clickhouse/egressd/orders';

CREATE MATERIALIZED VIEW orders_loaded TO orders AS
SELECT _path AS object, event FROM orders_queue;
