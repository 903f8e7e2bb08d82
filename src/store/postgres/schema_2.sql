-- Version 2. What a node has in force of the suspensions: whoever makes one waits for it.
ALTER TABLE node ADD COLUMN loaded bigint NOT NULL DEFAULT 0;
