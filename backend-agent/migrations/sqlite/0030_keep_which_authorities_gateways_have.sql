-- usable from: 19
-- Which bundle of authorities a gateway has, by the digest that it reported last, and since when; and what is in each
-- bundle that backends gave, by the digests of its certificates. So that whoever replaces the server's authority knows
-- by name who would be cut off, connected or not. A backend that does not know this notes nothing: its gateways count
-- as having what they reported before.
ALTER TABLE gateways ADD COLUMN authorities TEXT;
ALTER TABLE gateways ADD COLUMN authorities_at INTEGER;

CREATE TABLE authority_bundles (
    tenant    TEXT    NOT NULL,
    digest    TEXT    NOT NULL,
    authority TEXT    NOT NULL,
    noted_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, digest, authority)
) STRICT, WITHOUT ROWID;
