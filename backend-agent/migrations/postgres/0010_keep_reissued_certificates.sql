-- usable from: 1
-- Of a key whose certificate was reissued at the door, which takes the place of the one before: that one, so that
-- whoever shows it or was recorded with it is known as the same key. A backend that does not know this keeps none.
CREATE TABLE reissued (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    fingerprint bytea  NOT NULL,
    spki        bytea  NOT NULL,
    serial      text   NOT NULL,
    not_after   bigint NOT NULL,
    reissued_at bigint NOT NULL,
    PRIMARY KEY (agent_id, fingerprint, tenant),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);
