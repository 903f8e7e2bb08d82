-- Version 6. Tunnels of the forward proxy: one row each, when it was opened and once more when it ended.
CREATE TABLE tunnel (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    node text NOT NULL,
    host text NOT NULL,
    -- The address that it left from, as its host has it and as the world sees it.
    source text,
    public text,
    begun_at bigint NOT NULL,
    -- NULL: it is open.
    ended_at bigint,
    outcome smallint,
    code smallint,
    form bytea NOT NULL
);
CREATE INDEX tunnel_tenant ON tunnel (tenant, id);
CREATE INDEX tunnel_open ON tunnel (node) WHERE ended_at IS NULL;
CREATE INDEX tunnel_ended ON tunnel (ended_at) WHERE ended_at IS NOT NULL;
