-- Version 4. What each source is to the other nodes: they hand over to whoever can send where they cannot.
ALTER TABLE source ADD COLUMN pool text COLLATE "C", ADD COLUMN v6 bool, ADD COLUMN usable bool;

-- What was claimed for a node by another, until it has come for it.
CREATE TABLE handed (incarnation bigint NOT NULL, id uuid NOT NULL);
