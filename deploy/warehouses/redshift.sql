-- A copy job: objects are loaded as they come, each once, by the integration of the bucket with the cluster.
CREATE TABLE orders (event SUPER);

COPY orders
FROM 's3://logs/orders/'
IAM_ROLE 'arn:aws:iam::123456789012:role/redshift-reads-logs'
FORMAT JSON 'noshred'
GZIP
JOB CREATE egressd_orders AUTO ON;
