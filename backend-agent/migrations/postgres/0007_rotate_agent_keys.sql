-- usable from: 1
-- An operator asks for another agent key: the generation that is wanted, which the gateway's own generation follows with
-- the first HELLO that is accepted with it. Whether its agent can take a key over a session is known since its last one.
ALTER TABLE gateways ADD COLUMN key_wanted bigint;

ALTER TABLE gateways ADD COLUMN takes_keys boolean;

-- Of which master key the agent key and the token are that a gateway has, by its last session.
ALTER TABLE gateways ADD COLUMN key_master bytea;
