-- Version 3. What each tenant keeps, in bytes, by the day that it was accepted on: what retention drops is dropped of it.
CREATE TABLE kept (
    tenant text COLLATE "C" NOT NULL,
    day bigint NOT NULL,
    records bigint NOT NULL,
    bodies bigint NOT NULL,
    PRIMARY KEY (tenant, day)
);

-- What came since: added up now and then.
CREATE TABLE kept_since (
    tenant text COLLATE "C" NOT NULL,
    day bigint NOT NULL,
    records bigint NOT NULL,
    bodies bigint NOT NULL
);
