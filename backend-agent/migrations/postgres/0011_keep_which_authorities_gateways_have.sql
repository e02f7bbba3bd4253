-- usable from: 1
-- Which bundle of authorities a gateway has, by the digest that it reported last, and since when; and what is in each
-- bundle that backends gave, by the digests of its certificates. So that whoever replaces the server's authority knows
-- by name who would be cut off, connected or not. A backend that does not know this notes nothing: its gateways count
-- as having what they reported before.
ALTER TABLE gateways
    ADD COLUMN authorities    text COLLATE "C",
    ADD COLUMN authorities_at bigint;

CREATE TABLE authority_bundles (
    tenant    text   COLLATE "C" NOT NULL,
    digest    text   COLLATE "C" NOT NULL,
    authority text   COLLATE "C" NOT NULL,
    noted_at  bigint NOT NULL,
    PRIMARY KEY (digest, authority, tenant)
);
