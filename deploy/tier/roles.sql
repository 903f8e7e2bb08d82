-- The role that the nodes connect as, and its database; as a superuser, once:
--
--   psql -v password="$(cat pg-password)" -f roles.sql
--
-- It owns the database, in which the first node makes the schema `egressd`, and may do nothing beyond it. `pg_monitor` is
-- for the age of other roles' transactions, which hold back tails and vacuum: without it that metric tells of its own alone.
\set ON_ERROR_STOP on
CREATE ROLE egressd LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 200 PASSWORD :'password';
CREATE DATABASE egressd OWNER egressd ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;
REVOKE ALL ON DATABASE egressd FROM PUBLIC;
GRANT pg_monitor TO egressd;
-- A session of this role never commits without its sync, whatever the server's default becomes.
ALTER ROLE egressd IN DATABASE egressd SET synchronous_commit = on;
\connect egressd
REVOKE ALL ON SCHEMA public FROM PUBLIC;
